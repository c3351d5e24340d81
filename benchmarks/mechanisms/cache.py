"""A cache of adapters: how often one is loaded, by LRU, with the waiting queue known, and with all known."""

import argparse
import random

from frame import Experiment, Found

from moe_adapt.serving.adapter_cache import loads

ADAPTERS = 30


def measure(seed: int, args: argparse.Namespace) -> Found:
    """Count the loads of requests that follow Zipf's law, the adapters in random order."""
    draw = random.Random(seed)
    names = [f"adapter {place}" for place in draw.sample(range(ADAPTERS), ADAPTERS)]
    weights = [1 / (rank + 1) ** args.exponent for rank in range(ADAPTERS)]
    requests = draw.choices(names, weights, k=args.requests)
    found: Found = {}
    for label, ahead in {
        "LRU": 0,
        "queue of 8 known": 8,
        "queue of 64 known": 64,
        "all known (Belady)": args.requests,
    }.items():
        share = {f"size_{size}": loads(requests, size, ahead) / len(requests) for size in (3, 6, 12)}
        found[label] = dict(share)
    found["no cache"] = {f"size_{size}": 1.0 for size in (3, 6, 12)}
    return found


EXPERIMENTS = {
    "cache": Experiment(
        title="Adapter cache: 30 adapters, Zipf requests (ExpertFlow)",
        text="Share of requests for which an adapter has to be loaded, if 3, 6 or 12 of 30 fit. A "
        "simulation: requests are drawn by Zipf's law with exponent 1, one after the other.",
        measure=measure,
        heads={"size_3": "3 fit", "size_6": "6 fit", "size_12": "12 fit"},
        settings={"requests": 2000, "exponent": 1.0},
    )
}
