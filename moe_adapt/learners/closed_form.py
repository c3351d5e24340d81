"""Learners that train nothing: a frozen encoder under a head in closed form.

One pass over the samples of a task, no gradient, no forgetting, and a result that does not depend on the
order of the tasks (for a ridge regression: with lambda fixed). They are the baselines that every routed
method has to beat. The mathematics is in `moe_adapt.learners.heads`.

RanPAC may adapt the encoder first: the adapter is trained on the first task under a head that is thrown away,
and then frozen. The paper chooses adapter, scale-and-shift or prompts per data set; ours is one LoRA, or a
routed one.
"""

from typing import Any, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.nn import functional as F

from moe_adapt.backbones import Encoder
from moe_adapt.errors import UserError
from moe_adapt.learners.base import LEARNERS, Learner, TaskRun
from moe_adapt.learners.heads.base import ClosedFormHead
from moe_adapt.learners.heads.fecam import FeCamHead
from moe_adapt.learners.heads.ncm import NearestMeanHead
from moe_adapt.learners.heads.ranpac import RanPacHead
from moe_adapt.learners.heads.ridge import LambdaRule, RidgeHead
from moe_adapt.learners.heads.slda import SldaHead
from moe_adapt.learners.heads.trainable import GrowingLinear
from moe_adapt.optim.groups import Schedule, momentum_sgd
from moe_adapt.streams import Batch, Task, TaskRecord
from moe_adapt.tuner import RoutedLoraConfig

__all__ = ["ClosedForm", "FeCam", "NearestMean", "RanPac", "Ridge", "Slda"]


class ClosedForm(Learner):
    """A frozen encoder under a head in closed form.

    Args:
        backbone: The encoder.
        head: The head, for features of the encoder's width.
        settings: Arguments of `Learner`, for a learner that trains something first.
    """

    distributable = True

    def __init__(self, backbone: Encoder, head: ClosedFormHead, **settings: Any) -> None:
        super().__init__(backbone=backbone, **settings)
        self.head = head

    def grow(self, record: TaskRecord) -> None:
        """Make room for new classes."""
        self.head.grow(record.num_seen)

    @torch.no_grad()
    def learn_task(self, task: Task, run: TaskRun) -> None:
        """Take in the samples of the task, once."""
        self.eval()
        pairs = []
        for batch in run.batches(task.train):
            features, labels = self.encode(batch), batch["labels"]
            self.head.update(features, labels)
            pairs.append((features, labels))
        features, labels = (torch.cat(column) for column in zip(*pairs, strict=True))
        self.head.end_task(features, labels)

    def scores(self, batch: Batch) -> Tensor:
        """Return scores [B, C_seen]."""
        return self.head(self.encode(batch))


@LEARNERS.register("ncm")
class NearestMean(ClosedForm):
    """Nearest class mean by cosine (SimpleCIL, arXiv 2303.07338).

    Args:
        backbone: The encoder.
        normalize_first: Whether to scale every feature to length one before averaging.
    """

    reference = "SimpleCIL, Zhou et al. 2023, arXiv 2303.07338"

    def __init__(self, backbone: Encoder, normalize_first: bool = False) -> None:
        super().__init__(backbone, NearestMeanHead(backbone.width, normalize_first))
        self.normalize_first = normalize_first


@LEARNERS.register("slda")
class Slda(ClosedForm):
    """Streaming linear discriminant analysis (arXiv 1909.01520).

    Args:
        backbone: The encoder.
        shrinkage: Weight of the identity in the covariance. Higher: closer to nearest class means.
        rule: ``exact`` for the covariance of all data, ``streaming`` for the published recursion.
    """

    reference = "SLDA, Hayes and Kanan 2019, arXiv 1909.01520"

    def __init__(
        self, backbone: Encoder, shrinkage: float = 1e-4, rule: Literal["exact", "streaming"] = "exact"
    ) -> None:
        super().__init__(backbone, SldaHead(backbone.width, shrinkage, rule))
        self.shrinkage, self.rule = shrinkage, rule


@LEARNERS.register("ridge")
class Ridge(ClosedForm):
    """Ridge regression to one-hot labels: RanPAC without a projection.

    Args:
        backbone: The encoder.
        lam: The regulariser, or the rule that chooses it: ``gcv`` by everything seen, ``grid`` by a fifth of
            each task, as RanPAC does.
        bias: Whether to append a constant feature.
        seed: Seed of the split on which ``grid`` chooses.
    """

    reference = "RanPAC without a projection, McDonnell et al. 2023, arXiv 2307.02251"

    def __init__(
        self, backbone: Encoder, lam: float | LambdaRule = "gcv", bias: bool = False, seed: int = 0
    ) -> None:
        super().__init__(backbone, RidgeHead(backbone.width, lam, bias, seed))
        self.lam, self.bias, self.seed = lam, bias, seed


@LEARNERS.register("fecam")
class FeCam(ClosedForm):
    """Mahalanobis distances with normalised covariances (arXiv 2309.14062).

    Args:
        backbone: The encoder.
        gamma1: Shrinkage of the diagonal. Higher: covariances closer to a multiple of the identity.
        gamma2: Shrinkage of the rest of the covariance.
        tukey: Exponent of a power transform of the features; None for none.
        shared: Whether all classes share one covariance.
    """

    reference = "FeCAM, Goswami et al. 2023, arXiv 2309.14062"

    def __init__(
        self,
        backbone: Encoder,
        gamma1: float = 1.0,
        gamma2: float = 0.0,
        tukey: float | None = None,
        shared: bool = False,
    ) -> None:
        super().__init__(backbone, FeCamHead(backbone.width, gamma1, gamma2, tukey, shared))
        self.gamma1, self.gamma2, self.tukey, self.shared = gamma1, gamma2, tukey, shared


@LEARNERS.register("ranpac")
class RanPac(ClosedForm):
    """Ridge regression on random features, after an optional adaptation on the first task (arXiv 2307.02251).

    Args:
        backbone: The encoder.
        tuner: Adapter that is trained on the first task and frozen then; None for no adaptation.
        proj_dim: Number of random features. Higher: usually more accurate; memory grows with its square.
        lam: The regulariser, or the rule that chooses it: ``gcv`` by everything seen, ``grid`` by a fifth of
            each task, as RanPAC does.
        seed: Seed of the projection and of the split on which ``grid`` chooses.
        epochs: Epochs of the adaptation.
        batch_size: Samples per step of the adaptation.
        lr: Learning rate of the adaptation.
        weight_decay: Weight decay of the head of the adaptation.
        optimizer: Constructor of the optimiser of the adaptation.
        schedule: How the learning rate of the adaptation goes on.
    """

    reference = "RanPAC, McDonnell et al. 2023, arXiv 2307.02251"

    def __init__(
        self,
        backbone: Encoder,
        tuner: RoutedLoraConfig | None = None,
        proj_dim: int = 2000,
        lam: float | LambdaRule = "gcv",
        seed: int = 0,
        epochs: int = 20,
        batch_size: int = 48,
        lr: float = 0.01,
        weight_decay: float = 5e-4,
        optimizer: OptimizerCallable = momentum_sgd,
        schedule: Schedule = "cosine",
    ) -> None:
        super().__init__(
            backbone,
            RanPacHead(backbone.width, proj_dim, lam, seed=seed),
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            weight_decay=weight_decay,
            optimizer=optimizer,
            schedule=schedule,
        )
        self.tuner, self.proj_dim, self.lam, self.seed = tuner, proj_dim, lam, seed
        self.first_head: GrowingLinear | None = None
        if tuner is not None:
            backbone.adapt(tuner)

    def learn_task(self, task: Task, run: TaskRun) -> None:
        """Adapt the encoder on the first task if asked to, then take in the samples."""
        if self.tuner is not None and len(self.history) == 1:
            self._adapt(task, run)
        super().learn_task(task, run)

    def _adapt(self, task: Task, run: TaskRun) -> None:
        assert self.backbone is not None
        if "features" in next(iter(run.batches(task.train, batch_size=1))):
            raise UserError(
                "RanPAC with a tuner adapts the encoder, so it cannot learn from features computed before; "
                "give it the raw stream, or leave the tuner out."
            )
        self.first_head = GrowingLinear(self.head.width).to(self.device)
        self.first_head.grow(task.num_seen)
        run.fit()
        self.first_head = None
        self.backbone.requires_grad_(False)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy of the head that is thrown away after the first task."""
        assert self.first_head is not None
        return {"cross_entropy": F.cross_entropy(self.first_head(self.encode(batch)), batch["labels"])}

    def restore(self, history: Any, state: Any) -> None:
        """Become the learner that had this history and this state; its adapter is frozen."""
        super().restore(history, state)
        if self.backbone is not None and self.history:
            self.backbone.requires_grad_(False)
