"""Is a composed adapter worth it? Routed against the right adapter, the base, the best one, and merges.

Rows of each expert are split: validation rows choose the weights of merges and the best single adapter, all
methods are judged on the others, which nothing was chosen on.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from moe_adapt.data.tables import TableSource
from moe_adapt.errors import UserError
from moe_adapt.hub.composition.base import open_base, open_tokenizer
from moe_adapt.hub.composition.edit import composed_loras, sample_config
from moe_adapt.hub.composition.folder import read_folder
from moe_adapt.hub.composition.merges import best_merges, mean_accuracy
from moe_adapt.hub.composition.questions import Judge, Question, read_questions
from moe_adapt.hub.composition.report import evaluation_page

__all__ = ["Evaluation", "evaluate"]


@dataclass
class Evaluation:
    """What an evaluation found.

    Attributes:
        accuracy: By method and expert; ``mean`` is that over experts.
        routing: How many test rows of each expert (rows) went to each expert or the base (columns).
        columns: Names of those columns.
        right_route: Share of the test rows that went to their own expert.
        abstained: Share that was left to the base.
        margin: Mean difference of the two largest probabilities.
        seconds: Seconds per row of the base and of the routed model.
        chosen: What validation rows chose.
        rows: Test rows of each expert.
    """

    accuracy: dict[str, dict[str, float]] = field(default_factory=dict)
    routing: dict[str, list[int]] = field(default_factory=dict)
    columns: list[str] = field(default_factory=list)
    right_route: float = 0.0
    abstained: float = 0.0
    margin: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    chosen: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)

    def add(self, method: str, right: Mapping[str, Tensor]) -> None:
        """Take in the answers of a method."""
        found = {uid: float(answers.float().mean()) for uid, answers in right.items()}
        self.accuracy[method] = {**found, "mean": mean_accuracy(right)}

    def table(self) -> str:
        """Return the accuracies as a Markdown table."""
        uids = [*self.rows, "mean"]
        lines = [f"| | {' | '.join(uids)} |", f"|---|{'---|' * len(uids)}"]
        for method, found in self.accuracy.items():
            lines.append(f"| {method} | " + " | ".join(f"{100 * found[uid]:.1f}" for uid in uids) + " |")
        return "\n".join(lines)

    def __str__(self) -> str:
        slower = self.seconds["routed"] / max(self.seconds["base"], 1e-9) - 1
        return (
            f"{self.table()}\n\n{self.right_route:.1%} of the rows went to their own expert, "
            f"{self.abstained:.1%} to the base; mean margin {self.margin:.2f}; "
            f"{slower:+.0%} time per row against the base"
        )

    def save(self, folder: Path) -> None:
        """Write ``evaluation.json``, ``evaluation.md`` and ``evaluation.html``."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "evaluation.json").write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        lines = [f"| | {' | '.join(self.columns)} |", f"|---|{'---|' * len(self.columns)}"]
        lines += [f"| {uid} | {' | '.join(map(str, row))} |" for uid, row in self.routing.items()]
        text = f"# Composed adapter\n\nAccuracy in %.\n\n{self}\n\nWho went where (rows):\n\n" + "\n".join(
            lines
        )
        (folder / "evaluation.md").write_text(text + "\n", encoding="utf-8")
        (folder / "evaluation.html").write_text(evaluation_page(self, folder.name), encoding="utf-8")


def evaluate(
    folder: str | Path,
    data: Mapping[str, TableSource],
    *,
    backbone: str | None = None,
    base: nn.Module | None = None,
    tokenizer: Any = None,
    validation: float = 0.3,
    merges: bool = True,
    batch_size: int = 32,
    say: Callable[[str], None] = lambda text: None,
) -> Evaluation:
    """Evaluate a composed adapter on questions with answers.

    Args:
        folder: Its folder.
        data: Questions of each expert (`read_questions`).
        backbone: Name or folder of the base model; None takes the one it was composed with.
        base: The base model itself.
        tokenizer: Its tokeniser.
        validation: Share of the rows, the first ones, that choices are made on.
        merges: Whether to compare with merges.
        batch_size: Rows per forward.
        say: Gets a line about what is being done.

    Raises:
        UserError: If a name is no expert's, or there are too few rows.
    """
    config, tensors, _, record = read_folder(Path(folder))
    for uid in data:
        record.check_expert(uid)
    questions = {uid: read_questions(source) for uid, source in data.items()}
    if not questions or min(len(rows) for rows in questions.values()) < 4:
        raise UserError("an evaluation needs four rows at least of every expert that it judges.")
    name = backbone or record.backbone
    if base is None and name is None:
        raise UserError("it is not known what the adapter was composed on; give the backbone.")
    model_base = base if base is not None else open_base(str(name), record.task)
    tokenizer = tokenizer or open_tokenizer(str(name))
    cut = {uid: max(1, round(len(rows) * validation)) for uid, rows in questions.items()}
    held = {uid: rows[: cut[uid]] for uid, rows in questions.items()}
    test = {uid: rows[cut[uid] :] for uid, rows in questions.items()}
    sample = sample_config(config, record)
    starts = None
    if sample.head:
        widths = [sample.classes[uid] for uid in sample.experts]
        starts = {uid: sum(widths[:place]) for place, uid in enumerate(sample.experts)}
    language = hasattr(model_base, "get_output_embeddings") and record.task == "CAUSAL_LM"
    judge = Judge(tokenizer, record.max_length or 128, starts, language, batch_size)
    found = Evaluation(rows={uid: len(rows) for uid, rows in test.items()})
    loras = composed_loras(config, tensors, record)
    every = [question for rows in questions.values() for question in rows]
    judge.learn_names(model_base, every)
    if merges and starts is None:
        _merges(found, model_base, loras, judge, held, test, say)
    model: Any = PeftModel.from_pretrained(model_base, str(folder)).eval()
    _routed(found, model, judge, held, test, list(loras), say)
    order = ["oracle", "routed", "best single", *(m for m in found.accuracy if m.startswith("merge")), "base"]
    found.accuracy = {method: found.accuracy[method] for method in order if method in found.accuracy}
    return found


Rows = Mapping[str, Sequence[Question]]


def _routed(
    found: Evaluation, model: Any, judge: Judge, held: Rows, test: Rows, uids: list[str], say: Any
) -> None:
    """Judge routing, the right expert, each single one, and the base."""

    def by(rows: Rows, expert: str | None) -> dict[str, Tensor]:
        return {uid: judge.right(model, own, uid, [expert or uid] * len(own)) for uid, own in rows.items()}

    say("the right adapter for every row")
    found.add("oracle", by(test, None))
    say("every adapter on all rows")
    singles = {uid: mean_accuracy(by(held, uid)) for uid in uids}
    best = max(singles, key=lambda uid: singles[uid])
    found.chosen["best single"] = best
    found.add("best single", by(test, best))
    say("routing")
    found.columns = [*uids, "base"]
    margins, right, left = [], 0.0, 0.0
    total = sum(len(rows) for rows in test.values())
    answers = {}
    start = time.perf_counter()
    for uid, own in test.items():
        counts = dict.fromkeys(found.columns, 0)
        seen: list[Any] = []
        watch = _Watch(model, seen)
        answers[uid] = judge.right(watch, own, uid)
        for names, margin in seen:
            for name in names:
                counts[name or "base"] += 1
            margins.append(margin.nan_to_num(1.0).cpu())
        found.routing[uid] = list(counts.values())
        right += counts[uid] / max(sum(counts.values()), 1) * len(own)
        left += counts["base"] / max(sum(counts.values()), 1) * len(own)
    found.seconds["routed"] = (time.perf_counter() - start) / total
    found.add("routed", answers)
    found.right_route, found.abstained = right / total, left / total
    found.margin = float(torch.cat(margins).mean())
    say("the base alone")
    with model.disable_adapter():
        start = time.perf_counter()
        if judge.starts is None:
            found.add("base", {uid: judge.right(model, own, uid) for uid, own in test.items()})
        else:
            for own in test.values():
                judge._tokens([q.text for q in own], model)
        found.seconds["base"] = (time.perf_counter() - start) / total


class _Watch:
    """A model that notes who answered each sample, and by which margin.

    Where tokens are routed, that is the expert of the largest share of the gates over tokens and layers.
    """

    def __init__(self, model: Any, seen: list[Any]) -> None:
        self.model, self.seen = model, seen
        self.peft_config, self.base_model = model.peft_config, model.base_model

    def parameters(self) -> Any:
        return self.model.parameters()

    def __call__(self, **inputs: Any) -> Any:
        tuner = self.model.base_model
        if tuner.routes_samples():
            output = self.model(**inputs)
            routes = tuner.sample_routes()
            self.seen.append((routes.names(), routes.margin))
            return output
        with tuner.record():
            output = self.model(**inputs)
            self.seen.append(_main_experts(tuner, len(inputs["input_ids"])))
        return output


def _main_experts(tuner: Any, samples: int) -> tuple[list[str], Tensor]:
    """Return the expert with the largest share of each sample's gates, and its lead over the next, [B]."""
    config = tuner.peft_config[tuner.active_adapters[0]]
    names = sorted({uid for spec in config.sites.values() for uid in spec["uids"]})
    shares = torch.zeros(samples, len(names))
    for record in tuner.hooks.session.context.records.values():
        gates = record.gates.float().cpu()
        if record.mask is not None:
            gates = gates * record.mask.cpu()[:, None]
        own = [names.index(uid) for uid in config.sites[record.site]["uids"]]
        shares[:, own] += gates.view(samples, -1, len(own)).sum(dim=1)
    shares = shares / shares.sum(dim=1, keepdim=True).clamp(min=1e-9)
    best = shares.topk(min(2, len(names)), dim=1)
    margin = best.values[:, 0] - (best.values[:, 1] if len(names) > 1 else 0.0)
    return [names[place] for place in best.indices[:, 0].tolist()], margin


def _merges(
    found: Evaluation, base: nn.Module, loras: Any, judge: Judge, held: Rows, test: Rows, say: Any
) -> None:
    def answered(model: Any, rows: Rows) -> dict[str, Tensor]:
        return {uid: judge.right(model, own, uid) for uid, own in rows.items()}

    for merged in best_merges(base, loras, lambda model: mean_accuracy(answered(model, held))):
        say(f"merge {merged.kind}, weight {merged.weight:.2f}")
        found.chosen[f"merge {merged.kind}"] = merged.weight
        found.add(f"merge {merged.kind}", answered(merged.model, test))
