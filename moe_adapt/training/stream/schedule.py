"""After which tasks there is a test: testing everything seen after each of T tasks costs T/2 passes."""

import re

from moe_adapt.errors import UserError

__all__ = ["scheduled_steps"]


def scheduled_steps(schedule: str, tasks: int, option: str = "eval_at") -> set[int]:
    """Return the task numbers that a schedule names; the last is always one.

    Args:
        schedule: ``all``, ``every=K``, ``geometric`` (tasks 1, 2, 4, 8, ...) or ``final``.
        tasks: Number of tasks.
        option: What the schedule is called in a message.

    Raises:
        UserError: If there is no such schedule.

    >>> sorted(scheduled_steps("every=4", 10)), sorted(scheduled_steps("geometric", 10))
    ([3, 7, 9], [0, 1, 3, 7, 9])
    """
    every = re.fullmatch(r"every=([1-9]\d*)", schedule)
    if every is not None:
        steps = set(range(int(every[1]) - 1, tasks, int(every[1])))
    elif schedule == "geometric":
        steps = {2**power - 1 for power in range(tasks.bit_length()) if 2**power <= tasks}
    elif schedule in ("all", "final"):
        steps = set(range(tasks)) if schedule == "all" else set()
    else:
        raise UserError(f"{option} is 'all', 'every=K', 'geometric' or 'final', got {schedule!r}.")
    return steps | {tasks - 1}
