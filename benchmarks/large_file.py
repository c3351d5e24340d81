"""How much memory does training on a file larger than memory take?

    MOE_ADAPT_DATA=DIR python benchmarks/large_file.py --gigabytes 5

Writes synthetic JSON lines of prompts and responses, then trains a small language model on them in a process
of its own with ``on_disk``, over both passes: writing the Arrow file, and taking batches in random order. The
peak is that process's largest resident memory (VmHWM), which counts the mapped pages of the file as well, and
its largest private memory (RssAnon). The model is stories260k with an adapter, so nearly all of it is Python,
torch and the rows. A second process ends itself without warning in the middle, a third one goes on from its
last checkpoint: the trained tensors have to be those of the first. The file and the folder are deleted at the
end.
"""

import argparse
import hashlib
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


def train(path: str, folder: str, steps: int, part: str, out: Any) -> None:
    """Train and put the peaks and a hash of the trained tensors into a queue.

    Args:
        path: The rows.
        folder: Where the Arrow file and the checkpoints are.
        steps: Steps of a whole run.
        part: ``whole``, ``killed`` (in the middle) or ``resumed``.
        out: The queue.
    """
    import lightning as L
    import torch

    from moe_adapt.training.callbacks import LastCheckpoint
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

    class Kill(L.Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            if part == "killed" and args[-1] > steps // 2:
                os._exit(1)

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
    torch.manual_seed(0)
    module = CausalLM(model, tuner=RoutedLoraConfig(method="top_k", target_modules="ffn"), lr=1e-3)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        limit_val_batches=5,
        logger=False,
        callbacks=[LastCheckpoint(every_n_train_steps=max(1, steps // 4)), Kill()],
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=f"{folder}/{'whole' if part == 'whole' else 'parts'}",
    )
    last = f"{folder}/parts/checkpoints/last.ckpt" if part == "resumed" else None
    trainer.fit(module, data, ckpt_path=last)
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
            "tensors": hashed(module),
        }
    )


def hashed(module: Any) -> str:
    """Return a hash of the trained tensors."""
    found = hashlib.sha256()
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            found.update(name.encode() + parameter.detach().numpy().tobytes())
    return found.hexdigest()[:16]


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
        found: dict[str, dict[str, Any]] = {}
        for part in ("whole", "killed", "resumed"):
            queue = context.Queue()
            process = context.Process(
                target=train, args=(str(path), f"{folder}/disk", options.steps, part, queue)
            )
            process.start()
            if part != "killed":
                found[part] = queue.get()
            process.join()
        size = path.stat().st_size
    whole, resumed = found["whole"], found["resumed"]
    same = whole.pop("tensors") == resumed["tensors"]
    report = {
        "manifest": manifest.collect(),
        "file_bytes": size,
        "rows": rows,
        **whole,
        "resumed": {"same_tensors_bit_for_bit": same, "peak_resident_mb": resumed["peak_resident_mb"]},
    }
    RESULT.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
