"""Forget one of five tasks of texts, with and without the guard of the routers."""

import argparse
from typing import Any

from frame import MIXTURE, Experiment, Found, base, loaded
from tasks import mixture

from moe_adapt.runs.unlearn import unlearn
from moe_adapt.training.datamodules import TextClassificationData
from moe_adapt.training.procedures import Unlearn

TASK = "clinc"


def texts(
    args: argparse.Namespace, names: list[str], part: str, rows: Any, **options: Any
) -> TextClassificationData:
    """Return rows as the training or the test part of a data module with given classes."""
    data = TextClassificationData(
        str(args.backbone),
        class_names=names,
        validation_fraction=0.0,
        max_length=args.max_length,
        batch_size=args.batch,
        **{part: rows},
        **options,
    )
    data.setup("fit" if part == "train" else "test")
    return data


def measure(seed: int, args: argparse.Namespace) -> Found:
    """Forget the training rows of one task, retain those of the others, and judge on test rows of both."""
    rows = mixture(args.data, args.train, args.test)
    tensors, data = base(seed, args)
    split = {
        name: [[row for row in rows[name] if (row["task"] == TASK) == gone] for gone in (True, False)]
        for name in rows
    }
    gone, kept = split["train"]
    both = [row | {"part": "forget"} for row in gone] + [row | {"part": "retain"} for row in kept]
    judged = {"forget": gone, "retain": split["test"][1], "unseen": split["test"][0]}
    found: Found = {}
    for label, guard in (("routers guarded (GRIP)", True), ("routers free", False)):
        module = loaded(tensors, data, seed, args)
        module.schedule, module.warmup = "constant", 0.0
        parts = {part: texts(args, data.class_names, "test", own) for part, own in judged.items()}
        training = texts(args, data.class_names, "train", both, domain_column="part", seed=seed)
        procedure = Unlearn("forget", guard=guard, max_inputs=args.max_inputs)
        report = unlearn(module, training, parts, procedure, args.passes, seed)
        if "before unlearning" not in found:
            found["before unlearning"] = {part: report[part]["accuracy"]["before"] for part in judged} | {
                "attack": report["membership"]["before"],
                "inputs": 1.0,
                "stability": 1.0,
            }
        found[label] = {part: report[part]["accuracy"]["after"] for part in judged} | {
            "attack": report["membership"]["after"],
            "inputs": report["stability"]["inputs"],
            "stability": report["stability"]["model"],
        }
    return found


EXPERIMENTS = {
    "unlearning": Experiment(
        title="One of five tasks unlearned (GRIP)",
        text="Top-k with 8 experts, two epochs on the mixture (MiniLM); then one pass that ascends on the "
        "training rows of CLINC150 and descends on those of the other tasks. *to forget* are those "
        "training rows, *unseen* test rows of CLINC150, *to retain* test rows of the others. *attack*: "
        "area under the curve of a membership attack by loss (0.5 knows nothing).",
        measure=measure,
        heads={
            "forget": "accuracy, to forget",
            "unseen": "accuracy, unseen",
            "retain": "accuracy, to retain",
            "attack": "attack",
            "inputs": "selections kept, inputs as they were",
            "stability": "selections kept, model as it runs",
        },
        settings=MIXTURE | {"passes": 1, "max_inputs": 128},
        baseline="routers free",
        judged="retain",
    )
}
