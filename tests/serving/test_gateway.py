"""The gateway: who a request goes to, what passes through, what is refused; the engine is a stand-in."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import torch

fastapi = pytest.importorskip("fastapi", reason="needs fastapi (extra 'serve')")
pytest.importorskip("uvicorn", reason="needs uvicorn (extra 'serve')")
openai = pytest.importorskip("openai", reason="needs the openai client (extra 'dev')")

from moe_adapt.errors import UserError  # noqa: E402
from moe_adapt.hub.composition import compose  # noqa: E402
from moe_adapt.hub.composition.choosing import ExpertChoice  # noqa: E402
from moe_adapt.hub.load import load_adapter  # noqa: E402
from moe_adapt.serving.http.gateway import Gateway, make_gateway, upstream_models  # noqa: E402
from tests.cli.conftest import moe_adapt as command  # noqa: E402, F401  a fixture
from tests.hub.composition.kitchen import WORDS, batch, llama, llama_adapters, tokenizer  # noqa: E402
from tests.serving.running import Running  # noqa: E402


class Engine:
    """A stand-in for vLLM: it knows models by name, answers with the name, and streams."""

    def __init__(self, models: list[str]) -> None:
        self.models, self.seen, self.left = models, [], asyncio.Event()
        self.app = fastapi.FastAPI()

        @self.app.get("/v1/models")
        async def models_() -> dict:
            return {"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]}

        @self.app.post("/v1/chat/completions")
        async def chat(request: fastapi.Request) -> Any:
            return await self.answer(await request.json(), request)

    async def answer(self, body: dict, request: Any) -> Any:
        self.seen.append((body, dict(request.headers)))
        if body["model"] not in self.models:
            error = {"message": "no such model", "type": "invalid_request_error", "param": None, "code": 404}
            return fastapi.responses.JSONResponse({"error": error}, 404)
        if body["messages"][0]["content"].startswith("fail"):
            return fastapi.responses.JSONResponse({"error": {"message": "overloaded"}}, 503)
        facts = {"id": "c", "created": 0, "model": body["model"]}
        if not body.get("stream"):
            choice = {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": f"from {body['model']}"},
            }
            return {**facts, "object": "chat.completion", "choices": [choice]}

        async def events() -> Any:
            try:
                endless = body.get("max_tokens") == 999
                number = 0
                while endless or number < 3:
                    delta = {"content": f"{body['model']}-{number} "}
                    choice = {"index": 0, "delta": delta, "finish_reason": None}
                    chunk = {**facts, "object": "chat.completion.chunk", "choices": [choice]}
                    yield f"data: {json.dumps(chunk)}\n\n"
                    await asyncio.sleep(0)
                    number += 1
                yield "data: [DONE]\n\n"
            finally:
                self.left.set()

        return fastapi.responses.StreamingResponse(events(), media_type="text/event-stream")


@pytest.fixture(scope="module")
def composed(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("gateway")
    llama().save_pretrained(root / "base")
    tokenizer().save_pretrained(root / "base")
    adapters = llama_adapters(root)
    compose(adapters, WORDS, root / "both", backbone=str(root / "base"), layer=2, abstain=0.0)
    return root / "both"


@pytest.fixture(scope="module")
def choice(composed) -> ExpertChoice:
    return ExpertChoice(composed)


@pytest.fixture
def running(choice):
    engine = Engine(["base", "bank", "news", "food"])
    behind = Running(engine.app)
    gateway = Gateway(f"{behind.url}/v1", "auto", engine.models, "base", choice, max_body=5000, max_open=4)
    front = Running(make_gateway(gateway))
    yield front, engine, gateway
    front.close()
    behind.close()


def client(front: Running) -> Any:
    return openai.OpenAI(base_url=f"{front.url}/v1", api_key="sesame", max_retries=0)


def ask(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def test_the_choice_is_that_of_the_composed_model(composed, choice):
    texts = [text for own in WORDS.values() for text in own]
    model = load_adapter(llama(), composed)
    with torch.inference_mode():
        model(**batch(texts))
    assert choice(texts) == model.base_model.sample_routes().names()
    assert len(set(choice(texts))) == 3


def test_requests_go_to_the_expert_of_their_text_or_to_the_one_they_name(running, choice):
    front, engine, _ = running
    with client(front) as ours:
        assert [m.id for m in ours.models.list()] == ["auto", "base", "bank", "news", "food"]
        for own in WORDS.values():
            (expected,) = choice([own[0]])
            answer = ours.chat.completions.create(model="auto", messages=ask(own[0]), temperature=0.5)
            assert answer.choices[0].message.content == f"from {expected}"
            assert engine.seen[-1][0]["temperature"] == 0.5
        for name in ("news", "base"):
            answer = ours.chat.completions.create(model=name, messages=ask("pay the bill"))
            assert answer.choices[0].message.content == f"from {name}"
    assert engine.seen[-1][1]["authorization"] == "Bearer sesame"


def test_what_the_router_leaves_to_the_base_goes_to_the_base(running):
    front, _, gateway = running
    gateway.choose = lambda texts: [None]
    with client(front) as ours:
        raw = ours.chat.completions.with_raw_response.create(model="auto", messages=ask("anything"))
        assert raw.headers["x-moe-adapt-model"] == "base"
        assert raw.parse().choices[0].message.content == "from base"


def test_streams_pass_through(running):
    front, _, gateway = running
    with client(front) as ours:
        stream = ours.chat.completions.create(model="news", messages=ask("a"), stream=True)
        text = "".join(chunk.choices[0].delta.content for chunk in stream)
    assert text == "news-0 news-1 news-2 "
    assert gateway.open == 0


def test_a_client_that_leaves_ends_the_answer_at_the_engine(running):
    front, engine, gateway = running
    with client(front) as ours:
        stream = ours.chat.completions.create(model="news", messages=ask("a"), stream=True, max_tokens=999)
        next(iter(stream))
        assert gateway.open == 1
        stream.close()
    while not engine.left.is_set() or gateway.open:
        pass


def test_refusals_are_the_protocols(running):
    front, _, gateway = running
    with client(front) as ours:
        with pytest.raises(openai.NotFoundError, match="Did you mean 'news'"):
            ours.chat.completions.create(model="newz", messages=ask("a"))
        with pytest.raises(openai.BadRequestError, match="nothing to decide on"):
            ours.chat.completions.create(model="auto", messages=[{"role": "system", "content": "x"}])
        with pytest.raises(openai.InternalServerError, match="overloaded"):
            ours.chat.completions.create(model="news", messages=ask("fail"))
        gateway.open = 4
        with pytest.raises(openai.RateLimitError):
            ours.chat.completions.create(model="news", messages=ask("a"))
        gateway.open = 0
    for body, status in ((b"{", 400), (b"[]", 400), (b"{}", 400), (b" " * 9000, 413)):
        assert front.post("/v1/chat/completions", body)[0] == status
    assert front.post("/v1/embeddings", {})[1]["error"]["code"] == "not_found"
    assert gateway.open == 0


def test_an_engine_that_is_gone_is_told(choice):
    gateway = Gateway("http://127.0.0.1:9/v1", "auto", ["base"], "base", choice)
    front = Running(make_gateway(gateway))
    status, answer = front.post("/v1/chat/completions", {"model": "base", "messages": ask("a")})
    front.close()
    assert status == 502 and answer["error"]["type"] == "server_error"
    with pytest.raises(UserError, match="does not list its models"):
        upstream_models("http://127.0.0.1:9/v1", seconds=1)


def test_the_command_asks_for_what_is_missing(command, composed, running):  # noqa: F811
    _, engine, _ = running
    behind = Running(engine.app)
    engine.models = ["base", "bank", "food"]
    lost = command("serve", composed, "--upstream", behind.url)
    engine.models = ["bank", "food", "news"]
    headless = command("serve", composed, "--upstream", f"{behind.url}/v1/")
    behind.close()
    assert lost.code == 2 and "no model 'news'" in lost.err and "--form experts" in lost.err
    assert headless.code == 2 and "--upstream_base" in headless.err
    assert "one composed adapter" in command("serve", "a", "b", "--upstream", "http://x").err


def test_experts_of_a_composed_adapter_are_written_for_engines(command, composed):  # noqa: F811
    done = command("export", composed, "--form", "experts", "--to", "out")
    assert done.code == 0, done.err
    assert "--lora-modules bank=out/experts/bank food=out/experts/food news=out/experts/news" in done.out
    assert "SGLang: " in done.out and "LoRAX: " in done.out
    import peft

    inputs = batch(WORDS["bank"])
    model = load_adapter(llama(), composed)
    for name in ("bank", "news"):
        alone = peft.PeftModel.from_pretrained(llama(), f"out/experts/{name}").eval()
        with torch.inference_mode():
            expected = model(**inputs, adapter_ids=[name] * len(WORDS["bank"])).logits
            assert torch.allclose(alone(**inputs).logits, expected, atol=1e-5)
    assert "only --form experts" in command("export", composed, "--to", "other").err
