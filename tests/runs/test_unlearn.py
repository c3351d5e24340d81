"""``moe-adapt unlearn``: an adapter without some rows, and a report of what came of it."""

import json

import torch
from peft import PeftModel

from moe_adapt.cli import main
from moe_adapt.evaluation.membership import membership_auc
from moe_adapt.runs.rebuild import load_module
from moe_adapt.runs.unlearn import REPORT_FILE
from moe_adapt.runs.unlearn_report import unlearning_sentence


def files(folder):
    """Rows to forget, to retain and unseen, as files."""
    rows = {
        "forget": [{"text": f"goodbye number {i}", "label": "goodbye"} for i in range(8)],
        "retain": [{"text": f"hello number {i}", "label": "hello"} for i in range(8)],
        "unseen": [{"text": f"goodbye number {i}", "label": "goodbye"} for i in range(10, 14)],
    }
    words = []
    for name, found in rows.items():
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in found))
        words += [f"--{name}", str(path)]
    return words


def test_rows_are_forgotten_others_kept_and_the_routing_of_those_is_stable(run, tmp_path, capsys):
    words = ["unlearn", str(run), *files(tmp_path), "--to", str(tmp_path / "less"), "--epochs", "6"]
    assert main([*words, "--ceiling", "3", "--max_inputs", "16"]) == 0, capsys.readouterr().err
    report = json.loads((tmp_path / "less" / REPORT_FILE).read_text())
    assert report["forget"]["loss"]["after"] > report["forget"]["loss"]["before"] + 0.1
    assert report["retain"]["accuracy"]["after"] == 1.0
    assert report["stability"]["inputs"] == 1.0
    assert set(report["membership"]) == {"before", "after"}
    assert report["procedure"]["guard"] is True and report["forget"]["rows"] == 8
    assert unlearning_sentence(report) in capsys.readouterr().out
    assert "<h2>Before and after</h2>" in (tmp_path / "less" / "report.html").read_text()

    module = load_module(run)
    base = type(module).base_model(module.name, 2, "mean")
    loaded = PeftModel.from_pretrained(base, str(tmp_path / "less" / "adapter"))
    trained = {name for name, _ in loaded.named_parameters() if "moe_adapt_B" in name}
    before, after = dict(module.model.named_parameters()), dict(loaded.named_parameters())
    assert trained and any(not torch.equal(before[name], after[name]) for name in trained)


def test_mistakes_are_one_sentence_and_nothing_is_written(run, tmp_path, capsys):
    words = ["unlearn", str(run), *files(tmp_path)]
    assert main([*words, "--to", str(tmp_path)]) == 2
    assert "error:" in capsys.readouterr().err
    (tmp_path / "retain.jsonl").write_text(json.dumps({"text": "x", "label": "unheard"}) + "\n")
    assert main([*words, "--to", str(tmp_path / "less")]) == 2
    assert "unheard" in capsys.readouterr().err
    assert not (tmp_path / "less").exists()


def test_the_attack_knows_everything_nothing_and_is_turned_round():
    low, high = torch.tensor([0.1, 0.2]), torch.tensor([0.3, 0.4])
    assert (membership_auc(low, high), membership_auc(high, low), membership_auc(low, low)) == (1.0, 0.0, 0.5)
