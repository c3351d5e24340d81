"""RanPAC on a stream of 300 tasks over kept features: learning, lambda, solving and testing after every task.

    python benchmarks/class_incremental/ranpac_speed.py --out benchmarks/results/ranpac_speed.json

The features are random Gaussian classes (time does not depend on them; no accuracy is claimed).
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from moe_adapt.backbones import Encoder
from moe_adapt.learners import RanPac
from moe_adapt.manifest import collect
from moe_adapt.streams.arrays import ArrayStream
from moe_adapt.training.stream import StreamRunner


class Kept(Encoder):
    """Stands for the encoder that made the features."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Identity(), "kept features", width)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the features in the batch."""
        return batch["features"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=int, default=300)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=20000, help="training samples in all")
    parser.add_argument("--test", type=int, default=4000, help="test samples in all")
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--proj_dim", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="where to write the result as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((args.classes, args.width), dtype=np.float32)
    arrays = {}
    for split, count in (("train", args.samples), ("test", args.test)):
        labels = np.arange(count) % args.classes
        arrays[f"y_{split}"] = labels
        noise = rng.standard_normal((count, args.width), dtype=np.float32)
        arrays[f"x_{split}"] = centres[labels] + 2 * noise
    increment = args.classes // args.tasks
    stream = ArrayStream(arrays, increment=increment, first=args.classes - increment * (args.tasks - 1))
    learner = RanPac(Kept(args.width), proj_dim=args.proj_dim)
    wall, cpu = time.perf_counter(), time.process_time()
    result = StreamRunner().run(learner, stream)
    row = {
        "tasks": len(stream),
        "wall_seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "learn_seconds": sum(task["seconds"]["learn"] for task in result.tasks),
        "test_seconds": sum(task["seconds"]["evaluate"] for task in result.tasks),
        "statistics_bytes": learner.head.statistics_bytes(),
    }
    print(json.dumps(row))
    if args.out:
        settings = {key: value for key, value in vars(args).items() if key != "out"}
        manifest = collect() | {"command": "ranpac_speed.py --out FILE"}
        report = {"manifest": manifest, "settings": settings, "result": row}
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
