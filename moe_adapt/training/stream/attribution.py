r"""Why old tasks were forgotten: did routers drift, did experts drift, and how much of the loss is whose.

After every task an adapter's tensors, the routing of some test prompts of the task, and the inputs of every
adapted layer on them are kept. At the end, for every earlier task `i` and the last one `T`:

* **router drift**, end to end: first-choice agreement, overlap, stability, Jensen-Shannon divergence of the
  routing, and the mass on experts that are newer than the task (*leak*), beside the overlap that shuffled
  tokens would have;
* **router drift**, teacher-forced (the inputs as they were): $\lVert \Delta W_G X \rVert / \lVert W_G X
  \rVert$ of linear routers;
* **expert drift**: $\sqrt{\mathrm{tr}(\Delta D\, C\, \Delta D^T) / \mathrm{tr}(D\, C\, D^T)}$ of the
  experts' matrices `D = B A` for the second moment `C` of the task's inputs;
* **attribution** without training again: accuracy on the task with {routers of then, of now} x {experts of
  then, of now}. The Shapley split of the drop $a_{ii} - a_{Ti}$ gives routers and experts their shares,
  which add up to it.

A growing pool never changes old experts and rows, so there the drop is leak, all of it, and nothing is
swapped.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from moe_adapt.evaluation.trace.compare import compare_traces
from moe_adapt.evaluation.trace.file import load_trace, save_trace
from moe_adapt.evaluation.trace.record import RoutingTrace
from moe_adapt.learners import Learner
from moe_adapt.learners.instructions import InstructionLearner, PrototypeLoRA
from moe_adapt.learners.instructions.observing import LayerInput, watch_layers
from moe_adapt.reading import read_torch
from moe_adapt.streams import Batch, TaskStream
from moe_adapt.training.stream.files import write_file
from moe_adapt.tuner.loading import is_adapter_key
from moe_adapt.tuner.tracing import TraceRecorder

__all__ = ["Attribution", "can_attribute", "shapley_shares"]

ADAPTER = "default"
#: Part of the name of a router's tensors.
ROUTER = "moe_adapt_router__"


def can_attribute(learner: Learner) -> bool:
    """Return whether a learner has one pool of several routed experts that it trains task by task."""
    if not isinstance(learner, InstructionLearner) or isinstance(learner, PrototypeLoRA):
        return False
    if learner.trains_on != "task" or learner.answerer.tuner is None:
        return False
    return any(layer.specs[ADAPTER].num_experts > 1 for layer in learner.layers())


def shapley_shares(then: float, routers_now: float, experts_now: float, now: float) -> tuple[float, float]:
    """Return how much of a drop is due to routers and to experts; the two add up to it.

    Args:
        then: Accuracy with routers and experts of then.
        routers_now: With the routers of now and the experts of then.
        experts_now: With the experts of now and the routers of then.
        now: With both of now.

    >>> [round(share, 3) for share in shapley_shares(0.9, 0.9, 0.5, 0.4)]
    [0.05, 0.45]
    """
    routers = ((then - routers_now) + (experts_now - now)) / 2
    experts = ((then - experts_now) + (routers_now - now)) / 2
    return routers, experts


class _Snapshot(NamedTuple):
    """The state of things after a task: adapter, routing of its probes, inputs of the layers on them."""

    adapter: dict[str, Tensor]
    trace: RoutingTrace
    inputs: dict[str, Tensor]


class Attribution:
    """Watches a learner with routed experts through a stream.

    Args:
        learner: The learner.
        stream: The stream.
        folder: Where what is kept of each task goes, so that a resumed run has it; None keeps it in memory.
        probe_samples: Test prompts of each task that are traced.
        rows: Inputs of each layer that are kept per task.
        batch_size: Prompts per forward.
    """

    def __init__(
        self,
        learner: InstructionLearner,
        stream: TaskStream,
        folder: Path | None = None,
        probe_samples: int = 32,
        rows: int = 256,
        batch_size: int = 32,
    ) -> None:
        self.learner, self.stream = learner, stream
        self.probe_samples, self.rows, self.batch_size = probe_samples, rows, batch_size
        self.folder = folder
        self.snapshots: dict[int, _Snapshot] = {}

    def after_task(self, index: int) -> None:
        """Keep the state of things at the end of a task."""
        found = self._snapshot(index)
        self.snapshots[index] = found
        if self.folder is not None:
            tensors = {"adapter": found.adapter, "inputs": found.inputs}
            write_file(self.folder / f"task{index}.pt", lambda file: torch.save(tensors, file))
            save_trace(found.trace, self.folder / f"task{index}.safetensors")

    def _recall(self) -> None:
        """Read what an earlier part of the run kept."""
        for record in self.learner.history[:-1]:
            file = None if self.folder is None else self.folder / f"task{record.index}.pt"
            if record.index in self.snapshots or file is None or not file.is_file():
                continue
            tensors = read_torch(file, "what a task left", "run the stream again without --resume")
            trace = load_trace(file.with_suffix(".safetensors"))
            self.snapshots[record.index] = _Snapshot(tensors["adapter"], trace, tensors["inputs"])

    def _batches(self, index: int, limit: int | None = None) -> Iterator[Batch]:
        samples, tasks = self.stream.test_until(index)
        rows = np.flatnonzero(tasks == index)[:limit].tolist()
        for start in range(0, len(rows), self.batch_size):
            yield self.stream.collate([samples[row] for row in rows[start : start + self.batch_size]])

    def _adapter(self) -> dict[str, Tensor]:
        model = self.learner.answerer.model
        return {name: value for name, value in model.state_dict().items() if is_adapter_key(name)}

    @torch.no_grad()
    def _snapshot(self, index: int) -> _Snapshot:
        inputs: dict[str, list[Tensor]] = {}

        def watch(layer_input: LayerInput) -> None:
            inputs.setdefault(layer_input.layer.site, []).append(layer_input.rows.float().clone())

        handles = watch_layers(self.learner.layers(), watch)
        try:
            trace = self._trace(index)
        finally:
            for handle in handles:
                handle.remove()
        kept = {site: _thinned(torch.cat(found), self.rows) for site, found in inputs.items()}
        return _Snapshot({name: value.clone() for name, value in self._adapter().items()}, trace, kept)

    def _trace(self, index: int) -> RoutingTrace:
        recorder = TraceRecorder(self.learner.peft_tuner)
        was_training = self.learner.training
        self.learner.eval()
        for batch in self._batches(index, self.probe_samples):
            with recorder.forward(batch["row"][:, None]):
                self.learner.answerer.run(batch)
        self.learner.train(was_training)
        return recorder.trace()

    @contextmanager
    def _adapter_of(self, adapter: Mapping[str, Tensor]) -> Iterator[None]:
        """Put tensors into the adapter while the block runs."""
        own = self._adapter()
        before = {name: own[name].clone() for name in adapter}
        for name, value in adapter.items():
            own[name].copy_(value)
        try:
            yield
        finally:
            for name, value in before.items():
                own[name].copy_(value)

    def _accuracy(self, index: int) -> float:
        right = [self.learner.answer(batch)[0] for batch in self._batches(index)]
        return float(torch.cat(right).float().mean())

    @torch.no_grad()
    def finish(self, accuracy: np.ndarray) -> dict[str, Any]:
        """Return drift and attribution of every task but the last, and their means, as JSON types.

        Args:
            accuracy: Accuracy after every task (rows) on every task, [T, T].
        """
        self.learner.eval()
        self._recall()
        last = max(self.snapshots)
        grown = any(
            value.shape != self._adapter()[name].shape
            for kept in self.snapshots.values()
            for name, value in kept.adapter.items()
        )
        tasks = []
        for index in sorted(self.snapshots):
            if index == last:
                continue
            row = {"task": index, "name": self.stream.task_names[index], **self._router_drift(index)}
            if not grown:
                row |= {
                    **self._tensor_drift(index),
                    **self._swap(index, accuracy[index, index], accuracy[last, index]),
                }
            tasks.append(row)
        numbers = [key for key in (tasks[0] if tasks else {}) if key not in ("task", "name")]
        mean = {key: float(np.mean([row[key] for row in tasks])) for key in numbers}
        return {"growing_pool": grown, "tasks": tasks, "mean": mean}

    def _router_drift(self, index: int) -> dict[str, float]:
        sites = compare_traces(self.snapshots[index].trace, self._trace(index)).values()
        found = [asdict(site) for site in sites]
        return {
            key: float(np.mean([row[key] for row in found])) for key in found[0] if found[0][key] is not None
        }

    def _tensor_drift(self, index: int) -> dict[str, float]:
        """Return the drift of routers and experts on the inputs as they were."""
        then, now = self.snapshots[index], self._adapter()
        routers, experts = [], []
        for layer in self.learner.layers():
            prefix = next(name for name in now if f"{layer.site}.moe_adapt_A." in name).split("moe_adapt_A")[
                0
            ]
            x = then.inputs[layer.site]
            rows = f"{prefix}{ROUTER}scorer__weight.{ADAPTER}"
            if rows in now:
                old, new = x @ then.adapter[rows].t(), x @ now[rows].t()
                routers.append(float((new - old).norm() / old.norm().clamp(min=1e-12)))
            a, b = (f"{prefix}moe_adapt_{part}.{ADAPTER}" for part in "AB")
            old, new = (_outputs(x, tensors[a], tensors[b]) for tensors in (then.adapter, now))
            experts.append(float((new - old).norm() / old.norm().clamp(min=1e-12)))
        drift = {"expert_drift": float(np.mean(experts))}
        return drift | ({"logit_change": float(np.mean(routers))} if routers else {})

    def _swap(self, index: int, before: float, now: float) -> dict[str, float]:
        then = self.snapshots[index].adapter
        routers = {name: value for name, value in then.items() if ROUTER in name}
        experts = {name: value for name, value in then.items() if ROUTER not in name}
        with self._adapter_of(routers):
            experts_now = self._accuracy(index)
        with self._adapter_of(experts):
            routers_now = self._accuracy(index)
        by_routers, by_experts = shapley_shares(before, routers_now, experts_now, now)
        return {
            "accuracy_then": float(before),
            "accuracy_routers_now": routers_now,
            "accuracy_experts_now": experts_now,
            "accuracy_now": float(now),
            "drop_by_routers": float(by_routers),
            "drop_by_experts": float(by_experts),
        }


def _thinned(rows: Tensor, limit: int) -> Tensor:
    """Return at most `limit` rows, evenly spaced."""
    return rows if len(rows) <= limit else rows[torch.linspace(0, len(rows) - 1, limit).long()]


def _outputs(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return what every expert adds for every row, [N, E, o]."""
    return torch.einsum("oer,ner->neo", b, torch.einsum("erd,nd->ner", a, x))
