"""Learners that train nothing: a frozen encoder under a head in closed form.

One pass over the samples of a task, no gradient, no forgetting, and a result that does not depend on the
order of the tasks (for a ridge regression: with lambda fixed). They are the baselines that every routed
method has to beat. The mathematics is in `moe_adapt.learners.heads`.

RanPAC may adapt the encoder first: the adapter is trained on the first task under a head that is thrown away,
and then frozen. The paper chooses adapter, scale-and-shift or prompts per data set; ours is one LoRA, or a
routed one.
"""

from collections.abc import Callable
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
from moe_adapt.learners.heads.layer_choice import choose_layers, take_layers
from moe_adapt.learners.heads.ncm import NearestMeanHead
from moe_adapt.learners.heads.ranpac import RanPacHead
from moe_adapt.learners.heads.ridge import LambdaRule, RidgeHead
from moe_adapt.learners.heads.slda import Shrinkage, SldaHead
from moe_adapt.learners.heads.trainable import GrowingLinear
from moe_adapt.learners.heads.whitened import WhitenedMeanHead
from moe_adapt.optim.groups import Schedule, momentum_sgd
from moe_adapt.streams import Batch, Task, TaskRecord
from moe_adapt.tuner import RoutedLoraConfig

__all__ = ["ClosedForm", "FeCam", "NearestMean", "RanPac", "Ridge", "Slda", "WhitenedMean"]


class ClosedForm(Learner):
    """A frozen encoder under a head in closed form.

    Args:
        backbone: The encoder.
        head: Makes the head for features of a width.
        layers: How many neighbouring layers of the encoder the head reads, chosen on the first task; None
            takes all that the encoder gives.
        settings: Arguments of `Learner`, for a learner that trains something first.

    Attributes:
        first_layer: The first of the chosen layers, int64 []; -1 before the choice.

    Raises:
        UserError: If the encoder has fewer layers than that.
    """

    distributable = True
    first_layer: Tensor

    def __init__(
        self,
        backbone: Encoder,
        head: Callable[[int], ClosedFormHead],
        layers: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(backbone=backbone, **settings)
        given = backbone.num_layers
        if layers is not None and not 1 <= layers <= given:
            raise UserError(
                f"layers={layers} neighbours are chosen out of the encoder's layers, but it gives {given}: "
                "set more there, such as backbone.init_args.layers: 6."
            )
        self.layers = layers
        self.head = head(backbone.width // given * (layers or given))
        if layers is not None:
            self.register_buffer("first_layer", torch.tensor(-1))
        self._accuracies: list[float] = []

    def grow(self, record: TaskRecord) -> None:
        """Make room for new classes."""
        self.head.grow(record.num_seen)

    @torch.no_grad()
    def learn_task(self, task: Task, run: TaskRun) -> None:
        """Take in the samples of the task, once."""
        self.eval()
        pairs = [
            (super(ClosedForm, self).encode(batch), batch["labels"]) for batch in run.batches(task.train)
        ]
        features, labels = (torch.cat(column) for column in zip(*pairs, strict=True))
        if self.layers is not None and int(self.first_layer) < 0:
            first, self._accuracies = choose_layers(features, labels, self._given, self.layers)
            self.first_layer.fill_(first)
        for part, of in pairs:
            self.head.update(self.taken(part), of)
        self.head.end_task(self.taken(features), labels)

    @property
    def _given(self) -> int:
        assert isinstance(self.backbone, Encoder)
        return self.backbone.num_layers

    def taken(self, features: Tensor) -> Tensor:
        """Return the features [B, d] of the layers that the head reads, out of all that are given."""
        if self.layers is None:
            return features
        return take_layers(features, self._given, int(self.first_layer), self.layers)

    def encode(self, batch: Batch) -> Tensor:
        """Return the features [B, d] that the head reads."""
        return self.taken(super().encode(batch))

    def scores(self, batch: Batch) -> Tensor:
        """Return scores [B, C_seen]."""
        return self.head(self.encode(batch))

    def report(self) -> dict[str, Any]:
        """Return which layers were chosen, as numbers from the encoder's first."""
        if self.layers is None or int(self.first_layer) < 0:
            return {}
        first = int(self.first_layer)
        numbers = getattr(self.backbone, "layers", None) or list(range(1, self._given + 1))
        found = {"first_layer": numbers[first], "last_layer": numbers[first + self.layers - 1]}
        return found | {
            f"leave_one_out_from_layer_{numbers[at]}": accuracy
            for at, accuracy in enumerate(self._accuracies)
        }


@LEARNERS.register("ncm")
class NearestMean(ClosedForm):
    """Nearest class mean by cosine (SimpleCIL, arXiv 2303.07338).

    Args:
        backbone: The encoder.
        normalize_first: Whether to scale every feature to length one before averaging.
        layers: How many neighbouring layers of the encoder to read, chosen on the first task; None for all
            that it gives.
    """

    reference = "SimpleCIL, Zhou et al. 2023, arXiv 2303.07338"

    def __init__(self, backbone: Encoder, normalize_first: bool = False, layers: int | None = None) -> None:
        super().__init__(backbone, lambda width: NearestMeanHead(width, normalize_first), layers)
        self.normalize_first = normalize_first


@LEARNERS.register("slda")
class Slda(ClosedForm):
    """Streaming linear discriminant analysis (arXiv 1909.01520).

    Args:
        backbone: The encoder.
        shrinkage: Weight of the identity in the covariance, or ``oas`` for the oracle-approximating one.
            Higher: closer to nearest class means.
        rule: ``exact`` for the covariance of all data, ``streaming`` for the published recursion.
        layers: How many neighbouring layers of the encoder to read, chosen on the first task; None for all
            that it gives.
    """

    reference = "SLDA, Hayes and Kanan 2019, arXiv 1909.01520"

    def __init__(
        self,
        backbone: Encoder,
        shrinkage: Shrinkage = 1e-4,
        rule: Literal["exact", "streaming"] = "exact",
        layers: int | None = None,
    ) -> None:
        super().__init__(backbone, lambda width: SldaHead(width, shrinkage, rule), layers)
        self.shrinkage, self.rule = shrinkage, rule


@LEARNERS.register("whitened_mean")
class WhitenedMean(ClosedForm):
    """Nearest class mean by the cosine in a whitened space of several layers.

    Args:
        backbone: The encoder.
        shrinkage: Weight of the mean variance in the covariance, or ``oas`` for the oracle-approximating
            one. Higher: closer to the nearest mean by cosine.
        layers: How many of the layers that the encoder gives to read, from the last one down; None for all.
    """

    reference = "Whitened cosine, Liu 2007, IEEE TPAMI 29(6); layers as in LayUP, arXiv 2312.08888"

    def __init__(self, backbone: Encoder, shrinkage: Shrinkage = 0.4, layers: int | None = None) -> None:
        held = layers or backbone.num_layers
        super().__init__(backbone, lambda width: WhitenedMeanHead(width, shrinkage, held), layers)
        self.shrinkage = shrinkage
        if layers is not None:
            self.first_layer.fill_(backbone.num_layers - layers)


@LEARNERS.register("ridge")
class Ridge(ClosedForm):
    """Ridge regression to one-hot labels: RanPAC without a projection.

    Args:
        backbone: The encoder.
        lam: The regulariser, or the rule that chooses it: ``gcv`` by everything seen, ``grid`` by a fifth of
            each task, as RanPAC does.
        bias: Whether to append a constant feature.
        seed: Seed of the split on which ``grid`` chooses.
        layers: How many neighbouring layers of the encoder to read, chosen on the first task; None for all
            that it gives.
    """

    reference = "RanPAC without a projection, McDonnell et al. 2023, arXiv 2307.02251"

    def __init__(
        self,
        backbone: Encoder,
        lam: float | LambdaRule = "gcv",
        bias: bool = False,
        seed: int = 0,
        layers: int | None = None,
    ) -> None:
        super().__init__(backbone, lambda width: RidgeHead(width, lam, bias, seed), layers)
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
        layers: How many neighbouring layers of the encoder to read, chosen on the first task; None for all
            that it gives.
    """

    reference = "FeCAM, Goswami et al. 2023, arXiv 2309.14062"

    def __init__(
        self,
        backbone: Encoder,
        gamma1: float = 1.0,
        gamma2: float = 0.0,
        tukey: float | None = None,
        shared: bool = False,
        layers: int | None = None,
    ) -> None:
        super().__init__(backbone, lambda width: FeCamHead(width, gamma1, gamma2, tukey, shared), layers)
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
        layers: How many neighbouring layers of the encoder to read, chosen on the first task; None for all
            that it gives.
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
        layers: int | None = None,
    ) -> None:
        super().__init__(
            backbone,
            lambda width: RanPacHead(width, proj_dim, lam, seed=seed),
            layers,
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
        assert isinstance(self.backbone, Encoder)
        if "features" in next(iter(run.batches(task.train, batch_size=1))):
            raise UserError(
                "RanPAC with a tuner adapts the encoder, so it cannot learn from features computed before; "
                "give it the raw stream, or leave the tuner out."
            )
        self.first_head = GrowingLinear(self.backbone.width).to(self.device)
        self.first_head.grow(task.num_seen)
        run.fit()
        self.first_head = None
        self.backbone.requires_grad_(False)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy of the head that is thrown away after the first task."""
        assert self.first_head is not None and isinstance(self.backbone, Encoder)
        scores = self.first_head(self.backbone(batch))
        return {"cross_entropy": F.cross_entropy(scores, batch["labels"])}

    def restore(self, history: Any, state: Any) -> None:
        """Become the learner that had this history and this state; its adapter is frozen."""
        super().restore(history, state)
        if self.backbone is not None and self.history:
            self.backbone.requires_grad_(False)
