"""``moe-adapt trace``: from a run to its trace, metrics, pictures and report."""

import json
from pathlib import Path

import pytest
import torch

from moe_adapt.cli import main
from moe_adapt.errors import UserError
from moe_adapt.evaluation.trace.file import load_trace
from moe_adapt.runs.rebuild import load_data, load_module
from moe_adapt.training.modules import CausalLM, ImageClassifier, SequenceClassifier
from moe_adapt.training.tracing import FILES, check_target, record_batches, trace_run
from moe_adapt.tuner.tracing import TraceRecorder
from tests.training.runs import routed, text_batches
from tests.training.tiny import tiny_bert

COLOURS = {"warm": ["red", "orange", "yellow"], "cold": ["blue", "violet", "green"]}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("traced")
    pairs = [(colour, label) for label, colours in COLOURS.items() for colour in colours]
    for split, times in (("train", 3), ("test", 2)):
        lines = [
            json.dumps({"text": f"{colour} {'a' * i}", "label": label})
            for i in range(times)
            for colour, label in pairs
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    options = {
        "--config": "task/sequence_classification",
        "-c": "routed_lora/top_k",
        "--model.backbone": tiny_bert(folder / "bert"),
        "--model.tuner.num_experts": 3,
        "--model.tuner.r": 2,
        "--data.train": folder / "train.jsonl",
        "--data.test": folder / "test.jsonl",
        "--data.batch_size": 5,
        "--trainer.accelerator": "cpu",
        "--trainer.max_epochs": 1,
        "--trainer.enable_progress_bar": "false",
        "--out": folder / "run",
    }
    assert main(["fit", *(str(word) for pair in options.items() for word in pair)]) == 0
    return folder / "run"


@pytest.fixture
def trace(capsys):
    def command(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["trace", *map(str, words)])
        found = capsys.readouterr()
        return code, found.out, found.err

    return command


def test_files_of_a_trace(run, trace, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    to = tmp_path / "new" / "trace"
    code, out, err = trace(run, "--to", to, "--device", "cpu")
    assert (code, err) == (0, "")
    assert f"report: {to / 'report.html'}" in out
    assert "12 samples" in out
    assert {path.name for path in to.iterdir()} == set(FILES)
    recorded = load_trace(to)
    assert recorded.meta == {"run": "run", "checkpoint": "best", "data": "test"}
    assert sorted(recorded.group_names) == ["cold", "warm"]
    assert len(recorded.samples) == 12
    assert recorded.tables[0].ids is None
    metrics = json.loads((to / "metrics.json").read_text())
    site = next(iter(metrics["sites"].values()))
    assert site["tokens"] == recorded.num_tokens
    assert 0 < site["coupling"] <= 1
    page = (to / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 4
    assert str(run) not in page

    code, out, err = trace("--compare", to, to / "trace.safetensors")
    assert code == 0
    assert "mean" in out
    assert "1.000" in out

    code, out, err = trace(run, "--to", to)
    assert code == 2
    assert err.startswith("error: ") and "--overwrite" in err and err.count("\n") == 1
    words = ["--batches", 1, "--sites", "layer.0", "--no-probs", "--token-ids", "--overwrite"]
    assert trace(run, "--to", to, *words)[0] == 0
    small = load_trace(to)
    assert len(small.samples) == 5
    assert all("layer.0" in name and site.probs is None for name, site in small.sites.items())
    assert small.tables[0].ids is not None


def test_other_splits_and_the_module_alone(run):
    module, data = load_module(run, "last"), load_data(run)
    seen = []
    recorded, geometry = trace_run(module, data, "train", 2, {}, advance=lambda: seen.append(1))
    assert len(recorded.samples) == 10
    assert len(seen) == 2
    assert geometry.keys() == recorded.sites.keys()
    assert len(trace_run(module, data, "validation", 9, {})[0].samples) == 2


def test_mistakes_are_one_line(run, trace, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    to = ["--to", tmp_path / "x"]
    for words, expected in [
        ([], "needs a RUN with one of --to DIR"),
        ([run], "needs a RUN with one of --to DIR"),
        ([run, "--compare", run, run], "without a RUN --compare A B"),
        ([run, *to, "--batches", 0], "at least 1"),
        ([run, *to, "--batchs", 1], "Did you mean '--batches'"),
        ([run, *to, "--device", "gpu"], "--device is cpu"),
        ([run, *to, "--sites", "layr"], "no adapted layer matches 'layr'"),
        ([run, *to, "--checkpoint", "third"], "no checkpoint 'third'"),
        ([run, "--to", tmp_path / "file"], "is a file"),
        ([run, "--to", tmp_path / "full", "--overwrite"], "thesis.tex"),
        ([tmp_path, *to], "not the folder of a run"),
        (["--compare", run, run], "there is no routing trace"),
    ]:
        code, _, err = trace(*words)
        assert code == 2, words
        assert expected in err, words
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert not (tmp_path / "x").exists()


def test_a_run_without_test_rows_says_what_else_there_is(run, trace, tmp_path):
    other = tmp_path / "run"
    other.mkdir()
    config = (run / "moe_adapt_config.yaml").read_text()
    lines = ["    test: null" if line.startswith("    test: /") else line for line in config.splitlines()]
    (other / "moe_adapt_config.yaml").write_text("\n".join(lines))
    code, _, err = trace(other, "--to", tmp_path / "x")
    assert code == 2
    assert "no test rows" in err
    assert "--data" in err


def test_language_models_and_images(llama):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(6, 200, (4, 9), generator=generator)
    questions = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    questions |= {"choice_row": torch.tensor([0, 0, 1, 1]), "answer": torch.tensor([0, 1])}
    module = CausalLM(backbone=llama, tuner=routed())
    recorder = TraceRecorder(module.tuner)
    record_batches(module, [questions], recorder, limit=5)
    assert len(recorder.trace().samples) == 4
    assert recorder.trace().groups is None

    vision = ImageClassifier(
        backbone="vit_tiny_patch16_224",
        num_classes=4,
        tuner=routed(),
        pretrained=False,
        model_kwargs={"img_size": 32, "depth": 1, "embed_dim": 24, "num_heads": 2},
    )
    images = {
        "pixel_values": torch.rand(3, 3, 32, 32, generator=generator),
        "labels": torch.tensor([0, 3, 3]),
    }
    recorder = TraceRecorder(vision.tuner)
    record_batches(vision, [images], recorder, limit=1)
    seen = recorder.trace()
    assert seen.groups.tolist() == [0, 3, 3]
    assert {site.tokens for site in seen.sites.values()} == {3 * 5}


def test_a_pooled_layer_sees_one_token_per_sample(bert):
    module = SequenceClassifier(backbone=bert, num_classes=4, tuner=routed(), pooling="model")
    recorder = TraceRecorder(module.tuner)
    record_batches(module, text_batches(2), recorder, limit=2)
    trace = recorder.trace()
    pooled = [name for name in trace.sites if "pooler" in name]
    assert [trace.sites[name].tokens for name in pooled] == [8]
    assert trace.table(pooled[0]).sample.tolist() == list(range(8))
    assert {site.tokens for name, site in trace.sites.items() if name not in pooled} == {8 * 7}
    assert len(trace.tables) == 2


def test_what_cannot_be_traced(bert, tmp_path):
    probe = SequenceClassifier(backbone=bert, num_classes=2)
    with pytest.raises(UserError, match="no adapter"):
        trace_run(probe, None, "test", 1, {})
    module = SequenceClassifier(backbone=bert, num_classes=2, tuner=routed())
    with pytest.raises(UserError, match="neither input_ids nor pixel_values"):
        record_batches(module, [{"labels": torch.zeros(1)}], TraceRecorder(module.tuner), 1)
    with pytest.raises(UserError, match="AdaptedModule"):
        record_batches(torch.nn.Linear(1, 1), [], TraceRecorder(module.tuner), 1)
    check_target(tmp_path / "free", overwrite=False)
