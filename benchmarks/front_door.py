"""Processor time until something happens: `--version`, `list`, `--help`, the first training step of `fit`.

The first step is set against a program that only imports transformers, lightning and peft and loads the same
model and tokenizer. It is measured at the end of the first batch of the documented command, with the head's
linear probe (the default) and without. Processor time of the whole process, one thread, median of the rounds;
ratios are of one round each. The page cache is warm.

    python benchmarks/front_door.py --out benchmarks/results/front_door.json
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from moe_adapt.data.packages import local_model
from moe_adapt.manifest import collect

PROGRAM = "import sys; from moe_adapt.cli import main; sys.exit(main())"
STOP = """
import os, resource
import lightning as L


class FirstStep(L.Callback):
    def on_train_batch_end(self, *args):
        used = resource.getrusage(resource.RUSAGE_SELF)
        print("CPU", used.ru_utime + used.ru_stime, flush=True)
        os._exit(0)
"""
PLAIN = """
import resource, sys
import lightning, peft
from transformers import AutoModel, AutoTokenizer
AutoModel.from_pretrained(sys.argv[1]); AutoTokenizer.from_pretrained(sys.argv[1])
used = resource.getrusage(resource.RUSAGE_SELF)
print("CPU", used.ru_utime + used.ru_stime)
"""
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def run(words: list[str], folder: Path) -> tuple[float, str]:
    """Return the processor seconds of a child and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        words, cwd=folder, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stderr}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def told(text: str) -> float:
    """Return what a program said it used."""
    return float(next(line for line in text.splitlines() if line.startswith("CPU")).split()[1])


def first_step(folder: Path, number: int, start: str) -> float:
    words = [sys.executable, "-c", PROGRAM, "fit", "--config", "base", "--config"]
    words += ["task/sequence_classification", "--config", "routed_lora/dynmole", "--model.backbone", "minilm"]
    words += ["--custom_modules", "stop.py", "--trainer.callbacks+=FirstStep", "--trainer.accelerator", "cpu"]
    words += ["--data.train", "rows.jsonl", "--head_start.kind", start, "--out", f"{start}{number}"]
    return told(run(words, folder)[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "stop.py").write_text(STOP, encoding="utf-8")
        rows = [{"text": f"row number {i} of a class", "label": f"class {i % 3}"} for i in range(60)]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for number in range(options.rounds):
            for word in ("--version", "--help", "list", "fit --help"):
                seconds = run([sys.executable, "-c", PROGRAM, *word.split()], folder)[0]
                found.setdefault(word, []).append(seconds)
            plain = run([sys.executable, "-c", PLAIN, local_model("minilm")], folder)[1]
            found.setdefault("imports and model", []).append(told(plain))
            for start in ("random", "probe"):
                name = f"first step of fit, head {start}"
                found.setdefault(name, []).append(first_step(folder, number, start))
    medians = {name: round(statistics.median(values), 3) for name, values in found.items()}
    ratios = {
        start: [
            step / base
            for step, base in zip(
                found[f"first step of fit, head {start}"], found["imports and model"], strict=True
            )
        ]
        for start in ("random", "probe")
    }
    content = {
        "manifest": collect(),
        "rounds": options.rounds,
        "cpu_seconds": medians,
        "all": {name: [round(value, 3) for value in values] for name, values in found.items()},
        "first_step_over_imports_and_model": {
            start: {"median": round(statistics.median(values), 3), "all": [round(v, 3) for v in values]}
            for start, values in ratios.items()
        },
    }
    options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: value for key, value in content.items() if key != "manifest"}, indent=1))


if __name__ == "__main__":
    main()
