"""BBC news: 2,225 articles of 2004 and 2005 in five classes, and a small training split drawn by seed.

The files are UTF-8, but for one that is Latin-1; the pound sign is the only character beyond ASCII, so both
read right after one replacement. A hundred articles occur twice, and a few more share their opening. The
model sees openings only, so articles count as the same if their first 200 characters agree, and one is kept.
"""

import hashlib
import random
from pathlib import Path

from moe_adapt.data.packages import BBC_NEWS, package_folder
from moe_adapt.errors import UserError

__all__ = ["Row", "few_shot_split", "load_bbc_news", "read_articles"]

#: One text and the name of its class.
Row = dict[str, str]

_OPENING = 200


def load_bbc_news() -> list[Row]:
    """Read the articles of the installed package, without repetitions."""
    return read_articles(package_folder(*BBC_NEWS))


def read_articles(folder: Path) -> list[Row]:
    """Read ``<class>/<number>.txt`` below `folder`, in order, one article per opening.

    Args:
        folder: Folder with one sub-folder per class.

    Returns:
        Rows with the keys text (white space collapsed) and label.
    """
    rows: dict[str, Row] = {}
    for path in sorted(folder.glob("*/*.txt")):
        text = " ".join(path.read_bytes().replace(b"\xc2\xa3", b"\xa3").decode("latin-1").split())
        key = hashlib.sha256(text[:_OPENING].lower().encode()).hexdigest()
        rows.setdefault(key, {"text": text, "label": path.parent.name})
    return list(rows.values())


def few_shot_split(
    rows: list[Row], per_class: int, test_per_class: int, seed: int
) -> tuple[list[Row], list[Row]]:
    """Draw disjoint training and test rows, the same number from each class.

    Args:
        rows: All rows, none twice.
        per_class: Training rows of each class.
        test_per_class: Test rows of each class.
        seed: Decides the draw.

    Raises:
        UserError: If a class has too few rows.

    >>> rows = [{"text": str(i), "label": "ab"[i % 2]} for i in range(8)]
    >>> train, test = few_shot_split(rows, per_class=1, test_per_class=3, seed=0)
    >>> len(train), len(test), {row["text"] for row in train} & {row["text"] for row in test}
    (2, 6, set())
    """
    shuffled = random.Random(seed).sample(rows, len(rows))
    train: list[Row] = []
    test: list[Row] = []
    for label in sorted({row["label"] for row in rows}):
        own = [row for row in shuffled if row["label"] == label]
        if len(own) < per_class + test_per_class:
            raise UserError(
                f"the class {label!r} has {len(own)} articles, {per_class} + {test_per_class} are needed; "
                "ask for fewer."
            )
        train += own[:per_class]
        test += own[per_class : per_class + test_per_class]
    return train, test
