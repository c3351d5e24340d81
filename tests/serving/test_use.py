"""Opening, predicting, generating: with names and tokenizer from the adapter, never from training data."""

import io
import json
from pathlib import Path

import pytest
import torch

import moe_adapt
from moe_adapt.errors import UserError
from moe_adapt.serving import Generating, Sampling, open_model
from moe_adapt.serving.generate import Request
from moe_adapt.serving.opening import open_adapters
from moe_adapt.serving.rows import Scores
from tests.cli.conftest import moe_adapt as command  # noqa: F401  a fixture
from tests.serving.models import NAMES, classifier, language_model


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("served")
    made = {f"c{seed}": classifier(root / f"c{seed}", seed) for seed in (0, 1)}
    made |= {f"l{seed}": language_model(root / f"l{seed}", seed) for seed in (0, 1)}
    return made | {"bert": root / "bert", "llama": root / "llama"}


def test_an_export_knows_its_classes_and_names_no_folder(folders):
    content = json.loads((folders["c0"] / "answering.json").read_text())
    assert content["id2label"] == {"0": "cold", "1": "warm", "2": "mild"}
    assert content["label2id"]["mild"] == 2
    assert content["base"]["backbone"] == "PATH_OF/bert"
    assert str(folders["c0"].parent) not in (folders["c0"] / "answering.json").read_text()
    assert (folders["c0"] / "tokenizer.json").is_file()
    card = (folders["c0"] / "README.md").read_text()
    assert "pipeline(" in card and "`cold`, `warm`, `mild`" in card


def test_three_lines_of_python(folders):
    classify = moe_adapt.pipeline(folders["c0"], base=str(folders["bert"]))
    one = classify("a red thing")
    assert set(one) == {"prediction", "probability"} and one["prediction"] in NAMES
    several = classify(["a red thing", "blue"], top=3)
    assert several[0]["prediction"] == one["prediction"]
    assert sum(item["probability"] for item in several[0]["top"]) == pytest.approx(1, abs=2e-3)

    write = moe_adapt.pipeline(folders["l0"], base=str(folders["llama"]))
    text = write("hello", max_new_tokens=5)
    assert text == write([[{"role": "user", "content": "hello"}]], max_new_tokens=5)[0]


def test_a_base_in_a_folder_has_to_be_given_again(folders):
    with pytest.raises(UserError, match="--base FOLDER"):
        open_model(folders["c0"])


def test_greedy_answers_are_those_of_generate(folders):
    model = open_model(folders["l0"], str(folders["llama"]))
    assert isinstance(model, Generating)
    requests = [
        Request(model.chat_tokens([{"role": "user", "content": text}]), "default", Sampling(max_new_tokens=n))
        for text, n in (("hi", 4), ("a longer question", 7))
    ]
    model.generate(requests)
    for request in requests:
        with torch.inference_mode():
            out = model.model.generate(
                input_ids=torch.tensor([request.tokens]),
                max_new_tokens=request.sampling.max_new_tokens,
                do_sample=False,
            )[0, len(request.tokens) :].tolist()
        ends = model._ends()
        expected = out[: next((i for i, token in enumerate(out) if token in ends), len(out))]
        assert request.written == expected
        assert request.finish == ("stop" if len(expected) < request.sampling.max_new_tokens else "length")


def test_rows_of_a_batch_keep_their_own_options_and_adapters(folders):
    named = {name: str(folders[name]) for name in ("l0", "l1")}
    model = open_adapters(named, str(folders["llama"]))
    tokens = model.chat_tokens([{"role": "user", "content": "tell me"}])

    def request(adapter: str, **options) -> Request:
        return Request(tokens, adapter, Sampling(max_new_tokens=8, **options))

    plan = [
        ("l0", {}),
        ("l1", {}),
        ("l0", {"temperature": 1.5, "seed": 3}),
        ("l1", {"temperature": 1.5, "seed": 3}),
    ]
    together = [request(adapter, **options) for adapter, options in plan]
    model.generate(together)
    for mixed, (adapter, options) in zip(together, plan, strict=True):
        alone = request(adapter, **options)
        model.generate([alone])
        assert alone.written == mixed.written
    assert together[0].written != together[1].written


def test_pieces_add_up_and_stop_words_are_cut(folders):
    model = open_model(folders["l0"], str(folders["llama"]))
    pieces: list[str] = []
    tokens = model.chat_tokens([{"role": "user", "content": "go"}])
    request = Request(tokens, "default", Sampling(12, 1.0, seed=2), emit=pieces.append)
    model.generate([request])
    assert "".join(pieces) == request.text and request.text
    word = next(letter for letter in request.text[1:] if letter.isascii() and letter.isalnum())
    stopped = Request(tokens, "default", Sampling(12, 1.0, seed=2, stop=(word,)))
    model.generate([stopped])
    assert stopped.finish == "stop" and stopped.text == request.text[: request.text.index(word)]


def test_a_request_that_is_called_off_ends_early(folders):
    model = open_model(folders["l0"], str(folders["llama"]))
    tokens = model.chat_tokens([{"role": "user", "content": "go"}])
    seen: list[str] = []
    request = Request(tokens, "default", Sampling(60, 1.0, seed=2), emit=seen.append)
    request.called_off = lambda: len(seen) >= 2
    model.generate([request])
    assert len(request.written) < 20


def test_too_long_and_unknown_are_told(folders):
    model = open_model(folders["l0"], str(folders["llama"]))
    with pytest.raises(UserError, match="takes 256 together"):
        model.generate([Request([5] * 250, "default", Sampling(64))])
    with pytest.raises(UserError, match="no adapter 'defalt'"):
        model.generate([Request([5], "defalt")])


def test_predict_answers_rows_without_labels(command, folders, tmp_path):  # noqa: F811
    (tmp_path / "rows.csv").write_text('text,note\n"a red, thing",x\nblue,y\n')
    words = [folders["c0"], tmp_path / "rows.csv", "--base", folders["bert"]]
    done = command("predict", *words, "--to", "out.jsonl", "--top", 2)
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [row["note"] for row in rows] == ["x", "y"] and [row["id"] for row in rows] == [0, 1]
    assert rows[0]["text"] == "a red, thing" and rows[0]["top"][0]["class"] == rows[0]["prediction"]
    assert len(str(rows[0]["probability"])) <= 6
    again = command("predict", *words, "--to", "out.jsonl")
    assert again.code == 2 and "exists already" in again.err
    assert command("predict", *words, "--to", "out.csv").code == 0
    assert Path("out.csv").read_text().splitlines()[0] == "id,text,note,prediction,probability"
    missing = command(
        "predict", folders["c0"], tmp_path / "rows.csv", "--base", folders["bert"], "--to", "x.txt"
    )
    assert missing.code == 2 and ".jsonl or .csv" in missing.err


def test_predict_reads_standard_input_and_scores_labels(command, folders, monkeypatch):  # noqa: F811
    lines = ["red", '{"text": "blue", "label": "warm"}', ""]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    done = command("predict", folders["c0"], "-", "--base", folders["bert"])
    assert done.code == 0, done.err
    assert len([json.loads(line) for line in done.out.splitlines() if line.startswith("{")]) == 2
    assert "1 labelled rows: accuracy" in done.err


def test_a_bad_row_leaves_no_half_file(command, folders, tmp_path):  # noqa: F811
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n{"txt": "b"}\n')
    failed = command(
        "predict", folders["c0"], tmp_path / "rows.jsonl", "--base", folders["bert"], "--to", "o.jsonl"
    )
    assert failed.code == 2 and "row 1 has no text in column 'text'" in failed.err
    assert not list(Path().glob("*o.jsonl*"))


def test_generate_and_chat(command, folders, tmp_path, monkeypatch):  # noqa: F811
    (tmp_path / "q.jsonl").write_text('{"question": "hi"}\n{"question": "why"}\n')
    model = [folders["l0"], "--base", folders["llama"], "--max_new_tokens", 4]
    done = command("generate", *model, tmp_path / "q.jsonl", "--to", "a.jsonl")
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in Path("a.jsonl").read_text().splitlines()]
    assert [row["question"] for row in rows] == ["hi", "why"] and all("answer" in row for row in rows)
    prompted = command("generate", *model, "--prompt", "hi")
    assert prompted.out.strip().endswith(rows[0]["answer"].strip())
    said = iter(["hi", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(said))
    talked = command("chat", *model)
    assert talked.code == 0 and rows[0]["answer"].strip() in talked.out
    assert "use `moe-adapt predict`" in command("chat", folders["c0"], "--base", folders["bert"]).err


def test_scores_count_as_usual():
    scores = Scores()
    for label, said in (("a", "a"), ("a", "b"), ("b", "b"), (None, "b")):
        scores.add(label, said)
    assert str(scores) == "3 labelled rows: accuracy 0.6667, macro F1 0.6667"
