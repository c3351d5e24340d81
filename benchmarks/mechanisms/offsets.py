"""Another routing without another weight: offsets fitted to the first half of a text, and steering."""

import argparse
from typing import Any

import torch
from frame import Experiment, Found
from language import DOMAINS, next_token_loss, routed_language, windows

from moe_adapt.evaluation.trace.contrast import expert_contrast
from moe_adapt.evaluation.trace.record import RoutingTrace
from moe_adapt.tuner.offsets import fit_offsets, routing_offsets, steering_offsets
from moe_adapt.tuner.tracing import TraceRecorder

SETTINGS = {"characters": 400_000, "length": 128, "steps": 400, "lr": 5e-3, "texts": 8}


def rewired(seed: int, args: argparse.Namespace) -> Found:
    """Fit offsets to first halves, and measure the loss of second halves."""
    model, half = _model(seed, args), args.length // 2
    found: Found = {}
    texts = {domain: _drawn(domain, seed, args) for domain in DOMAINS}
    other = dict(zip(texts, reversed(texts.values()), strict=True))
    for label, steps, own in (
        ("as trained", 0, True),
        ("5 steps on the first half", 5, True),
        ("20 steps on the first half", 20, True),
        ("20 steps on a text of the other kind", 20, False),
    ):
        losses: dict[str, list[float]] = {"first": [], "second": []}
        for domain, rows in texts.items():
            for number, ids in enumerate(rows):
                prompt = (ids if own else other[domain][number])[None, :half]
                offsets = fit_offsets(
                    model.base_model, lambda prompt=prompt: next_token_loss(model, prompt), steps
                )
                with torch.inference_mode(), routing_offsets(model.base_model, offsets):
                    losses["first"].append(float(next_token_loss(model, ids[None, :half])))
                    losses["second"].append(float(next_token_loss(model, ids[None], half - 1)))
        found[label] = {name: sum(values) / len(values) for name, values in losses.items()}
    return found


def steering(seed: int, args: argparse.Namespace) -> Found:
    """Steer towards the experts that training texts of the same or of the other kind use more."""
    model = _model(seed, args)
    traces = [_trace(model, windows(domain, args, test=False)[: args.texts]) for domain in DOMAINS]
    contrast = expert_contrast(*traces)
    found: Found = {}
    for label, strength in (
        ("as trained", 0.0),
        ("towards its own kind, 0.5", 0.5),
        ("towards its own kind, 1", 1.0),
        ("towards the other kind, 0.5", -0.5),
        ("towards the other kind, 1", -1.0),
    ):
        row: dict[str, float | None] = {}
        for sign, domain in zip((1, -1), DOMAINS, strict=True):
            offsets = steering_offsets(contrast, sign * strength)
            with torch.inference_mode(), routing_offsets(model.base_model, offsets):
                row[domain] = float(next_token_loss(model, _drawn(domain, seed, args)))
        found[label] = row | {"mean": sum(value or 0.0 for value in row.values()) / len(row)}
    return found


def _model(seed: int, args: argparse.Namespace) -> Any:
    return routed_language(seed, args).model


def _drawn(domain: str, seed: int, args: argparse.Namespace) -> torch.Tensor:
    rows = windows(domain, args, test=True)
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[: args.texts]]


def _trace(model: Any, ids: torch.Tensor) -> RoutingTrace:
    recorder = TraceRecorder(model.base_model)
    with torch.inference_mode(), recorder.forward(ids, torch.ones_like(ids)):
        model(input_ids=ids)
    return recorder.trace()


MODEL = (
    "A Llama of 260 thousand parameters trained on stories, top-k with 8 experts of rank 8 on its "
    "feed-forward layers, 400 steps on plays (Shakespeare) and articles (WikiText-2). "
)
EXPERIMENTS = {
    "rewired": Experiment(
        title="Offsets fitted at test time (Rewiring Experts)",
        text=MODEL
        + "For each of 8 held-out texts of each kind, offsets of the router's logits are fitted to its "
        "first 64 tokens. Next-token loss of these, and of the 64 after them, in nats.",
        measure=rewired,
        heads={"first": "first half", "second": "second half"},
        settings=SETTINGS,
        baseline="as trained",
        judged="second",
    ),
    "steering": Experiment(
        title="Steering between two kinds of text (Multilingual routing)",
        text=MODEL + "Offsets are the log-ratio of the experts' use on training texts of both kinds, times a "
        "strength. Next-token loss of 40 held-out texts of each kind, in nats.",
        measure=steering,
        heads={"plays": "plays", "articles": "articles", "mean": "mean"},
        settings=SETTINGS | {"texts": 40},
        baseline="as trained",
        judged="mean",
    ),
}
