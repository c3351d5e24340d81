"""``moe-adapt compose``: build, add, remove, evaluate, and the sentences about mistakes."""

import json

import pytest

from moe_adapt.cli import main
from tests.hub.composition.kitchen import WORDS, llama, llama_adapters, tokenizer


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kitchen")
    llama().save_pretrained(folder / "base")
    tokenizer().save_pretrained(folder / "base")
    llama_adapters(folder)
    for uid, texts in WORDS.items():
        (folder / f"{uid}.txt").write_text("\n".join(texts))
        rows = [{"prompt": text, "answer": ("yes", "no")[i % 2]} for i, text in enumerate(texts)]
        (folder / f"{uid}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_from_adapters_to_a_report(kitchen, tmp_path, capsys):
    base, to = f"--backbone={kitchen / 'base'}", str(tmp_path / "all")
    words = ["compose", str(kitchen / "bank"), f"cooking={kitchen / 'food'}", base, f"--to={to}", "--layer=1"]
    words += ["--examples", f"bank={kitchen / 'bank.txt'}", f"cooking={kitchen / 'food.jsonl'}"]
    assert main(words) == 0
    assert "2 experts (bank (5 examples), cooking (5 examples, labels not used))" in capsys.readouterr().out
    assert main(["compose", to, "--add", str(kitchen / "news"), "--examples", str(kitchen / "news.txt")]) == 0
    assert main(["compose", to, "--add", str(kitchen / "news")]) == 2
    assert main(["compose", to, "--remove", "cooking"]) == 0
    assert "2 experts (bank (5 examples), news (5 examples))" in capsys.readouterr().out
    data = [f"bank={kitchen / 'bank.jsonl'}", f"news={kitchen / 'news.jsonl'}"]
    assert main(["compose", "--evaluate", to, "--data", *data, base]) == 0
    printed = capsys.readouterr().out
    assert "went to their own expert" in printed
    report = json.loads((tmp_path / "all-evaluation" / "evaluation.json").read_text())
    methods = {"oracle", "routed", "best single", "base", *(f"merge {k}" for k in ("linear", "cat", "ties"))}
    assert methods <= set(report["accuracy"]) and report["columns"] == ["bank", "news", "base"]
    assert (tmp_path / "all-evaluation" / "evaluation.png").is_file()


def test_labels_make_classes_unless_they_are_to_be_ignored(kitchen, tmp_path, capsys):
    base, to = f"--backbone={kitchen / 'base'}", str(tmp_path / "all")
    words = ["compose", str(kitchen / "bank"), str(kitchen / "food"), base, f"--to={to}", "--layer=1"]
    for uid, texts in WORDS.items():
        rows = [{"text": text, "label": int(i > 1)} for i, text in enumerate(texts)] * 6
        (tmp_path / f"{uid}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words += ["--examples", f"bank={tmp_path / 'bank.jsonl'}", f"food={tmp_path / 'food.jsonl'}"]
    assert main(words) == 0
    assert "bank (30 examples of 2 classes), food (30 examples of 2 classes)" in capsys.readouterr().out
    assert main([*words, "--overwrite", "--ignore_labels"]) == 0
    assert "bank (30 examples), food (30 examples)" in capsys.readouterr().out
    add = ["compose", to, "--add", str(kitchen / "news"), "--examples", str(tmp_path / "news.jsonl")]
    assert main(add) == 0
    assert "news (30 examples of 2 classes)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "needs adapters, --backbone and --to"),
        (["a", "--backbone=b", "--to=c"], "--examples NAME=FILE"),
        (["a", "--backbone=b", "--to=c", "--examples", "x.txt"], "takes NAME=FILE"),
        (["a", "--remove=x", "--add=y"], "one of --add and --remove"),
        (["a", "--add=y"], "a is no composed adapter"),
        (["--remove=y"], "folder of one composed adapter"),
        (["--evaluate=y"], "needs --data"),
        (["x/a", "y/a", "--backbone=b", "--to=c"], "two adapters are called 'a'"),
    ],
)
def test_mistakes(words, message, capsys):
    assert main(["compose", *words]) == 2
    assert message in capsys.readouterr().err
