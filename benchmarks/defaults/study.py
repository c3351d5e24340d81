"""Which start of the head, method, rank and layers should the packaged recipes have? A small study.

Each cell trains the packaged recipe (three epochs, cosine schedule) once. A default is chosen on the ``dev``
rows; ``test`` rows are other rows, which the table shows. Cells are written one by one, and a second call
goes on where the first stopped. Needs the data folder in MOE_ADAPT_DATA and the extra ``demo``.

    python benchmarks/defaults/study.py starts
    python benchmarks/defaults/study.py texts --start "probe, 1e-3"
    python benchmarks/defaults/study.py images --start "probe, 1e-3"
    python benchmarks/defaults/study.py language
    python benchmarks/defaults/tables.py
"""

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from methods import IMAGE_METHODS, METHODS, STARTS
from sets import TEXT_SETS, images, language, root, texts

from moe_adapt import manifest
from moe_adapt.data.packages import MINILM, package_folder
from moe_adapt.training.callbacks import HeadStart
from moe_adapt.training.datamodules import CausalLMData, ImageClassificationData, TextClassificationData
from moe_adapt.training.modules import CausalLM, ImageClassifier, SequenceClassifier
from moe_adapt.training.probe import collect_features, last_linear
from moe_adapt.tuner import RoutedLoraConfig

RESULT = Path(__file__).parents[1] / "results" / "defaults.json"


def texts_parts(name: str, seed: int, folder: Path) -> tuple[Any, Callable[..., Any]]:
    """Return data module and constructor of the model for a set of texts."""
    files = texts(name, seed, folder)
    encoder = str(package_folder(*MINILM))
    data = TextClassificationData(
        tokenizer=encoder,
        train=files["train"],
        validation=files["dev"],
        test=files["test"],
        max_length=48,
        batch_size=32,
        group_by_length=True,
        seed=seed,
    )
    data.setup("fit")
    return data, lambda **options: SequenceClassifier(
        backbone=encoder, num_classes=data.num_classes, warmup=0.06, **options
    )


def images_parts(name: str, seed: int, folder: Path) -> tuple[Any, Callable[..., Any]]:
    """Return data module and constructor of the model for images of 56 pixels."""
    files = images(seed, folder)
    data = ImageClassificationData(
        train=files["train"],
        validation=files["dev"],
        test=files["test"],
        image_size=56,
        batch_size=32,
        seed=seed,
    )
    data.setup("fit")
    backbone = str(root() / "vit_s14_dinov2_saliency_fp16")
    return data, lambda **options: ImageClassifier(
        backbone=backbone, library="transformers", num_classes=data.num_classes, warmup=0.06, **options
    )


def language_parts(name: str, seed: int, folder: Path) -> tuple[Any, Callable[..., Any]]:
    """Return data module and constructor of the model for plain text."""
    files = language(seed, folder)
    model = str(root() / "stories260k_hf")
    data = CausalLMData(
        tokenizer=model,
        train=files["train"],
        validation=files["dev"],
        test=files["test"],
        text_column="text",
        max_length=128,
        batch_size=8,
        seed=seed,
    )
    data.setup("fit")

    def build(**options: Any) -> CausalLM:
        options.pop("head_lr")
        return CausalLM(backbone=model, warmup=0.03, **options)

    return data, build


SETS: dict[str, Callable[..., tuple[Any, Callable[..., Any]]]] = {
    **dict.fromkeys(TEXT_SETS, texts_parts),
    "tiny-imagenet": images_parts,
    "shakespeare": language_parts,
}


def adapted(build: Callable[..., Any], method: str, head_lr: float, seed: int) -> Any:
    """Return the untrained module of a method."""
    options, lr = METHODS[method]
    L.seed_everything(seed, verbose=False)
    return build(tuner=RoutedLoraConfig(**options), lr=lr, head_lr=head_lr, schedule="cosine")


def cell(name: str, start: str, method: str, seed: int) -> dict[str, Any]:
    """Train once; measure the last weights on dev and test rows, beside the linear probe."""
    kind, decay, head_lr = STARTS[start]
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        data, build = SETS[name](name, seed, Path(folder))
        module = adapted(build, method, head_lr, seed)
        head = HeadStart(kind=kind, weight_decay=decay)  # type: ignore[arg-type]
        trainer = L.Trainer(
            accelerator="cpu",
            max_epochs=3,
            callbacks=[head],
            gradient_clip_val=1.0,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            limit_val_batches=0,
            default_root_dir=folder,
        )
        row: dict[str, Any] = {"set": name, "start": start, "method": method, "seed": seed}
        data.setup("test")
        loaders = {"dev": data.val_dataloader(), "test": data.test_dataloader()}
        if name == "shakespeare":
            row |= {f"untrained_{split}": perplexity(module, loader) for split, loader in loaders.items()}
        trainer.fit(module, datamodule=data)
        score = perplexity if name == "shakespeare" else accuracy
        row |= {split: score(module, loader) for split, loader in loaders.items()}
        if name != "shakespeare":
            row["probe_dev"] = round(head.found["val/acc"]["linear_probe"], 5)
            row["probe_test"] = ruled(module, head, loaders["test"])
    trainable = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return row | {"trainable": trainable, "processor_seconds": round(time.process_time() - began, 1)}


@torch.no_grad()
def accuracy(module: Any, loader: Any) -> float:
    """Return the share of rows that a classifier labels right."""
    module.eval()
    hits = [(module.logits(batch).argmax(dim=-1) == batch["labels"]).float() for batch in loader]
    return round(float(torch.cat(hits).mean()), 5)


def ruled(module: Any, head: HeadStart, loader: Any) -> float:
    """Return the accuracy of the linear probe of the frozen backbone."""
    path = str(last_linear(module, module.num_classes))
    with module.model.disable_adapter():
        features = collect_features(module, loader, path, 10**6)
    return round(head.rules["linear_probe"].accuracy(features), 5)


@torch.no_grad()
def perplexity(module: Any, loader: Any) -> float:
    """Return the perplexity per token of a language model."""
    module.eval()
    total, count = 0.0, 0
    for batch in loader:
        tokens = int((batch["labels"][:, 1:] >= 0).sum())
        total, count = total + float(module.task_loss(batch)) * tokens, count + tokens
    return round(float(torch.tensor(total / count).exp()), 4)


def plan(stage: str, start: str, seeds: list[int]) -> list[tuple[str, str, str, int]]:
    """Return the cells of a stage."""
    if stage == "starts":
        return [(name, s, "DynMoLE 6 x 4, ffn", seed) for seed in seeds for name in TEXT_SETS for s in STARTS]
    sets = {"texts": list(TEXT_SETS), "images": ["tiny-imagenet"], "language": ["shakespeare"]}[stage]
    methods = IMAGE_METHODS if stage == "images" else tuple(METHODS)
    return [(name, start, method, seed) for seed in seeds for name in sets for method in methods]


def main() -> None:
    """Run what is not in the file yet."""
    parser = argparse.ArgumentParser()
    parser.add_argument("stage", choices=("starts", "texts", "images", "language"))
    parser.add_argument("--start", default="probe, 1e-3", choices=list(STARTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    found = json.loads(RESULT.read_text()) if RESULT.is_file() else {"manifests": {}, "rows": []}
    found["manifests"][options.stage] = manifest.collect()
    done = {(row["set"], row["start"], row["method"], row["seed"]) for row in found["rows"]}
    for one in plan(options.stage, options.start, options.seeds):
        if one not in done:
            row = cell(*one)
            print(row, flush=True)
            found["rows"].append(row)
            RESULT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
