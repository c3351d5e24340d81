"""Kinds of files for `tests.faults.test_fuzz`: each writes one, and reads it and uses what it holds."""

import bz2
import gzip
import hashlib
import io
import json
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import torch
from PIL import Image
from safetensors.torch import save

from moe_adapt.checks import ToyEncoder, gaussian_stream
from moe_adapt.cli.texts import read_texts
from moe_adapt.data.decoding import decode
from moe_adapt.data.image_sources import open_images
from moe_adapt.data.tables import load_table
from moe_adapt.drift.comparison.recipe import read_recipe
from moe_adapt.drift.driftmoe import DriftMoEClassifier
from moe_adapt.drift.streams.own import file_stream
from moe_adapt.evaluation.trace import RoutingTrace, SiteTrace, TokenTable, pack_bits
from moe_adapt.evaluation.trace.file import load_trace, save_trace
from moe_adapt.evaluation.trace.metrics import trace_metrics
from moe_adapt.hub.composition.folder import read_folder
from moe_adapt.hub.load import check_adapter_folder
from moe_adapt.hub.pool import AdapterPool
from moe_adapt.hub.published import LEARNER_FILE, TENSORS_FILE, content_hash, load
from moe_adapt.learners import FineTuning
from moe_adapt.reading import read_json, read_tensors, read_yaml
from moe_adapt.runs.trust import check_trusted, sign
from moe_adapt.serving.rows import read_rows
from moe_adapt.training.checkpoint import read_checkpoint
from moe_adapt.training.loggers import RunCSVLogger
from moe_adapt.training.stream import StreamRunner
from moe_adapt.training.stream.features import cached_stream
from moe_adapt.training.sweep import Sweep

__all__ = ["KINDS"]

Kind = tuple[Callable[[Path], Path], Callable[[Path], Any]]


def trace(folder: Path) -> Path:
    selected = torch.eye(3, dtype=torch.bool)[torch.arange(12) % 3]
    site = SiteTrace(3, 0, pack_bits(selected), torch.ones(12).half(), (torch.arange(12) % 3).short())
    table = TokenTable(torch.arange(4).repeat_interleave(3).int(), torch.arange(3).repeat(4).int())
    found = RoutingTrace({"layer": site}, [table], torch.arange(4), torch.tensor([0, 1, 0, 1]), ["a", "b"])
    return save_trace(found, folder / "trace.safetensors")


def pool(folder: Path) -> Path:
    made = AdapterPool("encoder", 2)
    for uid in ("one", "two"):
        made.add(uid, f"org/{uid}", torch.randn(6, 8, generator=torch.Generator().manual_seed(0)))
    made.save(folder / "pool")
    return folder / "pool" / "pool.json"


def opened_pool(path: Path) -> None:
    AdapterPool.load(path.parent).route(torch.ones(2, 8)).best(1)


def written(name: str, content: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


def checkpoint(folder: Path) -> Path:
    torch.save({"state_dict": {"a": torch.arange(40.0)}, "epoch": 1}, folder / "last.ckpt")
    return folder / "last.ckpt"


def beside(write: Callable[[Path], Path], name: str) -> Callable[[Path], Path]:
    return lambda folder: write(folder).with_name(name)


def rows_of(path: Path) -> list[Any]:
    return list(load_table(str(path)).to_list())


def streamed(path: Path) -> None:
    stream = file_stream(path)
    assert len(list(stream)) == len(stream)


def npz(folder: Path) -> Path:
    np.savez(folder / "a.npz", images=np.zeros((4, 4, 4), np.uint8), label=np.arange(4) % 2)
    return folder / "a.npz"


def pictures(path: Path) -> None:
    source = open_images(str(path), "train", "image", "label")
    assert source.read(len(source.labels) - 1).shape[0] == 3


def picture(form: str, mode: str = "RGB") -> Callable[[Path], Path]:
    image = Image.fromarray((np.linspace(0, 255, 16 * 16 * 3)).reshape(16, 16, 3).astype(np.uint8))
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, form)
    return written(f"picture.{form.lower()}", buffer.getvalue())


def seen(path: Path) -> None:
    found = decode(path, str(path))
    assert found.shape[0] == 3 and found.dtype == torch.uint8


def encoder_learner() -> FineTuning:
    learner = FineTuning(ToyEncoder())
    learner.backbone.requires_grad_(False)
    return learner


def features(folder: Path) -> Path:
    cached_stream(encoder_learner(), gaussian_stream(tasks=2, train=4, test=3), folder, 16)
    return next(folder.glob("features-*.npz"))


def cached(path: Path) -> None:
    encoded, _ = cached_stream(encoder_learner(), gaussian_stream(tasks=2, train=4, test=3), path.parent, 16)
    assert encoded.train.features.isfinite().all()


def stream_run(folder: Path) -> Path:
    stream = gaussian_stream(tasks=2, train=4, test=3)
    StreamRunner(folder / "run").run(FineTuning(ToyEncoder()), stream)
    return folder / "run" / "last.ckpt"


def resumed(path: Path) -> None:
    stream = gaussian_stream(tasks=2, train=4, test=3)
    StreamRunner(path.parent).run(FineTuning(ToyEncoder()), stream, resume=True)


def learner(folder: Path) -> Path:
    made = FineTuning(ToyEncoder())
    StreamRunner().run(made, gaussian_stream(tasks=2, train=4, test=3))
    return made.save_pretrained(folder / "learner") / LEARNER_FILE


def opened_learner(path: Path) -> None:
    opened = load(path.parent, expected=FineTuning, backbone=ToyEncoder())
    with torch.no_grad():
        assert opened.scores({"x": torch.zeros(1, 8)}).shape == (1, 4)


ROW = {"a": 1.0, "b": 2.0, "c": "x"}


def driftmoe(folder: Path, mode: str) -> Path:
    options = {} if mode == "committee" else {"n_experts": 3, "top_k": 2, "hidden": 8}
    model = DriftMoEClassifier(mode=mode, seed=1, **options)
    for i in range(60):
        model.learn_one({"a": i % 7 / 7, "b": i % 5 / 5, "c": "xy"[i % 2]}, i % 3 > 0)
    return model.save_pretrained(folder / "drift") / LEARNER_FILE


def forged(path: Path) -> None:
    """Make both hashes of a learner's file fit, so that what is read behind them is met."""
    try:
        content = json.loads(path.read_text())
        content.pop("hash", None)
        content["tensors"] = hashlib.sha256(path.with_name(TENSORS_FILE).read_bytes()).hexdigest()
        path.write_text(json.dumps({**content, "hash": content_hash(content)}))
    except (ValueError, AttributeError, TypeError, RecursionError):
        return


def opened_driftmoe(path: Path) -> None:
    path = path.with_name(LEARNER_FILE)
    forged(path)
    model = load(path.parent, expected=DriftMoEClassifier)
    for i in range(30):
        row = {"a": i % 7 / 7, "b": i % 5 / 5, "c": "xyz"[i % 3]}
        assert abs(sum(model.predict_proba_one(row).values()) - 1) < 1e-6
        model.learn_one(row, i % 3 > 0)


def forged_learner(path: Path) -> None:
    path = path.with_name(LEARNER_FILE)
    forged(path)
    opened_learner(path)


def adapter(folder: Path) -> Path:
    from peft import get_peft_model
    from torch import nn

    from moe_adapt.hub.export import export_model
    from moe_adapt.tuner import RoutedLoraConfig

    base = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    config = RoutedLoraConfig(method="top_k", target_modules=["0", "2"], num_experts=3, r=2)
    made = export_model(get_peft_model(base, config), folder / "adapter").folder
    return made / "adapter_config.json"


def opened_adapter(path: Path) -> None:
    from torch import nn

    from moe_adapt.hub.load import load_adapter

    check_adapter_folder(path.parent)
    model = load_adapter(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), path.parent)
    with torch.no_grad():
        model(torch.zeros(1, 3))


def composed(folder: Path) -> Path:
    from moe_adapt.hub.composition import compose
    from tests.hub.composition.kitchen import WORDS, llama, llama_adapters, tokenizer

    llama_adapters(folder)
    texts = {uid: WORDS[uid] for uid in ("bank", "food")}
    sources = {uid: str(folder / uid) for uid in texts}
    compose(sources, texts, folder / "all", base=llama(), tokenizer=tokenizer(), layer=1)
    return folder / "all" / "compose.json"


def opened_composed(path: Path) -> None:
    from moe_adapt.hub.composition import add_adapter

    _, _, router, _ = read_folder(path.parent)
    check_adapter_folder(path.parent)
    if router is not None:
        router.rule()
    assert add_adapter is not None


def configuration(folder: Path) -> Path:
    (folder / "config.yaml").write_text("custom_modules: [a.py]\nmodel: {class_path: X, init_args: {a: 1}}\n")
    sign(folder / "config.yaml")
    return folder / "config.yaml"


def trusted(path: Path) -> None:
    config = path.with_name("config.yaml")
    content = read_yaml(config)
    check_trusted(config, content if isinstance(content, dict) else {})


SWEEP = b"command: fit\nmethods: {one: [--a, 1]}\nseeds: [0, 1]\nmetric: test/acc\n"
RECIPE = b"title: t\nwindow: 100\nseeds: [1]\nstreams: [{name: SEA_a, rows: 400}]\nmethods: [majority]\n"
MANIFEST = json.dumps({"status": "finished", "metrics": {"test/acc": 0.5}}).encode()


def swept(folder: Path) -> Path:
    path = folder / "out" / "task" / "one" / "0" / "manifest.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(MANIFEST)
    (folder / "sweep.yaml").write_bytes(SWEEP)
    return path


def recorded(path: Path) -> None:
    out = path.parents[3]
    for trial in Sweep.read(out.parent / "sweep.yaml", out).trials:
        trial.metrics()


def logged(path: Path) -> None:
    logger = RunCSVLogger(path.parent)
    logger.log_metrics({"a": 1.0}, 3)
    logger.save()


CSV = b'text,label\n"a, ""b""",1\nc,2\n'
NUMBERS = "a,b,when,y\n" + "".join(f"{i},{'xyz'[i % 3]},2024-01-0{i + 1},{i % 2}\n" for i in range(9))
ARFF = (
    b"@relation r\n@attribute a real\n@attribute b {x,y}\n@attribute y {0,1}\n@data\n1,x,0\n?,'y',1\n2,x,1\n"
)
JSON = json.dumps({"a": [1, {"b": "text"}], "c": None}).encode()
LINES = b"".join(json.dumps({"text": f"row {i}", "label": i}).encode() + b"\n" for i in range(5))


def zipped(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.csv", content)
    return buffer.getvalue()


def parquet(folder: Path) -> Path:
    import pyarrow.parquet

    table = pyarrow.table({"a": [1.0, 2.0, 3.0], "b": ["x", "y", "x"], "y": [0, 1, 1]})
    pyarrow.parquet.write_table(table, folder / "a.parquet")
    return folder / "a.parquet"


#: Kind -> writes a file; reads it and uses what it holds.
KINDS: dict[str, Kind] = {
    "json": (written("a.json", JSON), read_json),
    "yaml": (written("a.yaml", b"model:\n  a: &x [1, 2]\n  b: *x\n  c: {d: text}\n"), read_yaml),
    "safetensors": (written("a.safetensors", save({"a": torch.arange(6.0).reshape(2, 3)})), read_tensors),
    "checkpoint": (checkpoint, read_checkpoint),
    "trace": (trace, lambda path: trace_metrics(load_trace(path))),
    "pool": (pool, opened_pool),
    "pool_tensors": (beside(pool, "pool.safetensors"), opened_pool),
    "jsonl": (written("a.jsonl", LINES), rows_of),
    "table_json": (written("a.json", json.dumps([{"text": "a", "label": 1}] * 3).encode()), rows_of),
    "csv": (written("a.csv", CSV), rows_of),
    "tsv": (written("a.tsv", b"text\tlabel\na\t1\nb\t2\n"), rows_of),
    "parquet": (parquet, rows_of),
    "gz": (written("a.csv.gz", gzip.compress(CSV, mtime=0)), rows_of),
    "xz": (written("a.csv.xz", lzma.compress(CSV)), rows_of),
    "bz2": (written("a.csv.bz2", bz2.compress(CSV)), rows_of),
    "zst": (written("a.csv.zst", pyarrow.compress(CSV, codec="zstd", asbytes=True)), rows_of),
    "zip": (written("a.csv.zip", zipped(CSV)), rows_of),
    "predicted_rows": (written("a.csv", CSV), lambda path: list(read_rows(str(path), "text"))),
    "texts": (written("a.jsonl", LINES), read_texts),
    "drift_csv": (written("a.csv", NUMBERS.encode()), streamed),
    "drift_tsv": (written("a.tsv", NUMBERS.replace(",", "\t").encode()), streamed),
    "drift_jsonl": (written("a.jsonl", b'{"a": 1, "b": "x", "y": 0}\n{"a": 2, "y": 1}\n' * 2), streamed),
    "drift_arff": (written("a.arff", ARFF), streamed),
    "drift_parquet": (parquet, streamed),
    "npz": (npz, pictures),
    **{
        f"image_{form.lower()}_{mode}": (picture(form, mode), seen)
        for form, mode in (("PNG", "RGBA"), ("JPEG", "CMYK"), ("GIF", "P"), ("TIFF", "RGB"), ("WEBP", "RGB"))
    },
    "features": (features, cached),
    "stream_checkpoint": (stream_run, resumed),
    "manifest": (swept, recorded),
    "sweep": (written("sweep.yaml", SWEEP), lambda path: Sweep.read(path, path.parent / "out")),
    "recipe": (written("recipe.yaml", RECIPE), read_recipe),
    "trusted": (configuration, trusted),
    "signature": (beside(configuration, "config.yaml.signature"), trusted),
    "metrics": (written("metrics.csv", b"a,step\n1.0,0\n2.0,1\n"), logged),
    "learner": (learner, opened_learner),
    "learner_forged": (learner, forged_learner),
    "learner_tensors": (beside(learner, TENSORS_FILE), forged_learner),
    "driftmoe_forged": (lambda folder: driftmoe(folder, "committee"), opened_driftmoe),
    "driftmoe_data_forged": (lambda folder: driftmoe(folder, "data"), opened_driftmoe),
    "driftmoe_tensors": (
        beside(lambda folder: driftmoe(folder, "committee"), TENSORS_FILE),
        opened_driftmoe,
    ),
    "adapter": (adapter, opened_adapter),
    "adapter_tensors": (beside(adapter, "adapter_model.safetensors"), opened_adapter),
    "adapter_record": (beside(adapter, "export.json"), opened_adapter),
    "compose": (composed, opened_composed),
    "compose_router": (beside(composed, "router.safetensors"), opened_composed),
    "compose_tensors": (beside(composed, "adapter_model.safetensors"), opened_composed),
}
