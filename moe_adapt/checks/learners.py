"""Checks that every learner passes, ours and yours.

A learner is run over a small stream several times: straight, seeded alike, interrupted and resumed. Then its
predictions are looked at from all sides. Each check raises `AssertionError` with one sentence at the first
property that does not hold.

Learners of instructions have no classes: there the choices of each sample take their place, and the right
answers that of the labels.
"""

import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from moe_adapt.checks.instruction_toys import toy_instructions
from moe_adapt.checks.toys import gaussian_stream
from moe_adapt.learners import Learner
from moe_adapt.learners.instructions import InstructionLearner
from moe_adapt.signatures import constructor_arguments
from moe_adapt.streams import Batch, TaskStream
from moe_adapt.training.stream import StreamResult, StreamRunner

__all__ = ["check_batch_invariance", "check_learner"]

#: Two scores that differ by less, relative to the largest, are the same: shapes of products change rounding.
TOLERANCE = 1e-4


class _Interrupted(Exception):
    pass


def check_learner(make: Callable[[], Learner], stream: TaskStream | None = None, seed: int = 0) -> None:
    """Check a learner.

    It must keep its constructor's arguments under their names; score exactly the classes seen (or a sample's
    choices), after every task; predict the same whatever else is in the batch, whatever task is claimed, and
    without changing anything; leave its pretrained weights alone or say that it trains them; train more than
    zero steps on every task if it trains at all, with finite losses; repeat itself under one seed; and go on
    after an interruption as if there had been none.

    Args:
        make: Returns a fresh learner, always the same one.
        stream: A stream of at least three small tasks; if not given, a toy with ``x`` [8] and classes, or
            with prompts and choices for a learner of instructions.
        seed: Seed of the runs.

    Raises:
        AssertionError: If a property does not hold.

    >>> from moe_adapt.checks import ToyEncoder
    >>> from moe_adapt.learners import FineTuning
    >>> check_learner(lambda: FineTuning(ToyEncoder()))
    """

    def fresh() -> Learner:
        torch.manual_seed(seed)
        return make()

    learner = fresh()
    if stream is None:
        toy = isinstance(learner, InstructionLearner)
        stream = toy_instructions(train=8, test=3) if toy else gaussian_stream(tasks=3, train=12, test=6)
    said = learner.settings()
    for name in constructor_arguments(type(learner)):
        assert name in said, f"the constructor's argument {name!r} is kept under its own name"
    before = {name: tensor.clone() for name, tensor in _tensors(learner.state_dict()).items()}
    base = learner.base_names()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        watch = _Watch(learner)
        whole = StreamRunner(seed=seed, attribution=False).run(learner, stream)
        watch.stop()
        _check_course(learner, whole, watch, stream)
        for name in base & learner.base_names():
            same = torch.equal(before[name], learner.state_dict()[name])
            assert same, f"the pretrained tensor {name} is bit-identical, or base_names() leaves it out"
        _check_predictions(learner, stream)
        again = StreamRunner(seed=seed, attribution=False).run(fresh(), stream)
        assert _same(whole, again), "the same seed gives the same accuracies"
        resumed = _resumed(fresh, stream, folder, seed)
        assert _same(whole, resumed[1]), "a resumed run ends with the accuracies of an uninterrupted one"
        state, other = _tensors(learner.learner_state()), _tensors(resumed[0].learner_state())
        assert state.keys() == other.keys(), "a resumed run ends with the same tensors"
        for name in state:
            same = torch.equal(state[name], other[name].to(state[name].device))
            nan = state[name].is_floating_point() and torch.equal(
                state[name].nan_to_num(), other[name].nan_to_num()
            )
            assert same or nan, f"after resuming, {name} is bit-identical"


def _tensors(state: Mapping[str, Any], prefix: str = "") -> dict[str, Tensor]:
    """Return the tensors of a state by name, also those inside what modules keep beside their tensors."""
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        if isinstance(value, Tensor):
            found[prefix + name] = value
        elif isinstance(value, Mapping):
            found |= _tensors(value, f"{prefix}{name}.")
    return found


def _scores(learner: Learner, stream: TaskStream, batch: Batch) -> Tensor:
    """Return scores [B, C] over classes seen, or over choices: minus infinity where a sample has fewer."""
    if not isinstance(learner, InstructionLearner):
        return learner.scores(batch)
    samples, _ = stream.test_until(len(stream) - 1)
    width = max(len(samples[index]["choices"]) for index in range(len(samples)))
    rows = learner.choice_scores(batch)
    return torch.stack([F.pad(row, (0, width - len(row)), value=-torch.inf) for row in rows])


class _Watch:
    """What a learner did while it ran: its losses; and that it scored the classes seen."""

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self.losses: list[dict[str, Tensor]] = []
        self._losses, self._evaluate = learner.losses, learner.evaluate
        learner.losses = self._watch_losses  # type: ignore[method-assign]
        learner.evaluate = self._watch_evaluate  # type: ignore[method-assign]

    def _watch_losses(self, batch: Batch) -> dict[str, Tensor]:
        found = self._losses(batch)
        self.losses.append({name: value.detach() for name, value in found.items()})
        return found

    def _watch_evaluate(self, batch: Batch, within: Tensor) -> Any:
        if isinstance(self.learner, InstructionLearner):
            return self._watch_answers(batch, within)
        width, seen = self.learner.scores(batch).shape[1], self.learner.num_seen
        assert width == seen, f"scores have one column per class seen: {width} columns, {seen} classes"
        found = self._evaluate(batch, within)
        assert int(found.prediction.max()) < self.learner.num_seen, "a class not seen is never predicted"
        return found

    def _watch_answers(self, batch: Batch, within: Tensor) -> Any:
        found = self._evaluate(batch, within)
        for taken, choices in zip(found.prediction.tolist(), batch["choices"], strict=True):
            assert -1 <= taken < len(choices), f"choice {taken} is one of the sample's {len(choices)}"
        return found

    def stop(self) -> None:
        """Take the watch off."""
        del self.learner.losses, self.learner.evaluate


def _check_course(learner: Learner, result: StreamResult, watch: _Watch, stream: TaskStream) -> None:
    assert result.done, "the last task is tested"
    assert learner.num_seen == stream.num_seen[-1], "the learner has seen all classes"
    if watch.losses:
        for found in watch.losses:
            assert found, "every training step has a loss with a name"
            for name, value in found.items():
                assert torch.isfinite(value).all(), f"the loss {name!r} is finite"
        trained = [task["steps"] > 0 for task in result.tasks if task["learned"]]
        assert trained[0], "a learner that trains takes steps on the first task"
    assert not any(key.startswith("_") for key in learner.memory_bytes()), (
        "memory_bytes() names kinds of memory"
    )


def _same(one: StreamResult, other: StreamResult) -> bool:
    return bool((one.matrix.correct == other.matrix.correct).all())


def _resumed(
    fresh: Callable[[], Learner], stream: TaskStream, folder: Path, seed: int
) -> tuple[Learner, StreamResult]:
    """Run until the middle of the last task but one, then go on with a fresh learner."""
    learner = fresh()
    stop = 0 if learner.trains_on == "all" else len(stream) - 2

    def interrupted(task: Any, run: Any) -> None:
        if task.index >= stop:
            raise _Interrupted
        type(learner).end_task(learner, task, run)

    learner.end_task = interrupted  # type: ignore[method-assign]
    runner = StreamRunner(folder, seed=seed, attribution=False)
    with suppress(_Interrupted):
        runner.run(learner, stream)
    resumed = fresh()
    going_on = (folder / "last.ckpt").is_file()
    return resumed, runner.run(resumed, stream, resume=going_on)


@torch.no_grad()
def _check_predictions(learner: Learner, stream: TaskStream) -> None:
    learner.eval()
    examples, tasks = stream.test_until(len(stream) - 1)
    batch = stream.collate([examples[index] for index in range(len(examples))])
    kept = {key: value.clone() if isinstance(value, Tensor) else value for key, value in batch.items()}
    state = {name: tensor.clone() for name, tensor in _tensors(learner.state_dict()).items()}
    random = torch.get_rng_state()
    instructions = isinstance(learner, InstructionLearner)

    def scored(batch: Batch) -> Tensor:
        return _scores(learner, stream, batch)

    scores = scored(batch)
    if not instructions:
        assert scores.shape == (len(examples), stream.num_seen[-1]), "scores are [B, C_seen]"
    assert not torch.isnan(scores).any(), "scores are numbers"
    assert torch.equal(torch.get_rng_state(), random), "predicting draws nothing at random"
    for name, tensor in _tensors(learner.state_dict()).items():
        same = torch.equal(tensor.nan_to_num(), state[name].nan_to_num())
        assert same, f"predicting changes no tensor, but changed {name}"
    for key, value in kept.items():
        same = torch.equal(batch[key], value) if isinstance(value, Tensor) else batch[key] == value
        assert same, f"predicting leaves its input alone, but changed {key!r}"
    if not learner.needs_task_id:
        for claimed in (tasks, tasks * 0, len(stream) + tasks):
            hinted = scored({**batch, "task_ids": torch.from_numpy(claimed)})
            assert torch.equal(hinted, scores), "a task id in the batch changes nothing"
        what, told = ("answers", ("answer",)) if instructions else ("labels", ("labels", "row"))
        unlabelled = {key: value for key, value in batch.items() if key not in told}
        assert torch.equal(scored(unlabelled), scores), f"{what} at test time change nothing"
    samples = [examples[index] for index in range(len(examples))]
    check_batch_invariance(lambda rows: scored(stream.collate([samples[row] for row in rows])), tasks)


def check_batch_invariance(scores: Callable[[list[int]], Tensor], tasks: np.ndarray) -> int:
    """Check that a sample's scores do not depend on what else is in the batch.

    All samples are scored in one batch, one by one, shuffled, sorted by task, each next to copies of itself,
    and each next to samples of one foreign task. Predictions must agree where the two best scores differ by
    more than rounding.

    Args:
        scores: Scores [B, C] of the samples of the given numbers, as one batch.
        tasks: Task of every sample, [N].

    Returns:
        How many samples were left out because their two best scores are too close.

    Raises:
        AssertionError: If scores or predictions depend on the batch.
    """
    count = len(tasks)
    rng = np.random.default_rng(0)
    mixed = rng.permutation(count)
    whole = torch.empty_like(scores(list(range(count))))
    whole[torch.from_numpy(mixed)] = scores(mixed.tolist())
    finite = whole[torch.isfinite(whole)]
    scale = max(float(finite.abs().max()), 1e-6)
    best = whole.topk(min(2, whole.shape[1]), dim=1).values
    clear = torch.isfinite(best).all(dim=1)
    if best.shape[1] == 2:
        clear &= (best[:, 0] - best[:, 1]) > 2 * TOLERANCE * scale
    probes = rng.choice(count, size=min(count, 12), replace=False)

    def agree(rows: list[int], found: Tensor, how: str) -> None:
        expected = whole[rows]
        close = torch.isclose(found, expected, rtol=0, atol=TOLERANCE * scale).all()
        assert close, f"scores depend on the batch: {how}"
        known = clear[rows]
        same = (found.argmax(dim=1) == expected.argmax(dim=1))[known].all()
        assert same, f"predictions depend on the batch: {how}"

    ordered = np.argsort(tasks, kind="stable").tolist()
    agree(ordered, scores(ordered), "samples sorted by task")
    shuffled = rng.permutation(count).tolist()
    agree(shuffled, scores(shuffled), "samples shuffled")
    for probe in probes.tolist():
        agree([probe], scores([probe]), "a sample alone")
        agree([probe] * 4, scores([probe] * 4), "a sample next to copies of itself")
        foreign = np.flatnonzero(tasks == (tasks[probe] + 1) % (tasks.max() + 1))[:6].tolist()
        agree([probe], scores([probe, *foreign])[:1], "a sample next to samples of one foreign task")
    return int((~clear).sum())
