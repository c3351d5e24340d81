r"""SAME: a fixed pool of shared experts, stabilised against router drift and expert drift.

After every optimiser step the update of the routers' rows passes through a rule
(`moe_adapt.optim.router`), that of the experts through a preconditioner made of old inputs
(`moe_adapt.optim.preconditioner`), and experts that earlier tasks need and this one does not are frozen
for the task (`moe_adapt.optim.freezing`). Routing is per token; nothing is known about tasks at test
time.

The router rule is the point. ``paper`` is the published one, which protects nothing by construction;
``strict`` protects the old signal space at the price of plasticity; ``guard`` keeps the selection of
retained inputs. Only the last two may claim preservation. What the released code does differently
(statistics of one batch, routing by the batch's mean, a second router that knows task prototypes) is not
here.

Statistics are products `X^T X` of layer inputs: of all tokens at the start of a task, then of a random share
that stands for the rest (`moe_adapt.optim.sampling`; `observe_share: 1` takes every token). An
eigendecomposition per layer is made once per task, under ``paper`` and ``relevant`` every `refresh_every`
steps.

Reference:
    Xie et al., "SAME: Stabilized Mixture-of-Experts for Multimodal Continual Instruction Tuning", arXiv
    2602.01990; a clean-room implementation of its equations.
"""

from typing import Any, get_args

import torch
from torch import Tensor, nn

from moe_adapt.backbones.instructions import InstructionModel
from moe_adapt.errors import UserError
from moe_adapt.learners.base import LEARNERS, TaskRun
from moe_adapt.learners.instructions.base import InstructionLearner
from moe_adapt.learners.instructions.observing import LayerInput, watch_layers
from moe_adapt.learners.instructions.site_state import ADAPTER, Precondition, SiteState
from moe_adapt.optim import ROUTER_UPDATES, GuardUpdate, PlainUpdate, UpdateHook, UpdateTransform
from moe_adapt.optim.preconditioner import degradation, product_update
from moe_adapt.registry import Spec
from moe_adapt.streams import Task
from moe_adapt.tuner import RoutedLoraConfig
from moe_adapt.tuner.layer import RoutedLoraLayer

__all__ = ["SAME"]


@LEARNERS.register("same")
class SAME(InstructionLearner):
    """A fixed pool of experts with corrected updates.

    Args:
        backbone: The model.
        tuner: The adapter: a linear scorer, more than one expert, none of them frozen.
        router_update: Rule of the routers: plain, paper, strict, soft, relevant, null_ratio, trust, guard, or
            a mapping of name and options.
        precondition: What of the experts is scaled by old curvature: none, down (`A`), down_per_expert (`A`,
            each expert by inputs weighted with its own gates) or both (`A` and `B`).
        c: Regulariser of the preconditioner, in units of the mean eigenvalue of the layer's inputs. Higher:
            old inputs slow experts down less.
        mu: Absolute regulariser instead, as in the paper (0.9).
        freeze_below: Score under which an expert is frozen for a task; None freezes none. Higher: more
            experts are frozen.
        freeze_after: Steps of a task before the score is taken.
        refresh_every: Steps between readings of running statistics.
        observe_share: Share of tokens that statistics are made of after a task's first ones; 1 takes all.
        max_exact: Widest layer whose moment is kept whole; wider ones are sketched.
        precondition_energy: Share of the energy of old inputs (squared eigenvalues) whose leading directions
            are preconditioned, as published (0.95); None inverts the whole moment. Higher: more directions
            are slowed.
        settings: Arguments of `Learner`.

    Raises:
        UserError: If the adapter does not fit.
    """

    reference = "SAME, Xie et al. 2026, arXiv 2602.01990"

    distributable = True

    def __init__(
        self,
        backbone: InstructionModel,
        tuner: RoutedLoraConfig,
        router_update: Spec = "paper",
        precondition: Precondition = "down",
        c: float = 0.05,
        mu: float | None = None,
        freeze_below: float | None = 0.1,
        freeze_after: int = 50,
        refresh_every: int = 50,
        observe_share: float = 1 / 16,
        max_exact: int = 4096,
        precondition_energy: float | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(backbone, tuner, **settings)
        if precondition not in get_args(Precondition):
            known = ", ".join(get_args(Precondition))
            raise UserError(f"precondition is one of {known}, got {precondition!r}.")
        if min(freeze_after, refresh_every) < 1:
            raise UserError("freeze_after and refresh_every are at least 1.")
        self.router_update, self.precondition = router_update, precondition
        self.c, self.mu, self.precondition_energy = c, mu, precondition_energy
        self.freeze_below, self.freeze_after = freeze_below, freeze_after
        self.refresh_every, self.observe_share, self.max_exact = refresh_every, observe_share, max_exact
        self.sites = nn.ModuleDict()
        for layer in self.layers():
            self._check(layer)
            rule = ROUTER_UPDATES.build(router_update)
            state = SiteState(layer, rule, precondition, c, mu, max_exact, observe_share, precondition_energy)
            self.sites[layer.site.replace(".", "/")] = state
        self._collected: dict[str, list[Tensor]] | None = None
        self._steps = 0
        self._update_hook: UpdateHook | None = None
        self._start: dict[str, tuple[Tensor, Tensor]] = {}
        self._report: dict[str, Any] = {}
        watch_layers(self.layers(), self._observe)

    def _check(self, layer: RoutedLoraLayer) -> None:
        spec = layer.specs[ADAPTER]
        linear = layer.routers[ADAPTER].rows(layer) is not None
        if spec.num_experts < 2 or spec.frozen or not linear:
            raise UserError(
                "SAME needs a linear scorer over at least two experts, none of them frozen; take the method "
                f"'soft' or 'top_k' ({layer.site} has {spec.num_experts} experts, {spec.frozen} frozen)."
            )

    def state_of(self, layer: RoutedLoraLayer) -> SiteState:
        """Return statistics and transforms of a layer."""
        return self.sites[layer.site.replace(".", "/")]  # type: ignore[return-value]

    # Statistics.

    def _observe(self, layer_input: LayerInput) -> None:
        if self._collected is not None:
            self._collected.setdefault(layer_input.layer.site, []).append(layer_input.rows.float().cpu())
        if not (self.training and layer_input.layer.training and torch.is_grad_enabled()):
            return
        self.state_of(layer_input.layer).observe(layer_input.rows, layer_input.gates())

    # The course of a task.

    def summed_buffers(self) -> set[str]:
        """Return moments and usage, which every process gathers from its own rows."""
        return {f"sites.{name}" for name, _ in self.sites.named_buffers()}

    def begin_task(self, task: Task) -> None:
        """Make the filters of this task."""
        super().begin_task(task)
        self._steps, self._report = 0, {}
        for layer in self.layers():
            self.state_of(layer).begin_task(layer, task.index)
            a, b = self._factors(layer)
            self._start[layer.site] = (a.detach().clone(), b.detach().clone())

    def _factors(self, layer: RoutedLoraLayer) -> tuple[nn.Parameter, nn.Parameter]:
        return layer.moe_adapt_A[ADAPTER], layer.moe_adapt_B[ADAPTER]

    def configure_optimizers(self) -> Any:
        """Return the optimiser, with the transforms around its steps."""
        configured = super().configure_optimizers()
        optimizer = configured["optimizer"] if isinstance(configured, dict) else configured
        transforms: dict[str, tuple[nn.Parameter, list[UpdateTransform]]] = {}
        for layer in self.layers():
            own = self.state_of(layer).transforms()
            a, b = self._factors(layer)
            rows = layer.routers[ADAPTER].rows(layer)
            for name, parameter in (("router", rows), ("A", a), ("B", b)):
                changing = [t for t in own[name] if not isinstance(t, PlainUpdate)]
                if isinstance(parameter, nn.Parameter) and changing:
                    transforms[f"{layer.site}/{name}"] = (parameter, changing)
        self._update_hook = UpdateHook(transforms)
        self._update_hook.attach(optimizer)
        return configured

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Freeze experts once there is a score, and follow running statistics."""
        if self.trainer.global_step == self._steps:
            return  # gradients are being accumulated
        self._steps = self.trainer.global_step
        if self._steps == self.freeze_after and self.freeze_below is not None:
            for layer in self.layers():
                state = self.state_of(layer)
                with state.usage.summed():
                    mask = state.usage.frozen(self.freeze_below)
                for freeze in state.freeze:
                    freeze.mask = mask
        if self._steps % self.refresh_every == 0:
            for layer in self.layers():
                state = self.state_of(layer)
                with state.moment.summed():
                    state.rule.refresh(state.moment)

    def end_task(self, task: Task, run: TaskRun) -> None:
        """Note what happened, then let the task join the finished ones."""
        self._report = self._describe_task()
        guarded = [layer for layer in self.layers() if isinstance(self.state_of(layer).rule, GuardUpdate)]
        rows = self._collect(task, run) if guarded else {}
        for layer in self.layers():
            if layer.site in rows:
                self._retain(layer, rows[layer.site], task.index)
            self.state_of(layer).end_task()

    def _collect(self, task: Task, run: TaskRun) -> dict[str, Tensor]:
        """Return inputs of every layer on training prompts of the task."""
        self._collected = {}
        limit = max(getattr(self.state_of(layer).rule, "max_inputs", 0) for layer in self.layers())
        for batch in run.batches(task.train):
            self.answerer.run(batch)
            if all(sum(map(len, found)) >= limit for found in self._collected.values()):
                break
        found, self._collected = self._collected, None
        return {site: torch.cat(pieces) for site, pieces in found.items()}

    def _retain(self, layer: RoutedLoraLayer, rows: Tensor, index: int) -> None:
        """Keep an equal share of each task's inputs, chosen at random."""
        rule = self.state_of(layer).rule
        weight = layer.routers[ADAPTER].rows(layer)
        assert isinstance(rule, GuardUpdate) and weight is not None
        generator = torch.Generator().manual_seed(index)
        share = max(1, rule.max_inputs // (index + 1))

        def some(pool: Tensor, count: int) -> Tensor:
            return pool[torch.randperm(len(pool), generator=generator)[:count].to(pool.device)]

        kept = [] if rule.rows is None else [some(rule.rows, rule.max_inputs - share)]
        rule.retain(torch.cat([*kept, some(rows.to(weight.device), share)]), weight)

    # What is worth knowing.

    def _describe_task(self) -> dict[str, Any]:
        frozen, damage = {}, 0.0
        for layer in self.layers():
            state = self.state_of(layer)
            mask = state.freeze[0].mask
            frozen[layer.site] = 0 if mask is None else int(mask.sum())
            if state.moment.rows_seen("past"):
                (a, b), (new_a, new_b) = self._start[layer.site], self._factors(layer)
                change = product_update(a, b, new_a.detach() - a, new_b.detach() - b)
                damage += float(degradation(change, state.moment.matrix("past")).sum())
        kept = self._update_hook.kept if self._update_hook is not None else {}
        shares = {
            part: [float(value) for name, value in kept.items() if name.endswith(f"/{part}")]
            for part in ("router", "A")
        }
        return {
            "frozen_experts": sum(frozen.values()),
            "frozen_experts_by_site": frozen,
            "degradation": damage,
            "update_kept": {part: sum(found) / len(found) for part, found in shares.items() if found},
        }

    def statistics_bytes(self) -> int:
        """Return the bytes of moments, usage and retained inputs."""
        total = 0
        for state in self.sites.values():
            total += sum(buffer.numel() * buffer.element_size() for buffer in state.buffers())
            rule = state.rule
            total += rule.nbytes if isinstance(rule, GuardUpdate) else 0
        return total

    def report(self) -> dict[str, Any]:
        """Return sizes, frozen experts, the share of updates that was kept, the damage to old outputs."""
        return {**super().report(), **self._report, "statistics_bytes": self.statistics_bytes()}
