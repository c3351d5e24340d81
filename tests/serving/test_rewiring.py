"""`generate --rewire` and `--steer`: zero is nothing, the weights stay, and what they refuse."""

import json
from pathlib import Path

import pytest
import torch

from moe_adapt.evaluation.trace.file import save_trace
from moe_adapt.serving.generate import Request, Sampling
from moe_adapt.serving.opening import open_model
from moe_adapt.serving.rewiring import rewired, steered
from moe_adapt.tuner.tracing import TraceRecorder
from tests.cli.conftest import moe_adapt as command  # noqa: F401  a fixture
from tests.serving.models import language_model


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rewiring")
    language_model(folder / "l")
    model = open_model(folder / "l", str(folder / "llama"))
    for name, text in (("a", "aaaa bbbb"), ("b", "1234 5678")):
        ids = torch.tensor([model.tokenizer(text)["input_ids"]])
        recorder = TraceRecorder(model.model.base_model)
        with recorder.forward(ids):
            model.model(input_ids=ids)
        save_trace(recorder.trace(), folder / name)
    return folder


def answer(model, tokens):
    request = Request(tokens, model.first, Sampling(max_new_tokens=6))
    model.generate([request])
    return request.written


def test_nothing_stays_behind_and_zero_is_nothing(root):
    model = open_model(root / "l", str(root / "llama"))
    tokens = model.chat_tokens([{"role": "user", "content": "hello there"}])
    before, state = answer(model, tokens), {k: v.clone() for k, v in model.model.state_dict().items()}
    for block in (rewired(model, tokens, 0), steered(model, root / "a", root / "b", 0.0)):
        with block:
            assert answer(model, tokens) == before
    ids = torch.tensor([tokens])

    def loss():
        with torch.inference_mode():
            return float(model.model(input_ids=ids, labels=ids).loss)

    plain = loss()
    with rewired(model, tokens, 8, lr=0.5):
        assert loss() < plain
        answer(model, tokens)
    assert loss() == plain and answer(model, tokens) == before
    assert all(torch.equal(model.model.state_dict()[name], tensor) for name, tensor in state.items())


def test_the_command(root, command):  # noqa: F811
    Path("rows.jsonl").write_text("".join(json.dumps({"question": q}) + "\n" for q in ("one", "two three")))
    words = ["--base", root / "llama", "--max_new_tokens", 4, "--overwrite", "--to", "out.jsonl"]
    for more in ([], ["--rewire", 2], ["--steer", root / "a", root / "b", "--strength", 2.0]):
        result = command("generate", root / "l", "rows.jsonl", *words, *more)
        assert result.code == 0, result.err
        assert len(Path("out.jsonl").read_text().splitlines()) == 2
    both = command("generate", root / "l", "rows.jsonl", "--rewire", 2, "--steer", root / "a", root / "b")
    assert both.code == 2 and "--rewire STEPS (0 or more) or --steer A B" in both.err
    missing = command("generate", root / "l", "rows.jsonl", *words, "--steer", root / "a", root / "nowhere")
    assert missing.code == 2 and "there is no routing trace" in missing.err
