"""Accuracy after the adapter is taken off half of its layers: needed least, random, needed most."""

import argparse
import random

import torch
from compare import predict
from frame import MIXTURE, Experiment, Found, base, loaded
from tasks import mixture

from moe_adapt.training.datamodules import TextClassificationData
from moe_adapt.training.modules import SequenceClassifier
from moe_adapt.tuner.site_dropping import drop_sites, least_needed, site_necessity


def other_rows(data: TextClassificationData, args: argparse.Namespace) -> TextClassificationData:
    """Return training rows of the tasks that the adapter was not trained on, to choose layers by."""
    seen = {row["text"] for row in mixture(args.data, args.train, 1)["train"]}
    rows = [row for row in mixture(args.data, 2 * args.train, 1, seed=1)["train"] if row["text"] not in seen]
    chosen = random.Random(0).sample(rows, args.choosing)
    other = TextClassificationData(
        str(args.backbone),
        test=chosen,
        class_names=data.class_names,
        max_length=args.max_length,
        batch_size=50,
    )
    other.setup("test")
    return other


def measure(seed: int, args: argparse.Namespace) -> Found:
    """Drop half of the layers in three ways."""
    tensors, data = base(seed, args)
    module = loaded(tensors, data, seed, args)
    batches = list(other_rows(data, args).test_dataloader())

    def loss() -> float:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            return sum(float(module.task_loss(batch)) for batch in batches) / len(batches)

    assert module.tuner is not None
    necessity = site_necessity(module.tuner, loss)
    order = least_needed(necessity, 0.999)
    sites = sorted(necessity)
    half = len(sites) // 2
    drawn = random.Random(seed).sample(sites, half)
    rest = [site for site in sites if site not in set(order)]
    chosen = {
        "all layers": [],
        "without the half needed least": order[:half],
        "without a random half": drawn,
        "without the half needed most": [*rest, *reversed(order)][:half],
    }
    found: Found = {}
    for name, gone in chosen.items():
        changed = loaded(tensors, data, seed, args)
        drop_sites(changed.model, gone)
        found[name] = {"layers": float(len(sites) - len(gone)), "accuracy": predict(changed, data)["mean"]}
    found["no adapter, the trained head alone"] = {"layers": 0.0, "accuracy": _bare(module, data)}
    return found


def _bare(module: SequenceClassifier, data: TextClassificationData) -> float:
    assert module.tuner is not None
    module.tuner.disable_adapter_layers()
    return predict(module, data)["mean"]


EXPERIMENTS = {
    "sites": Experiment(
        title="Half of the layers dropped (Dr.LLM, export --drop_sites)",
        text="Top-k with 8 experts, two epochs on the mixture (MiniLM, 24 layers). How much a layer is "
        "needed is the growth of the loss without it on 60 rows that the adapter was not trained on, "
        "which are no test rows.",
        measure=measure,
        heads={"layers": "layers", "accuracy": "accuracy"},
        settings=MIXTURE | {"choosing": 60},
        baseline="all layers",
    )
}
