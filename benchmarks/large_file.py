"""How much memory does training on a file larger than memory take?

    MOE_ADAPT_DATA=DIR python benchmarks/large_file.py --gigabytes 5

Writes synthetic JSON lines of prompts and responses, then trains a small language model on them in a process
of its own with ``on_disk``, over both passes: writing the Arrow file, and taking batches in random order. The
peak is that process's largest resident memory (VmHWM), which counts the mapped pages of the file as well, and
its largest private memory (RssAnon). The model is stories260k with an adapter, so nearly all of it is Python,
torch and the rows. The file and the folder are deleted at the end.
"""

import argparse
import json
import multiprocessing
import os
import random
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import Any

from moe_adapt import manifest

RESULT = Path(__file__).parent / "results" / "large_file.json"
WORDS = ("the", "a", "cat", "dog", "sun", "moon", "tree", "river", "walks", "sings", "finds", "old", "small")


def write_rows(path: Path, size: int) -> int:
    """Write rows of about a kilobyte until the file has `size` bytes; return how many."""
    rng = random.Random(0)
    passages = [" ".join(rng.choices(WORDS, k=90)) for _ in range(997)]
    rows, written = 0, 0
    with path.open("w", encoding="utf-8") as file:
        while written < size:
            text = passages[rows * 31 % len(passages)]
            row = {"prompt": f"Story {rows}: {text}", "response": f" {text[: 40 + rows % 300]}"}
            written += file.write(json.dumps(row) + "\n")
            rows += 1
    return rows


def memory(name: str) -> int:
    """Return a line of this process's memory in megabytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith(name))


def train(path: str, folder: str, steps: int, out: Any) -> None:
    """Train some steps and put the peaks into a queue."""
    import lightning as L
    import torch

    from moe_adapt.training.datamodules import CausalLMData
    from moe_adapt.training.modules import CausalLM
    from moe_adapt.tuner import RoutedLoraConfig

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    private: list[int] = [0]
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.2):
            private[0] = max(private[0], memory("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    before = memory("VmRSS")
    model = str(Path(os.environ["MOE_ADAPT_DATA"]) / "stories260k_hf")
    data = CausalLMData(
        model,
        train=path,
        prompt="{prompt}",
        response="{response}",
        max_length=256,
        too_long="truncate",
        batch_size=8,
        validation_fraction=0.001,
        on_disk=folder,
    )
    began = time.perf_counter()
    data.setup("fit")
    prepared = time.perf_counter() - began
    module = CausalLM(model, tuner=RoutedLoraConfig(method="top_k", target_modules="ffn"), lr=1e-3)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        limit_val_batches=5,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module, data)
    ended.set()
    watcher.join()
    out.put(
        {
            "training_rows": len(data.splits["train"]),
            "resident_mb_after_imports": before,
            "peak_resident_mb": memory("VmHWM"),
            "peak_private_mb": max(private[0], memory("RssAnon")),
            "seconds_to_write_arrow": round(prepared, 1),
            "steps": trainer.global_step,
        }
    )


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=5.0)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        rows = write_rows(path, int(options.gigabytes * 1e9))
        context = multiprocessing.get_context("spawn")
        queue = context.Queue()
        process = context.Process(target=train, args=(str(path), f"{folder}/disk", options.steps, queue))
        process.start()
        found = queue.get()
        process.join()
        size = path.stat().st_size
    report = {"manifest": manifest.collect(), "file_bytes": size, "rows": rows, **found}
    RESULT.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
