r"""CaRE: per task and block an expert, a router and a class perceptron, routed by the perceptrons' entropies.

`moe_adapt.learners.care.block` has the forward pass. Training of task t > 0 has two halves: n/2 epochs, then
the heads of all classes are aligned on Gaussians of their features (`moe_adapt.learners.gaussians`), then n/2
epochs with a fresh optimizer, then alignment again. As in the released code the learning rate falls to a half
in the first and from there to zero in the second. The first task has one fit of n epochs. Losses are over the
classes of the current task; everything older is frozen, its heads included, and moved by alignment alone.

The paper and its released code differ. Two configurations follow one each; the defaults are ours:

| what | `care_paper` | `care_released` | default, `care` |
|---|---|---|---|
| alignment | none | yes | yes |
| layer norm | no | yes | yes |
| shared expert | slow average (ema) | as after task 0 | as after task 0 |
| new expert | fresh | mean of all but last | mean of all previous |
| perceptron loss | hard + KL | mean of hard and KL | hard + KL |
| dropout of the shared expert | none | 0.1 | none |
| inference | one forward | a forward per task | one forward |

The released code pins the shared expert to its state after task 0 up to one step in a thousand; we freeze it.
`care_linear` has routers that grow linearly with the tasks (ours).

A resumed run repeats the task that was interrupted, so the second half of a task needs no checkpoint.

Reference: Lou, Fu and Yu, arXiv 2602.03473; code LMMMEng/CaRE.
"""

import warnings
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from moe_adapt.backbones import Encoder
from moe_adapt.errors import UserError
from moe_adapt.learners.base import LEARNERS, Learner, TaskRun
from moe_adapt.learners.care.block import CareBlock, CareOptions, Decision, Scope
from moe_adapt.learners.care.growing import Growing
from moe_adapt.learners.care.losses import cosface_loss, perceptron_kl
from moe_adapt.learners.care.sites import RoutingRow, SiteHooks, find_blocks, routing_row
from moe_adapt.learners.gaussians import ClassGaussians, Covariance, align_cosine_heads, mean_scale
from moe_adapt.optim.groups import Schedule, momentum_sgd
from moe_adapt.streams import Batch, Task, TaskRecord

__all__ = ["Care", "CosineHeads"]


class CosineHeads(Growing):
    """A direction per class; scores are cosines.

    Args:
        width: Number of features, `d`.
    """

    tensors: ClassVar[tuple[str, ...]] = ("weight",)

    def __init__(self, width: int) -> None:
        super().__init__({"weight": (width,)})
        self.width = width

    def grow(self, classes: int) -> None:
        """Add trainable directions for so many classes."""
        self.append({"weight": nn.init.trunc_normal_(torch.empty(classes, self.width), std=0.02)})

    def forward(self, features: Tensor) -> Tensor:
        """Return cosines with the directions of all classes, [B, C]."""
        return F.normalize(features, dim=-1) @ F.normalize(self.whole("weight"), dim=-1).T

    @torch.no_grad()
    def write(self, weight: Tensor) -> None:
        """Replace all directions, [C, d], frozen ones included."""
        frozen, new = self.frozen("weight"), self.new("weight")
        frozen.copy_(weight[: len(frozen)])
        if new is not None:
            new.copy_(weight[len(frozen) :])


@LEARNERS.register("care")
class Care(Learner):
    """Bi-level routing over experts that are added task by task, on a frozen transformer encoder.

    Weight decay acts on all that is trained, as published.

    Args:
        backbone: A timm vision transformer, or a Hugging Face vision or text encoder.
        mixture: What shapes the mixture of a block.
        row: Which vector of a sample decides: its ``first`` token as published, or the ``mean`` of its
            tokens.
        temperature: Factor on cosines, tau. Higher: sharper class probabilities.
        margin: Margin of the classification losses, m.
        aux_weight: Weight of the perceptrons' losses, averaged over the blocks. Higher: perceptrons, which
            route, are trained harder.
        aux_reduction: Whether a block's two losses are summed or averaged.
        kl: Whether perceptrons are also drawn towards the classifier.
        alignment: Whether heads are aligned on Gaussians of the classes.
        alignment_epochs: Epochs of an alignment.
        alignment_lr: Learning rate of an alignment.
        alignment_samples: Features drawn per class and epoch; None for five batches' worth.
        covariance: How class covariances are kept: ``full``, ``diagonal`` or ``low_rank``.
        covariance_rank: Directions kept by ``low_rank``.
        inference: ``single``, one forward; ``ensemble``, a forward per task and one more.
        seed: Seed of the alignment's draws.
        epochs: Epochs of the first task, and of both halves of a later one together.
        batch_size: Samples per training step.
        lr: Learning rate at the start of a task; the second half of a later task starts at half of it.
        weight_decay: Weight decay.
        optimizer: Constructor of the optimiser.
        schedule: How the learning rate goes on within each fit.

    Raises:
        UserError: If the backbone is not an encoder with transformer blocks, or an option is unknown.
    """

    reference = "CaRE, Lou, Fu and Yu 2026, arXiv 2602.03473"

    distributable = True

    def __init__(
        self,
        backbone: Encoder,
        mixture: CareOptions | None = None,
        row: RoutingRow = "first",
        temperature: float = 20.0,
        margin: float = 0.0,
        aux_weight: float = 1.0,
        aux_reduction: Literal["sum", "mean"] = "sum",
        kl: bool = True,
        alignment: bool = True,
        alignment_epochs: int = 5,
        alignment_lr: float = 0.005,
        alignment_samples: int | None = None,
        covariance: Covariance = "full",
        covariance_rank: int = 16,
        inference: Literal["single", "ensemble"] = "single",
        seed: int = 0,
        epochs: int = 20,
        batch_size: int = 16,
        lr: float = 0.01,
        weight_decay: float = 5e-4,
        optimizer: OptimizerCallable = momentum_sgd,
        schedule: Schedule = "cosine",
    ) -> None:
        super().__init__(
            backbone=backbone,
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            weight_decay=weight_decay,
            optimizer=optimizer,
            schedule=schedule,
        )
        for name, value, known in (
            ("row", row, ("first", "mean")),
            ("aux_reduction", aux_reduction, ("sum", "mean")),
            ("inference", inference, ("single", "ensemble")),
        ):
            if value not in known:
                raise UserError(f"{name} is one of {', '.join(known)}, got {value!r}.")
        self.mixture = mixture or CareOptions()
        self.row: RoutingRow = row
        self.temperature = temperature
        self.margin = margin
        self.aux_weight = aux_weight
        self.aux_reduction = aux_reduction
        self.kl = kl
        self.alignment = alignment
        self.alignment_epochs = alignment_epochs
        self.alignment_lr = alignment_lr
        self.alignment_samples = alignment_samples
        self.covariance: Covariance = covariance
        self.covariance_rank = covariance_rank
        self.inference = inference
        self.seed = seed
        count = len(find_blocks(backbone.model))
        self.blocks: Any = nn.ModuleList(CareBlock(backbone.width, self.mixture) for _ in range(count))
        self.heads = CosineHeads(backbone.width)
        self.gaussians = ClassGaussians(backbone.width, covariance, covariance_rank) if alignment else None
        self.hooks = SiteHooks(backbone.model, self._mix)
        self._scope = Scope(0, forced=False)
        self._mask: Tensor | None = None
        self._rate = 1.0

    # Growth and state.

    def grow(self, record: TaskRecord) -> None:
        """Add a triplet to every block, and heads.

        Raises:
            UserError: If the task brings no class, one class that raw entropy cannot tell, or an old class.
        """
        fresh = record.num_seen - self.num_heads
        if fresh != len(record.classes):
            raise UserError(
                f"CaRE learns tasks of new classes only, but task {record.index} has {len(record.classes)} "
                f"classes of which {fresh} are new; use a class-incremental stream."
            )
        if fresh == 1 and not self.mixture.normalize_entropy:
            raise UserError(
                f"task {record.index} has one class: the entropy of its perceptron is always zero and it "
                "would be chosen for every sample; set normalize_entropy, or use larger tasks."
            )
        before = len(self.history[-2].classes) if len(self.history) > 1 else fresh
        if fresh != before and not self.mixture.normalize_entropy:
            warnings.warn(
                f"task {record.index} has {fresh} classes, the one before {before}: raw entropy is lower for "
                "fewer classes, so the smaller task is chosen whatever the sample; see normalize_entropy.",
                stacklevel=2,
            )
        for block in self.blocks:
            block.grow(fresh)
        self.heads.grow(fresh)
        if self.gaussians is not None:
            self.gaussians.grow(record.num_seen)

    @property
    def num_heads(self) -> int:
        """Classes that have a head."""
        return len(self.heads.whole("weight"))

    def restore(self, history: Iterable[TaskRecord], state: Mapping[str, Tensor]) -> None:
        """Become the learner that had this history and this state; the shapes are those of the state."""
        super().restore((), state)
        self.history = list(history)

    def grow_to(self, state: Mapping[str, Tensor]) -> None:
        """Make tensors as large as those of `state`."""
        for name, module in self.named_modules():
            if isinstance(module, Growing):
                module.take_shapes(state, f"{name}.")
        super().grow_to(state)

    # The forward pass.

    def _mix(self, index: int, tokens: Tensor) -> Tensor:
        block = self.blocks[index]
        stream = tokens.to(block.experts.frozen("down").dtype)
        row = routing_row(stream, self.row, self._mask)
        return block(stream, row, self._scope, 0 if self.row == "first" else None)

    def encode(self, batch: Batch, scope: Scope | None = None) -> Tensor:
        """Return adapted features, [B, d].

        Args:
            batch: The samples.
            scope: Which triplets take part; None for all, none of them forced.

        Raises:
            UserError: If the stream was encoded before: CaRE adapts the encoder.
        """
        if "features" in batch:
            raise UserError("CaRE adapts the encoder, so it cannot learn from features computed before.")
        self._scope = scope or Scope(len(self.history), forced=False)
        self._mask = batch.get("attention_mask")
        assert self.backbone is not None
        return self.backbone(batch)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the losses of classifier and perceptrons over the classes of the current task."""
        features = self.encode(batch, Scope(len(self.history), forced=True))
        classes = len(self.history[-1].classes)
        labels = batch["labels"] - (self.num_heads - classes)
        cosines = self.heads(features)[:, -classes:]
        result = {"cls": cosface_loss(cosines, labels, self.temperature, self.margin)}
        hard, divergence = [], []
        for index, block in enumerate(self.blocks):
            logits = block.perceptrons.current(block.decision.row)
            hard.append(cosface_loss(logits, labels, self.temperature, self.margin))
            soften = 1.0 if index < len(self.blocks) / 2 else 2.0
            divergence.append(perceptron_kl(cosines, logits, soften))
        weight = self.aux_weight * (0.5 if self.aux_reduction == "mean" and self.kl else 1.0)
        result["cp_hard"] = weight * torch.stack(hard).mean()
        if self.kl:
            result["cp_kl"] = weight * torch.stack(divergence).mean()
        return result

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the sum of the losses; log in how many samples the new expert was kept."""
        loss = super().training_step(batch, batch_idx)
        kept = torch.stack([(block.decision.gates[:, -1] > 0).float().mean() for block in self.blocks])
        self.log("train/share_current_expert", kept.mean(), batch_size=len(batch["labels"]))
        for block in self.blocks:
            block.forget()
        return loss

    def scores(self, batch: Batch) -> Tensor:
        """Return scaled cosines, or the ensemble's probabilities, [B, C_seen]."""
        free = self.temperature * self.heads(self.encode(batch))
        if self.inference == "single":
            return free
        passes = []
        for task in range(len(self.history)):
            features = self.encode(batch, Scope(task + 1, forced=True))
            passes.append((self.temperature * self.heads(features)).softmax(dim=-1))
        each = torch.stack(passes, dim=1)
        surest = torch.special.entr(each).sum(dim=-1).argmin(dim=1)
        return each[torch.arange(len(each), device=each.device), surest] + free.softmax(dim=-1)

    @torch.no_grad()
    def decisions(self, batch: Batch) -> list[Decision]:
        """Return what every block decides for a batch, as at test time."""
        self.encode(batch)
        found = [block.decision for block in self.blocks]
        for block in self.blocks:
            block.forget()
        return found

    # Learning a task.

    def learn_task(self, task: Task, run: TaskRun) -> None:
        """Fit once for the first task; later fit, align, fit, align."""
        if len(self.history) == 1:
            self._fit(run, self.epochs, 1.0, 0.0)
            self._collect(task, run)
            return
        for half in range(2):
            start, left = ((1.0, 0.5), (0.5, 0.0))[half]
            self._fit(run, max(1, self.epochs // 2), start, left)
            self._collect(task, run)
            self._align(2 * len(self.history) + half)

    def _fit(self, run: TaskRun, epochs: int, start: float, left: float) -> None:
        self._rate, self._rate_left = start, left
        run.fit(epochs=epochs)

    @torch.no_grad()
    def _collect(self, task: Task, run: TaskRun) -> None:
        """Fit the Gaussians of the task's classes on its features, routed as in training."""
        if self.gaussians is None:
            return
        self.eval()
        scope = Scope(len(self.history), forced=True)
        pairs = [(self.encode(batch, scope), batch["labels"]) for batch in run.batches(task.train)]
        features, labels = (torch.cat(column) for column in zip(*pairs, strict=True))
        self.gaussians.fit(features, labels)

    def _align(self, step: int) -> None:
        if self.gaussians is None:
            return
        heads = self.heads.whole("weight").detach()
        sizes = torch.tensor([len(record.classes) for record in self.history])
        tasks = torch.arange(len(sizes)).repeat_interleave(sizes)
        aligned = align_cosine_heads(
            heads,
            self.gaussians,
            mean_scale(tasks, len(sizes)).to(heads),
            self.alignment_epochs,
            self.alignment_lr,
            self.alignment_samples or 5 * self.batch_size,
            self.temperature,
            self.weight_decay,
            torch.Generator().manual_seed(self.seed * 100003 + step),
        )
        self.heads.write(aligned)

    def end_task(self, task: Task, run: TaskRun) -> None:
        """Freeze all that was learned."""
        for block in self.blocks:
            block.freeze()
            block.forget()
        self.heads.freeze()

    def trainable_parameters(self) -> dict[str, list[nn.Parameter]]:
        """Return all trainable parameters as ``backbone``, the role with weight decay, and the heads."""
        blocks = [p for p in self.blocks.parameters() if p.requires_grad]
        return {"router": [], "experts": [], "backbone": blocks, "head": list(self.heads.parameters())}

    def configure_optimizers(self) -> Any:
        """Return the optimiser of this fit, which may start at half of the learning rate."""
        full = self.lr
        self.lr = full * self._rate
        try:
            return super().configure_optimizers()
        finally:
            self.lr = full

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then let the slow shared experts follow."""
        super().optimizer_step(*args, **kwargs)
        for block in self.blocks:
            block.after_step()
