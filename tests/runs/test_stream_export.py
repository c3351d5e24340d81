"""`moe-adapt export` of a run over a stream: its learner, with the run's findings in the card."""

import json

import pytest
import torch
from huggingface_hub import ModelCard

from moe_adapt.backbones import TextEncoder
from moe_adapt.cli import main
from moe_adapt.errors import UserError
from moe_adapt.learners import FineTuning
from moe_adapt.runs.stream_export import load_stream_learner
from tests.training.tiny import tiny_bert


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stream")
    backbone = tiny_bert(folder / "mini-bert")
    data = folder / "greetings" / "train.jsonl"
    data.parent.mkdir()
    words = ("hello", "goodbye", "thanks", "sorry")
    rows = [{"text": f"{word} number {i}", "label": word} for i in range(6) for word in words]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["stream", "--config", "stream/text", "--config", "learner/lora_fine_tuning"]
    command += ["--backbone.backbone", str(backbone), "--backbone.pooling", "mean"]
    command += ["--learner.epochs", "1", "--learner.optimizer", "torch.optim.SGD"]
    command += ["--stream.train", str(data), "--stream.test", str(data), "--stream.increment", "2"]
    assert main([*command, "--out", str(folder / "run")]) == 0
    return folder / "run", backbone


BATCH = {"input_ids": torch.arange(1, 13).reshape(2, 6), "attention_mask": torch.ones(2, 6, dtype=torch.long)}


def scores(learner):
    with torch.no_grad():
        return learner.scores(BATCH)


def test_to_a_folder(run, tmp_path, capsys):
    folder, backbone = run
    assert main(["export", str(folder), "--to", str(tmp_path / "talker"), "--license", "mit"]) == 0
    assert "read back and equal" in capsys.readouterr().out
    learner = FineTuning.from_pretrained(
        tmp_path / "talker", backbone=TextEncoder(str(backbone), pooling="mean")
    )
    assert torch.equal(scores(learner), scores(load_stream_learner(folder)))
    assert learner.optimizer.func is torch.optim.SGD
    result = json.loads((folder / "result.json").read_text())
    card = ModelCard.load(tmp_path / "talker" / "README.md")
    found = {item.metric_name: item.metric_value for item in card.data.eval_results}
    assert found["stream/final_accuracy"] == result["metrics"]["final_accuracy"]
    assert card.data.pipeline_tag == "text-classification"
    metadata = card.text.split("```bash", 2)[1]
    assert "Measured on greetings/train.jsonl" in card.text
    assert "| 1 |" in card.text
    assert str(folder.parent) not in metadata
    content = (tmp_path / "talker" / "learner.json").read_text()
    assert str(folder.parent) not in content


def test_to_the_hub_and_back(hub, run, capsys):
    folder, backbone = run
    assert main(["export", str(folder), "--to", "hf://me/talker", "--private"]) == 0
    assert f"pushed: {hub.url}/me/talker/commit/" in capsys.readouterr().out
    learner = FineTuning.from_pretrained("me/talker", backbone=TextEncoder(str(backbone), pooling="mean"))
    assert torch.equal(scores(learner), scores(load_stream_learner(folder)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--form", "merged"], "leave out --form"),
        (["--checkpoint", "best", "--batches", "3"], "leave out --checkpoint, --batches"),
    ],
)
def test_options_of_adapters_are_refused(run, tmp_path, capsys, options, words):
    assert main(["export", str(run[0]), "--to", str(tmp_path / "talker"), *options]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "talker").exists()


def test_a_run_without_a_finished_task(run, tmp_path, capsys):
    (tmp_path / "moe_adapt_config.yaml").write_text((run[0] / "moe_adapt_config.yaml").read_text())
    assert main(["export", str(tmp_path), "--to", str(tmp_path / "talker")]) == 2
    assert "finish a task first" in capsys.readouterr().err
    with pytest.raises(UserError, match="not the folder of a run"):
        load_stream_learner(tmp_path / "nowhere")
