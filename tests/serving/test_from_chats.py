"""From a file of chats to a model that chats and answers OpenAI's own client, through the command line."""

import io
import json

import pytest

pytest.importorskip("uvicorn", reason="needs uvicorn (extra 'serve')")
openai = pytest.importorskip("openai", reason="needs the openai client (extra 'dev')")

from moe_adapt.serving.http import Engine, Limits, make_app  # noqa: E402
from moe_adapt.serving.opening import open_model  # noqa: E402
from tests.cli.conftest import moe_adapt as command  # noqa: E402, F401  a fixture
from tests.serving.running import Running  # noqa: E402
from tests.training.tiny import tiny_llama  # noqa: E402

WORDS = ["hello", "where is it", "a red thing", "again please", "one more"]


@pytest.mark.slow
def test_chats_become_a_model_that_chats_and_serves(command, tmp_path, monkeypatch):  # noqa: F811
    tiny_llama(tmp_path / "base", chat=True)
    turns = [
        [
            {"role": "user", "content": f"{WORDS[number % 5]} {number}"},
            {"role": "assistant", "content": "blue"},
        ]
        for number in range(40)
    ]
    lines = [json.dumps({"messages": both + turns[0] if both is turns[1] else both}) for both in turns]
    (tmp_path / "chats.jsonl").write_text("\n".join(lines) + "\n")
    fitted = command(
        *("fit", "--config", "base", "--config", "task/causal_lm", "--config", "routed_lora/top_k"),
        *("--model.backbone", "base", "--data.train", "chats.jsonl", "--out", "run"),
        *("--trainer.accelerator", "cpu", "--trainer.max_epochs", "20", "--model.lr", "2e-2"),
        *("--data.batch_size", "8", "--preview.prompts", "0"),
    )
    assert fitted.code == 0, fitted.err
    assert "moe-adapt chat run" in fitted.out

    monkeypatch.setattr("sys.stdin", io.StringIO("hello 7\nwhere is it 8\n"))
    chatted = command("chat", "run", "--max_new_tokens", "8")
    assert chatted.code == 0 and chatted.out.count("blue") == 2, chatted.out

    engine = Engine(open_model("run"))
    with Running(make_app(engine, Limits(20_000, 60.0, 40, 8))) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        ask = {"model": client.models.list().data[0].id, "temperature": 0, "max_tokens": 8}
        ask["messages"] = [{"role": "user", "content": "hello 7"}]
        whole = client.chat.completions.create(**ask)
        assert whole.choices[0].message.content == "blue" and whole.choices[0].finish_reason == "stop"
        pieces = client.chat.completions.create(**ask, stream=True)
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == "blue"
    engine.close()
