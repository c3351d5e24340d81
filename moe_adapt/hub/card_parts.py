"""What a kind of learner contributes to its model card."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["CardParts"]


@dataclass(frozen=True)
class CardParts:
    """What the card of a learner tells beside results and provenance.

    Attributes:
        introduction: What it is, in a sentence or two; ``{size}`` stands for the number of its values.
        code: Python that opens it.
        settings: Arguments that it was made with, by name.
        base_model: Id of its base model on the Hub, if it has one.
        task: Its task in the Hub's words, if its kind has only one.
        tags: Tags on the Hub beside those of every learner.
        sections: More of the card, as Markdown.
        limits: Sentences for the list of limits.
    """

    introduction: str
    code: str
    settings: Mapping[str, Any]
    base_model: str | None = None
    task: str | None = None
    tags: Sequence[str] = ()
    sections: Sequence[str] = ()
    limits: Sequence[str] = ()
