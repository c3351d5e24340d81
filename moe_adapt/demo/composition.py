"""The demo: three adapters trained apart, composed, compared, one removed, all of it opened again."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from moe_adapt.demo.adapters import Training, train_adapter, word_vectors
from moe_adapt.demo.desks import Desk, draw_desks, load_stories
from moe_adapt.demo.reload import fresh_process
from moe_adapt.demo.removal import Removal, accuracy_by_desk, judge_removal, read
from moe_adapt.errors import UserError
from moe_adapt.hub import compose
from moe_adapt.hub.composition import ComposeReport, Evaluation, evaluate, remove_adapter

__all__ = ["ADAPTERS", "COMPOSED", "REMOVED", "Sizes", "Story", "tell"]

#: Folders below the demo's: the adapters, the composed one, and the composed one without one of them.
ADAPTERS, COMPOSED, WITHOUT = "adapters", "composed", "composed-without-{}"

#: The adapter that is taken out again: its texts look least like the others'.
REMOVED = "headlines"


@dataclass(frozen=True)
class Sizes:
    """How large everything is.

    Attributes:
        train: Training rows per topic and desk.
        validation: Validation rows per topic and desk; they choose merges' weights and the best single one.
        test: Test rows per topic and desk.
        abstain: Share of a desk's own texts that may be left to the base.
        seed: Decides rows, words, initial values and order.
        training: How adapters are trained.
    """

    train: int = 30
    validation: int = 5
    test: int = 16
    abstain: float = 0.05
    seed: int = 0
    training: Training = field(default_factory=Training)


@dataclass(frozen=True)
class Story:
    """What was found.

    Attributes:
        desks: The tasks.
        composed: What was composed.
        found: Accuracies and routes of the composed adapter.
        without: Accuracy by desk after the removal.
        removal: What the removal did to every row.
        difference: Largest difference of an output in a fresh process; zero.
        seconds: Wall time by step.
    """

    desks: dict[str, Desk]
    composed: ComposeReport
    found: Evaluation
    without: dict[str, float]
    removal: Removal
    difference: float
    seconds: dict[str, float]


def tell(backbone: str, out: Path, sizes: Sizes, say: Callable[[str], None]) -> Story:
    """Train, compose, evaluate, remove and open again, below `out`.

    Args:
        backbone: Folder of the base model.
        out: An empty folder.
        sizes: How large everything is.
        say: Gets a line about every step.

    Raises:
        UserError: If the data are too few, or something that has to be exact is not.
    """
    seconds: dict[str, float] = {}
    clock = time.perf_counter()

    def done(step: str) -> None:
        nonlocal clock
        seconds[step] = round(time.perf_counter() - clock, 1)
        clock = time.perf_counter()

    desks = draw_desks(load_stories(), sizes.train, sizes.validation, sizes.test, sizes.seed)
    for name, desk in desks.items():
        say(f"train an adapter on {len(desk.train)} {name}")
        desk.write(out / "data")
        train_adapter(backbone, desk.train, out / ADAPTERS / name, sizes.training, sizes.seed)
    done("train")
    length = sizes.training.max_length
    say("compose them")
    report = compose(
        {name: str(out / ADAPTERS / name) for name in desks},
        {name: [row["text"] for row in desk.train] for name, desk in desks.items()},
        out / COMPOSED,
        backbone=backbone,
        layer=3,
        abstain=sizes.abstain,
        max_length=length,
    )
    done("compose")
    rows = {name: [*desk.validation, *desk.test] for name, desk in desks.items()}
    share = sizes.validation / (sizes.validation + sizes.test)
    found = evaluate(out / COMPOSED, rows, validation=share, say=say)
    done("evaluate")

    say(f"remove {REMOVED}")
    folder = out / WITHOUT.format(REMOVED)
    shutil.copytree(out / COMPOSED, folder)
    remove_adapter(folder, REMOVED)
    owners = [name for name, desk in desks.items() for _ in desk.test]
    texts = [row["text"] for desk in desks.values() for row in desk.test]
    before = read(out / COMPOSED, backbone, texts, length)
    after = read(folder, backbone, texts, length)
    removal = judge_removal(before, after, owners, REMOVED)
    labels = [row["label"] for desk in desks.values() for row in desk.test]
    without = accuracy_by_desk(after.outputs, owners, labels, word_vectors(backbone, length))
    done("remove")
    say("open it in a fresh process")
    difference = max(
        fresh_process("moe_adapt.demo.reopen", path, backbone, readings.probe)
        for path, readings in ((out / COMPOSED, before), (folder, after))
    )
    if difference:
        raise UserError(f"opened in a fresh process, outputs differ by {difference:.1e}; none is allowed.")
    done("open again")
    return Story(desks, report, found, without, removal, difference, seconds)
