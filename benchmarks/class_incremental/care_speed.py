"""CaRE at many tasks: CLS-first evaluation against dense forms, in time and in memory.

    python benchmarks/class_incremental/care_speed.py --out benchmarks/results/care_speed.json

One block's mixture with random triplets and the shapes of ViT-B/16 (197 tokens, d = 768), in three forms that
give the same output:

* ``stacked``: every expert on every token, all outputs stacked, [B, T, S, d], then the gated sum. The
  released code does this, and then repeats the stack once per chosen router; we spare it that.
* ``two products``: every expert on every token, as one wide bottleneck whose hidden vector is gated: no
  stack, the same arithmetic.
* ``cls-first``: ours.

The forms take turns; a ratio is the median over rounds of CPU time. Memory is the peak of the process during
one forward above what it held before (resident size, Linux), each form in a process of its own.
"""

import argparse
import ctypes
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from moe_adapt.learners.care import CareBlock, CareOptions, Scope
from moe_adapt.manifest import collect

#: Parameters of glibc's mallopt.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3

Form = Callable[[CareBlock, Tensor, Scope], Tensor]


def make_block(tasks: int, width: int, classes: int) -> CareBlock:
    """Return a block with random frozen triplets."""
    torch.manual_seed(0)
    block = CareBlock(width, CareOptions()).eval()
    with torch.device("meta"):
        shapes = CareBlock(width, CareOptions(expert_init="fresh"))
        for _ in range(tasks):
            shapes.grow(classes)
        shapes.freeze()
    state = {
        name: value.new_full(value.shape, classes, device="cpu")
        if name.endswith("sizes")
        else 0.1 * torch.randn(value.shape, dtype=value.dtype)
        for name, value in shapes.state_dict().items()
    }
    block.load_state_dict(state)
    return block


def cls_first(block: CareBlock, x: Tensor, scope: Scope) -> Tensor:
    return block(x, x[:, 0], scope, 0)


def decided(block: CareBlock, row: Tensor, scope: Scope) -> Tensor:
    return block.decide(block.experts.normalized(row), block.experts.folded(), scope).gates


def shared(block: CareBlock, x: Tensor) -> Tensor:
    assert block.shared is not None
    return block.shared.folded().mix(block.shared.normalized(x), x.new_ones(len(x), 1), 1)


def two_products(block: CareBlock, x: Tensor, scope: Scope) -> Tensor:
    gates = decided(block, x[:, 0], scope)
    mixed = block.experts.folded().mix(block.experts.normalized(x), gates, scope.tasks)
    return mixed + shared(block, x)


def stacked(block: CareBlock, x: Tensor, scope: Scope) -> Tensor:
    folded, normal = block.experts.folded(), block.experts.normalized(x)
    outputs = torch.stack(
        [
            torch.relu(normal @ down.T + down_bias) @ up + up_bias
            for down, down_bias, up, up_bias in zip(*folded, strict=True)
        ],
        dim=1,
    )
    gates = decided(block, x[:, 0], scope)
    return (outputs * gates[:, :, None, None]).sum(dim=1) + shared(block, x)


FORMS: dict[str, Form] = {"stacked": stacked, "two products": two_products, "cls-first": cls_first}


@torch.inference_mode()
def measure(tasks: int, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return seconds and ratios per form at a number of tasks."""
    block, scope = make_block(tasks, args.width, args.classes), Scope(tasks, forced=False)
    x = torch.randn(args.batch, args.tokens, args.width)
    outputs = {name: form(block, x, scope) for name, form in FORMS.items()}
    scale = outputs["stacked"].abs().max()
    for name, output in outputs.items():
        difference = float((output - outputs["stacked"]).abs().max() / scale)
        assert difference < 1e-5, f"{name} differs by {difference:.1e} of the largest output"
    del outputs
    seconds: dict[str, list[float]] = {name: [] for name in FORMS}
    for _ in track(range(args.rounds), description=f"{tasks} tasks"):
        for name, form in FORMS.items():
            start = time.process_time()
            form(block, x, scope)
            seconds[name].append(time.process_time() - start)
    ours = seconds["cls-first"]
    return {
        name: {
            "seconds_median": statistics.median(values),
            "times_slower": statistics.median(v / o for v, o in zip(values, ours, strict=True)),
        }
        for name, values in seconds.items()
    }


@torch.inference_mode()
def peak(name: str, block: CareBlock, scope: Scope, x: Tensor, found: Any) -> None:
    """Put into `found` how many bytes one forward holds at most above what the process held before it."""
    libc = ctypes.CDLL(None)
    # Every tensor of some size is mapped and unmapped on its own, so that freed memory hides no peak.
    libc.mallopt(M_MMAP_THRESHOLD, 65536)
    libc.mallopt(M_TRIM_THRESHOLD, 0)
    FORMS[name](block, x[:1, :2], scope)
    libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again at what is held now
    before = status("VmHWM")
    FORMS[name](block, x, scope)
    found.put(status("VmHWM") - before)


def status(key: str) -> int:
    """Return a size from what Linux says of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])


def peak_in_own_process(name: str, tasks: int, args: argparse.Namespace) -> int:
    block, scope = make_block(tasks, args.width, args.classes), Scope(tasks, forced=False)
    x = torch.randn(args.batch, args.tokens, args.width)
    block.experts.folded()
    context = multiprocessing.get_context("fork")
    found = context.SimpleQueue()
    process = context.Process(target=peak, args=(name, block, scope, x, found))
    process.start()
    process.join()
    assert process.exitcode == 0, f"measuring the memory of {name} failed"
    return found.get()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=int, nargs="+", default=[10, 100, 301], help="numbers of tasks")
    parser.add_argument("--width", type=int, default=768, help="features per token")
    parser.add_argument("--tokens", type=int, default=197, help="tokens per sample")
    parser.add_argument("--classes", type=int, default=3, help="classes per task")
    parser.add_argument("--batch", type=int, default=4, help="samples per forward")
    parser.add_argument("--rounds", type=int, default=5, help="rounds")
    parser.add_argument("--out", type=Path, help="where to write the result as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for tasks in args.tasks:
        times = measure(tasks, args)
        for name in FORMS:
            rows.append(
                {
                    "tasks": tasks,
                    "form": name,
                    **times[name],
                    "peak_bytes": peak_in_own_process(name, tasks, args),
                }
            )
    table = Table("tasks", "form", "CPU s", "times cls-first", "peak MiB")
    for row in rows:
        mib = f"{row['peak_bytes'] / 2**20:.0f}"
        table.add_row(
            str(row["tasks"]), row["form"], f"{row['seconds_median']:.3f}", f"{row['times_slower']:.1f}", mib
        )
    Console().print(table)
    if args.out:
        settings = {key: value for key, value in vars(args).items() if key != "out"}
        manifest = collect() | {"command": "care_speed.py --out FILE"}
        args.out.write_text(
            json.dumps({"manifest": manifest, "settings": settings, "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
