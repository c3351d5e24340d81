"""What learners of instructions share: the loss of right answers, who is right, and what happened in a task.

The prediction is the choice with the highest score; an instruction without choices is right if what the
model writes equals the answer up to its form (`moe_adapt.evaluation.answers`). No learner here knows the
task at test time, and none routes by what else is in the batch.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from moe_adapt.backbones.instructions import InstructionModel
from moe_adapt.errors import UserError
from moe_adapt.evaluation.answers import exact_match, normalised_match
from moe_adapt.learners.base import LEARNERS, Learner, Outcome, TaskRun
from moe_adapt.streams import Batch, Task, TaskRecord
from moe_adapt.tuner import RoutedLoraConfig, RoutedLoraModel
from moe_adapt.tuner.layer import RoutedLoraLayer
from moe_adapt.tuner.model import adapted_layers

__all__ = ["InstructionLearner", "JointInstructions", "NoTraining", "SequentialInstructions"]


class InstructionLearner(Learner):
    """A pretrained model with an adapter that learns to answer, task after task.

    Args:
        backbone: The model.
        tuner: The adapter; None trains nothing.
        settings: Arguments of `Learner`.
    """

    base_hash: Tensor

    def __init__(self, backbone: InstructionModel, tuner: RoutedLoraConfig | None, **settings: Any) -> None:
        super().__init__(backbone=backbone, **settings)
        self.tuner = tuner
        self.register_buffer("base_hash", _hash_of(backbone))
        if tuner is not None:
            backbone.adapt(tuner)
        self._steps_planned = 0
        self._steps_done = 0

    @property
    def answerer(self) -> InstructionModel:
        """The model."""
        return cast(InstructionModel, self.backbone)

    @property
    def peft_tuner(self) -> RoutedLoraModel:
        """The tuner inside the model."""
        tuner = self.answerer.tuner
        assert tuner is not None, "this learner has an adapter"
        return tuner

    def layers(self) -> list[RoutedLoraLayer]:
        """Return the adapted layers, in the order of the model."""
        return adapted_layers(self.peft_tuner.model)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss of the right answers."""
        return {"answer": self.answerer.answer_loss(batch)}

    def answer(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return whether each answer is right, bool [B], and the choice taken, int64 [B], or -1."""
        right = torch.zeros(len(batch["prompt"]), dtype=torch.bool)
        taken = torch.full((len(right),), -1)
        rows = [row for row, choices in enumerate(batch["choices"]) if choices]
        if rows:
            for row, scores in zip(rows, self.choice_scores(select(batch, rows)), strict=True):
                taken[row] = int(scores.argmax())
                right[row] = batch["choices"][row][taken[row]] == batch["answer"][row]
        free = [row for row, choices in enumerate(batch["choices"]) if not choices]
        if free:
            for row, text in zip(free, self.generate(select(batch, free)), strict=True):
                right[row] = normalised_match(text, batch["answer"][row])
        return right.to(self.device), taken.to(self.device)

    def choice_scores(self, batch: Batch) -> list[Tensor]:
        """Return the scores of each sample's choices."""
        return self.answerer.choice_scores(batch)

    def generate(self, batch: Batch) -> list[str]:
        """Return what the model writes after each prompt."""
        return self.answerer.generate(batch)

    def verdicts(self, batch: Batch) -> dict[str, Tensor]:
        """Return whether each answer is right by every verdict of `moe_adapt.evaluation.answers`, bool [B].

        The text that the model writes is judged exactly and up to its form; its choice, by likelihood.
        Samples without choices have no likelihood verdict of their own: there it is the normalised one.
        """
        written, answers = self.generate(batch), batch["answer"]
        found = {
            "exact": [exact_match(*pair) for pair in zip(written, answers, strict=True)],
            "normalised": [normalised_match(*pair) for pair in zip(written, answers, strict=True)],
        }
        chosen, rows = list(found["normalised"]), [n for n, c in enumerate(batch["choices"]) if c]
        if rows:
            right, _ = self.answer(select(batch, rows))
            for row, is_right in zip(rows, right.tolist(), strict=True):
                chosen[row] = is_right
        found["likelihood"] = chosen
        return {name: torch.tensor(values, device=self.device) for name, values in found.items()}

    def evaluate(self, batch: Batch, within: Tensor) -> Outcome:
        """Say which answers are right; there are no classes."""
        right, taken = self.answer(batch)
        return Outcome(right, taken, right)

    # The course of a task.

    @property
    def progress(self) -> float:
        """Share of the task's optimiser steps that are done."""
        return self._steps_done / self._steps_planned if self._steps_planned else 0.0

    def on_fit_start(self) -> None:
        """Count this fit's optimiser steps."""
        super().on_fit_start()
        self._steps_planned = max(1, int(self.trainer.estimated_stepping_batches))
        self._steps_done = 0

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Tell routers and their losses how far the task is."""
        self._steps_done = self.trainer.global_step
        if self.tuner is not None:
            self.peft_tuner.hooks.session.progress = self.progress

    def report(self) -> dict[str, Any]:
        """Return what is worth knowing about the task that has just ended, as JSON types."""
        trained = sum(p.numel() for p in self.parameters() if p.requires_grad)
        base = self.base_names()
        kept = [t for name, t in self.state_dict().items() if isinstance(t, Tensor) and name not in base]
        return {
            "trainable_parameters": trained,
            "stored_bytes": sum(t.numel() * t.element_size() for t in kept),
        }

    # State.

    def restore(self, history: Iterable[TaskRecord], state: Mapping[str, Tensor]) -> None:
        """Become the learner that had this history and this state.

        Raises:
            UserError: If the state was learned over other pretrained weights, or does not fit.
        """
        saved = state.get("base_hash")
        if saved is not None and not torch.equal(saved, self.base_hash):
            raise UserError(
                f"the saved statistics and adapters belong to other pretrained weights than those of "
                f"{self.answerer.name!r}; resume with the model of the run."
            )
        super().restore(history, state)


def select(batch: Batch, rows: list[int]) -> Batch:
    """Return some samples of a batch."""
    index = torch.tensor(rows, dtype=torch.int64)
    return {
        key: value[index.to(value.device)] if isinstance(value, Tensor) else [value[row] for row in rows]
        for key, value in batch.items()
    }


def _hash_of(model: InstructionModel) -> Tensor:
    """Return a number that tells pretrained weights apart, int64."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.model.state_dict().items()):
        values = tensor.detach().reshape(-1)[:: max(1, tensor.numel() // 16)][:16].float().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)}".encode() + values.numpy().tobytes())
    return torch.tensor(int.from_bytes(digest.digest()[:7], "little"))


@LEARNERS.register("sequential_instructions")
class SequentialInstructions(InstructionLearner):
    """One adapter, trained on one task after the other: the lower bound, for one LoRA or a routed pool.

    Args:
        backbone: The model.
        tuner: The adapter.
        settings: Arguments of `Learner`.
    """

    reference = "no paper: the lower bound"

    distributable = True

    def __init__(self, backbone: InstructionModel, tuner: RoutedLoraConfig, **settings: Any) -> None:
        super().__init__(backbone, tuner, **settings)


@LEARNERS.register("joint_instructions")
class JointInstructions(SequentialInstructions):
    """One adapter, trained on the samples of all tasks at once and tested once: the upper bound.

    Args:
        backbone: The model.
        tuner: The adapter.
        settings: Arguments of `Learner`.
    """

    reference = "no paper: the upper bound"

    trains_on = "all"


@LEARNERS.register("frozen_instructions")
class NoTraining(InstructionLearner):
    """The pretrained model as it is.

    Args:
        backbone: The model.
        settings: Arguments of `Learner`.
    """

    reference = "no paper: the model as it is"

    def __init__(self, backbone: InstructionModel, **settings: Any) -> None:
        super().__init__(backbone, None, **settings)

    def learn_task(self, task: Task, run: TaskRun) -> None:
        """Learn nothing."""
