"""A whole round: fine-tune, learn a stream, publish, and load elsewhere with equal logits.

    python examples/tutorial.py --backbone sentence-transformers/all-MiniLM-L6-v2 --repo USER/NAME

Needs a login (`hf auth login`), since it pushes to two private repositories: the fine-tuned adapter to
USER/NAME, the learner of the stream to USER/NAME-stream. Three made-up classes of texts keep it short; put
your own rows into `train.jsonl` for anything else.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch

from moe_adapt.backbones import TextEncoder
from moe_adapt.cli import main as moe_adapt
from moe_adapt.hub.load import load_adapter
from moe_adapt.learners import FineTuning
from moe_adapt.runs.rebuild import load_module
from moe_adapt.runs.stream_export import load_stream_learner
from moe_adapt.training.modules import SequenceClassifier

TEXTS = {"red": "a red apple number {}", "green": "green leaves, {} of them", "blue": "the blue sea, wave {}"}
PROBE = ["apple number 3", "leaves on a wave"]


def write_rows(path: Path, first: int, count: int) -> None:
    """Write `count` texts of each class."""
    rows = [
        {"text": text.format(i), "label": label}
        for i in range(first, first + count)
        for label, text in TEXTS.items()
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def command(*words: str) -> None:
    """Run `moe-adapt`; stop if it fails."""
    print("$ moe-adapt", *words, flush=True)
    code = moe_adapt(list(words))
    if code:
        sys.exit(code)


def probe(backbone: str) -> dict[str, torch.Tensor]:
    """Return the probe texts as token ids."""
    from transformers import AutoTokenizer

    batch = AutoTokenizer.from_pretrained(backbone)(PROBE, padding=True, return_tensors="pt")
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def logits(model: torch.nn.Module, learner: FineTuning, backbone: str) -> torch.Tensor:
    """Return what both make of the probe texts, [4, 3]."""
    batch = probe(backbone)
    with torch.inference_mode():
        return torch.cat([model.eval()(**batch), learner.eval().scores(batch)])


def base_model(backbone: str) -> torch.nn.Module:
    """Return the base model, with a new head."""
    return SequenceClassifier.base_model(backbone, num_classes=len(TEXTS), pooling="mean")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", required=True, help="name or folder of an encoder")
    parser.add_argument("--repo", required=True, help="repository to push to, user/name")
    parser.add_argument("--work", type=Path, default=Path("tutorial"), help="folder to work in")
    parser.add_argument("--elsewhere", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.elsewhere:
        loaded = load_adapter(base_model(options.backbone), options.repo)
        encoder = TextEncoder(options.backbone, pooling="mean")
        learner = FineTuning.from_pretrained(f"{options.repo}-stream", backbone=encoder)
        print(json.dumps(logits(loaded, learner, options.backbone).tolist()))
        return
    options.work.mkdir(parents=True, exist_ok=True)
    train, test = options.work / "train.jsonl", options.work / "test.jsonl"
    write_rows(train, first=0, count=16)
    write_rows(test, first=16, count=4)

    run = options.work / "fit"
    command(
        *["fit", "--config", "base", "--config", "task/sequence_classification"],
        *["--config", "routed_lora/top_k", "--model.backbone", options.backbone, "--model.pooling", "mean"],
        *["--data.train", str(train), "--data.test", str(test), "--trainer.max_epochs", "2"],
        *["--out", str(run), "--overwrite"],
    )
    stream = options.work / "stream"
    command(
        *["stream", "--config", "stream/text", "--config", "learner/fine_tuning"],
        *["--backbone.backbone", options.backbone, "--backbone.pooling", "mean"],
        *["--stream.train", str(train), "--stream.test", str(test), "--stream.increment", "1"],
        *["--out", str(stream), "--overwrite"],
    )
    command("export", str(run), "--to", f"hf://{options.repo}", "--private")
    command("export", str(stream), "--to", f"hf://{options.repo}-stream", "--private")

    again = [sys.executable, __file__, "--elsewhere", "--backbone", options.backbone, "--repo", options.repo]
    answer = subprocess.run(again, stdout=subprocess.PIPE, text=True, check=True)
    elsewhere = torch.tensor(json.loads(answer.stdout.splitlines()[-1]))
    here = logits(load_module(run).model, load_stream_learner(stream), options.backbone)
    difference = float((elsewhere - here).abs().max())
    print(f"loaded both in another process: the largest difference of a logit is {difference:.1e}")
    if difference > 1e-6:
        sys.exit("what was loaded is not what was pushed")


if __name__ == "__main__":
    main()
