"""How far routing and accuracy move when a text is changed a little: typos, capitals, a sentence after it."""

import argparse

from frame import Experiment, Found, base, loaded
from tasks import mixture

from moe_adapt.serving.classify import Classifying
from moe_adapt.serving.robustness import text_shifts


def measure(seed: int, args: argparse.Namespace) -> Found:
    """Change the test rows in every way."""
    rows = mixture(args.data, args.train, args.test)["test"]
    tensors, data = base(seed, args)
    answering = {
        "task": "text-classification",
        "class_names": data.class_names,
        "text_columns": ["text"],
        "max_length": args.max_length,
    }
    module = loaded(tensors, data, seed, args)
    shifts = text_shifts(Classifying(module.model, answering, str(args.backbone), "default"), rows, seed)
    return {
        change: {"shift": shift.shift, "same": shift.same, "accuracy": shift.accuracy}
        for change, shift in shifts.items()
    }


EXPERIMENTS = {
    "perturbed": Experiment(
        title="Shift of the routing against loss of accuracy (Misrouter, RouteHijack: trace --shift)",
        text="Top-k with 8 experts, two epochs on the mixture (MiniLM, whose tokenizer ignores capitals). "
        "*shift* is the divergence of a row's routing before and after the change, in nats.",
        measure=measure,
        heads={
            "shift": "shift of the routing",
            "same": "same answer",
            "accuracy": "accuracy",
        },
        baseline="none",
    )
}
