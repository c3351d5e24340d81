"""How far routing and answers agree when the frozen base is rounded."""

import argparse

import torch
from frame import Experiment, Found, base, loaded
from language import DOMAINS, routed_language, windows
from offsets import SETTINGS

from moe_adapt.evaluation.trace.precision import PRECISIONS, Agreement
from moe_adapt.training.precision import compare_precisions

HEADS = {
    "first": "same first expert",
    "same_set": "same experts",
    "routing_js": "divergence of routing",
    "answers": "same answer",
    "answer_kl": "divergence of answers",
}


def encoder(seed: int, args: argparse.Namespace) -> Found:
    """Round MiniLM."""
    tensors, data = base(seed, args)
    batches = list(data.test_dataloader())
    return _rows(compare_precisions(loaded(tensors, data, seed, args), batches, PRECISIONS))


def language(seed: int, args: argparse.Namespace) -> Found:
    """Round the small language model."""
    rows = torch.cat([windows(domain, args, test=True)[: args.texts] for domain in DOMAINS])
    batches = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in rows.split(20)]
    return _rows(compare_precisions(routed_language(seed, args), batches, PRECISIONS))


def _rows(found: dict[str, Agreement]) -> Found:
    return {name: dict(own.row()) for name, own in found.items()}


TEXT = (
    " Arithmetic stays fp32; shares of tokens, mean over layers; divergences in nats, to the base as it is "
    "(EAQuant's question, without its calibration)."
)
EXPERIMENTS = {
    "precision": Experiment(
        title="Precisions of the base: MiniLM (EAQuant: trace --dtype)",
        text="Top-k with 8 experts, two epochs on the mixture, test rows." + TEXT,
        measure=encoder,
        heads=HEADS,
    ),
    "precision_language": Experiment(
        title="Precisions of the base: a language model of 260 thousand parameters",
        text="The adapter of the offsets below, held-out texts of both kinds; answers are next tokens."
        + TEXT,
        measure=language,
        heads=HEADS,
        settings=SETTINGS | {"texts": 12},
    ),
}
