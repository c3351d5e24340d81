"""``fit --key COLUMN``: an expert for every customer (or tenant, or domain) of a column, and a shared one.

The option stands for a few others, which it writes before the rest of the command line is read:

* ``data.domain_column`` is the column;
* every layer has an expert per different value in the training rows, and one more for all rows
  (``--key_shared false`` leaves it out);
* the selector is ``keyed``: the expert of a row's own value, in training and at test.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from moe_adapt.errors import UserError

__all__ = ["count_keys", "split_key"]


def split_key(words: Sequence[str]) -> tuple[str | None, bool, list[str]]:
    """Return the column of ``--key``, whether there is a shared expert, and the other words.

    Raises:
        UserError: If an option lacks its value.

    >>> split_key(["--key", "tenant", "--out=x"])
    ('tenant', True, ['--out=x'])
    """
    found: dict[str, str] = {}
    rest: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        name, equals, value = word.partition("=")
        if name not in ("--key", "--key_shared"):
            rest.append(word)
            continue
        if not equals:
            if not left or left[0].startswith("--"):
                raise UserError(f"{name} needs a value: --key COLUMN, --key_shared true or false.")
            value = left.pop(0)
        found[name] = value
    shared = found.get("--key_shared", "true").lower()
    if shared not in ("true", "false") or ("--key_shared" in found and "--key" not in found):
        raise UserError("--key_shared is true or false, and goes with --key COLUMN.")
    return found.get("--key"), shared == "true", rest


def options_of_key(column: str, shared: bool) -> list[str]:
    """Return the options that ``--key`` stands for, but for the number of experts."""
    selector = f'{{"name": "keyed", "shared": {str(shared).lower()}}}'
    return [
        f"--data.domain_column={column}",
        "--data.domain_unknown=base",
        "--model.tuner.method=soft",
        "--model.tuner.scorer=uniform",
        f"--model.tuner.selector={selector}",
        "--model.tuner.modifiers=[]",
        "--model.tuner.aux_losses=[]",
    ]


def count_keys(source: Any, column: str, groups: Mapping[str, str] | None = None) -> int:
    """Return how many experts the values of a column need in the training rows.

    Args:
        source: The training rows.
        column: The column.
        groups: Group of each value; None gives every value an expert.

    Raises:
        UserError: If there is no such column, or a value is in no group.
    """
    from moe_adapt.data.tables import load_table
    from moe_adapt.training.datamodules.domains import DomainColumn

    domains = DomainColumn(column, groups)
    domains.read(load_table(source, "train"), source)
    return len(domains.names)
