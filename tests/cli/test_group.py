"""``moe-adapt group``: hidden policies are found, an expert per group is trained, ids choose at test."""

import json

import pytest

from moe_adapt.runs.rebuild import load_module
from tests.training.tiny import tiny_bert

WORDS = {"a": "alpha apple", "b": "bravo banana", "c": "candy cherry", "d": "delta date"}
POLICIES = [{"a": "x", "b": "x", "c": "y", "d": "y"}, {"a": "y", "b": "y", "c": "x", "d": "x"}]


@pytest.fixture
def rows(tmp_path):
    """Six tenants with one of two opposite policies."""
    found = [
        {"text": f"{word} {i}", "label": POLICIES[t % 2][kind], "tenant": f"t{t}", "policy": t % 2}
        for t in range(6)
        for i in range(3)
        for kind, word in WORDS.items()
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


@pytest.fixture
def command(moe_adapt, rows, tmp_path):
    backbone = tiny_bert(tmp_path / "bert")
    trainer = {"accelerator": "cpu", "enable_progress_bar": "false", "max_epochs": 12}
    options = [f"--trainer.{name}={value}" for name, value in trainer.items()]
    options += ["--model.pooling=mean", "--model.lr=0.05", "--model.head_lr=0.02", "--data.batch_size=24"]
    options += ["--model.tuner.target_modules=ffn", "--data.validation_fraction=0"]
    words = ["group", rows, "--key=tenant", f"--backbone={backbone}", f"--to={tmp_path / 'run'}", *options]
    return lambda *more: moe_adapt(*words, *more)


def test_policies_are_found_and_customers_answered_by_their_group(command, moe_adapt, rows, tmp_path):
    done = command("--truth=policy")
    assert done.code == 0, done.err
    run = tmp_path / "run"
    groups = json.loads((run / "groups" / "groups.json").read_text())
    assert groups["adjusted_rand"] == 1.0
    assert groups["groups"] == {"group1": ["t0", "t2", "t4"], "group2": ["t1", "t3", "t5"]}
    assert "make 2 groups" in done.out and "<svg" in (run / "groups" / "groups.html").read_text()
    tuner = load_module(run, "last").tuner
    assert {spec["num_experts"] for spec in tuner.peft_config["default"].sites.values()} == {3}

    assert moe_adapt("export", run, "--to", tmp_path / "adapter").code == 0
    for source in (run, tmp_path / "adapter"):
        answers = tmp_path / f"{source.name}.jsonl"
        told = moe_adapt("predict", source, rows, f"--base={tmp_path / 'bert'}", "--to", answers)
        assert told.code == 0, told.err
        said = [json.loads(line) for line in answers.read_text().splitlines()]
        right = sum(row["prediction"] == row["label"] for row in said)
        assert right > 0.65 * len(said)  # whoever does not know who asks gets half of them

    again = command("--truth=policy", "--resume")
    assert again.code == 0 and again.out.count("is trained already") == 2, again.err
    assert "choose another folder" in command("--max_rows=3").err or "holds groups already" in command().err
    assert "begun with other options" in command("--resume", "--max_rows=3").err


def test_a_stopped_matrix_goes_on(command, tmp_path, monkeypatch):
    from moe_adapt.training.groups import cross

    seen = []
    real = cross._losses_of_all

    def counted(module, data, numbers, keys):
        seen.append(numbers)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(module, data, numbers, keys)

    monkeypatch.setattr(cross, "_losses_of_all", counted)
    assert command("--trainer.max_epochs=1").code == 130
    assert len(json.loads((tmp_path / "run" / "groups" / "losses.json").read_text())) == 2
    assert command("--trainer.max_epochs=1", "--resume").code == 0
    assert len(seen) == 3 + 4  # two of six rows were there


def test_an_unknown_customer_is_answered_by_what_all_share_and_told(command, moe_adapt, tmp_path):
    assert command("--trainer.max_epochs=1", "--groups=2").code == 0
    other = tmp_path / "other.jsonl"
    other.write_text(
        '{"text": "alpha", "tenant": "nobody"}\n{"text": "alpha"}\n{"text": "alpha", "tenant": "t1"}\n'
    )
    told = moe_adapt("predict", tmp_path / "run", other)
    assert told.code == 0
    assert "2 rows have no tenant that was trained (nobody, none)" in told.err
    said = [json.loads(line) for line in told.out.splitlines()]
    assert said[0]["probability"] == said[1]["probability"]


def test_bad_input_is_one_sentence(command, moe_adapt, rows, tmp_path):
    for words, said in (
        (["--key=nobody"], "no column"),
        (["--groups=9"], "6 values make 1 to 6 groups"),
        (["--truth=text"], "two values of 'text'"),
        (["--small_rank=0"], "at least 1"),
        (["--no_such"], "unknown option"),
        (["--resume", "--overwrite"], "not both"),
        (["--trainer.max_epochs"], "needs a value"),
    ):
        result = command(*words)
        assert result.code == 2 and said in result.err, (words, result.err)
        assert not (tmp_path / "run" / "checkpoints").exists()
    one = tmp_path / "one.jsonl"
    one.write_text('{"text": "a", "label": "x", "tenant": "t0"}\n' * 4)
    told = moe_adapt("group", one, "--key=tenant", "--backbone=b", "--to=r")
    assert told.code == 2 and "one tenant only" in told.err
    none = tmp_path / "none.jsonl"
    none.write_text(
        '{"text": "a", "label": "x", "tenant": "t0"}\n{"text": "a", "label": "x", "tenant": null}\n'
    )
    told = moe_adapt("group", none, "--key=tenant", "--backbone=b", "--to=r")
    assert told.code == 2 and told.err.startswith("error: ") and not (tmp_path / "r").exists()
