"""Three tasks on BBC news for adapters that are trained apart: headlines, openings and closings.

Each desk reads another part of an article, and no article serves two desks. All sort into the same five
topics, but every desk calls them by the same five words in an order of its own. So the texts and topics are
real, the words are arbitrary: only the right adapter knows what a desk means, and the base cannot guess.
"""

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moe_adapt.data.packages import BBC_NEWS, package_folder
from moe_adapt.errors import UserError

__all__ = ["CODES", "DESKS", "Desk", "draw_desks", "load_stories", "read_stories"]

#: Names of the desks, and which paragraph of an article each reads.
DESKS = {"headlines": 0, "openings": 1, "closings": -1}

#: What the desks call the topics.
CODES = ("amber", "birch", "cobalt", "dune", "ember")

#: Topic and paragraphs of an article.
Story = tuple[str, tuple[str, ...]]
Rows = list[dict[str, str]]


@dataclass(frozen=True)
class Desk:
    """The rows of one desk, with the keys text and label.

    Attributes:
        name: Its name.
        meaning: The word for each topic.
        train: Rows to train on; the router sees their texts.
        validation: Rows that choices are made on.
        test: Rows that nothing is chosen on.
    """

    name: str
    meaning: dict[str, str]
    train: Rows
    validation: Rows
    test: Rows

    def write(self, folder: Path) -> None:
        """Write the rows as ``<name>_<split>.jsonl``."""
        folder.mkdir(parents=True, exist_ok=True)
        for split in ("train", "validation", "test"):
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in getattr(self, split)]
            (folder / f"{self.name}_{split}.jsonl").write_text("".join(lines), encoding="utf-8")


def load_stories() -> list[Story]:
    """Read the articles of the installed package, without repetitions."""
    return read_stories(package_folder(*BBC_NEWS))


def read_stories(folder: Path) -> list[Story]:
    """Read ``<topic>/<number>.txt`` below `folder`, in order: topic and paragraphs, headline first.

    Articles of fewer than four paragraphs are left out, and those that share a part that desks read with an
    earlier one.

    Args:
        folder: Folder with one sub-folder per topic.
    """
    found: list[Story] = []
    seen: set[bytes] = set()
    for path in sorted(folder.glob("*/*.txt")):
        text = path.read_bytes().replace(b"\xc2\xa3", b"\xa3").decode("latin-1")
        parts = tuple(" ".join(line.split()) for line in text.splitlines() if line.strip())
        if len(parts) < 4:
            continue
        keys = {hashlib.sha256(parts[place].lower().encode()).digest() for place in DESKS.values()}
        if not keys & seen:
            found.append((path.parent.name, parts))
        seen |= keys
    return found


def draw_desks(
    stories: Sequence[Story], train: int, validation: int, test: int, seed: int
) -> dict[str, Desk]:
    """Draw the desks' rows, as many of each topic, and their words.

    Args:
        stories: The articles.
        train: Training rows per topic and desk.
        validation: Validation rows per topic and desk.
        test: Test rows per topic and desk.
        seed: Decides both draws.

    Raises:
        UserError: If a topic has too few articles, or there are not as many topics as words.

    >>> stories = [(t, tuple(f"{part} {t} {i}" for part in "abcd")) for t in "vwxyz" for i in range(9)]
    >>> desks = draw_desks(stories, 1, 1, 1, seed=0)
    >>> {name: (len(desk.train), len(desk.test)) for name, desk in desks.items()}
    {'headlines': (5, 5), 'openings': (5, 5), 'closings': (5, 5)}
    """
    topics = sorted({topic for topic, _ in stories})
    if len(topics) != len(CODES):
        raise UserError(f"the desks have {len(CODES)} words for topics, and there are {len(topics)} topics.")
    rng = random.Random(seed)
    each = train + validation + test
    pools = {}
    for topic in topics:
        own = [parts for name, parts in stories if name == topic]
        if len(own) < each * len(DESKS):
            raise UserError(
                f"the topic {topic!r} has {len(own)} articles, {each * len(DESKS)} are needed; ask for fewer."
            )
        pools[topic] = rng.sample(own, each * len(DESKS))
    first = rng.sample(CODES, len(CODES))
    desks = {}
    for number, (name, place) in enumerate(DESKS.items()):
        shift = number + 1  # a rotation: no two desks agree on any topic
        meaning = {topic: first[(i + shift) % len(first)] for i, topic in enumerate(topics)}
        splits: list[Rows] = [[], [], []]
        for topic in topics:
            own = pools[topic][number * each : (number + 1) * each]
            rows = [{"text": parts[place], "label": meaning[topic]} for parts in own]
            for split, start, stop in zip(
                splits, (0, train, train + validation), (train, train + validation, each), strict=True
            ):
                split += rows[start:stop]
        for split in splits:
            rng.shuffle(split)
        desks[name] = Desk(name, meaning, *splits)
    return desks
