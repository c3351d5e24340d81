"""What was composed, in a few lines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moe_adapt.hub.composition.folder import Record
from moe_adapt.hub.composition.tokens import TOKEN_ROUTERS
from moe_adapt.routing.sample import LdaRouter

__all__ = ["ComposeReport", "examples_seen", "examples_told"]


def examples_seen(router: object, uid: str, labels: Sequence[str | None]) -> dict[str, int]:
    """Return how many examples of an expert a router saw, and how many classes it has by their labels.

    Args:
        router: Saw the examples.
        uid: The expert.
        labels: Label of each example.
    """
    told = {"examples": len(labels)}
    if isinstance(router, LdaRouter) and any(labels):
        told["classes"] = router.classes[uid]
    return told


def examples_told(entry: Mapping[str, Any]) -> str:
    """Return how many examples of an expert the router saw, and what their labels were good for.

    >>> examples_told({"examples": 32, "classes": 10}), examples_told({"examples": 32})
    ('32 examples of 10 classes', '32 examples')
    """
    classes, text = entry.get("classes"), f"{entry['examples']} examples"
    if classes is None:
        return text
    return f"{text} of {classes} classes" if classes > 1 else f"{text}, labels not used"


@dataclass(frozen=True)
class ComposeReport:
    """What was composed.

    Attributes:
        folder: The adapter's folder.
        record: What it is made of.
        parameters: Values in the adapter.
        left_out: Where each new expert's examples go if `lda` has not seen them; empty for other routers.
        hint: What to do about it, if there is something.
    """

    folder: Path
    record: Record
    parameters: int
    left_out: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    hint: str = ""

    def __str__(self) -> str:
        lines = [*map(self._where, self.left_out), *([self.hint] if self.hint else [])]
        return "\n".join([self._what(), *(f"  {line}" for line in lines)])

    def _where(self, uid: str) -> str:
        went = self.left_out[uid]
        others = ", ".join(f"{count} to {to}" for to, count in went.items() if to != uid)
        found = f"{uid}: of {sum(went.values())} examples left out, {went.get(uid, 0)} find it"
        return f"{found}; {others}" if others else found

    def _what(self) -> str:
        names = ", ".join(f"{uid} ({examples_told(e)})" for uid, e in self.record.experts.items())
        text = f"{self.folder}: {len(self.record.experts)} experts ({names}), {self.parameters:,} values"
        if self.record.router is None:
            return f"{text}; chosen by adapter_ids alone, the base answers where none is given"
        if self.record.router["name"] in TOKEN_ROUTERS:
            text += f"; router {self.record.router['name']} for every token and layer"
            return text + (f", prompts after block {self.record.block}" if self.record.block else "")
        text += f"; router {self.record.router['name']} after block {self.record.block}"
        if len(self.left_out) < 2:
            return text
        shares = [went.get(uid, 0) / sum(went.values()) for uid, went in self.left_out.items()]
        score = sum(shares) / len(shares)
        return text + f", {score:.1%} of the examples left out find their own expert"
