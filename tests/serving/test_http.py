"""The server on the loopback, through OpenAI's own client and through bad requests."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

fastapi = pytest.importorskip("fastapi", reason="needs fastapi (extra 'serve')")
uvicorn = pytest.importorskip("uvicorn", reason="needs uvicorn (extra 'serve')")
openai = pytest.importorskip("openai", reason="needs the openai client (extra 'dev')")

from urllib.request import urlopen  # noqa: E402

from moe_adapt.serving.http import Engine, Limits, make_app  # noqa: E402
from moe_adapt.serving.http.engine import Busy, Job  # noqa: E402
from moe_adapt.serving.opening import open_adapters, open_model  # noqa: E402
from tests.serving.models import NAMES, classifier, language_model  # noqa: E402
from tests.serving.running import Running  # noqa: E402


class Server(Running):
    """Our application over an engine."""

    def __init__(self, model: Any, limits: Limits, **options: Any) -> None:
        self.engine = Engine(model, **options)
        super().__init__(make_app(self.engine, limits))

    def close(self) -> None:
        super().close()
        self.engine.close()


LIMITS = Limits(max_body=20_000, max_seconds=60, max_new_tokens=40, max_rows=8)


@pytest.fixture(scope="module")
def chat(tmp_path_factory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("chat")
    named = {f"l{seed}": str(language_model(root / f"l{seed}", seed)) for seed in (0, 1)}
    server = Server(open_adapters(named, str(root / "llama")), LIMITS, max_waiting=128)
    yield server
    server.close()


@pytest.fixture(scope="module")
def classes(tmp_path_factory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("classes")
    named = {f"c{seed}": str(classifier(root / f"c{seed}", seed)) for seed in (0, 1)}
    server = Server(open_adapters(named, str(root / "bert")), LIMITS)
    yield server
    server.close()


def client(server: Server) -> Any:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


ASK = [{"role": "user", "content": "hello"}]


def test_the_official_client_lists_completes_and_streams(chat):
    with client(chat) as ours:
        assert [model.id for model in ours.models.list()] == ["l0", "l1"]
        whole = ours.chat.completions.create(model="l0", messages=ASK, temperature=0, max_tokens=8)
        assert whole.choices[0].message.role == "assistant"
        assert whole.choices[0].finish_reason in ("stop", "length")
        assert whole.usage.completion_tokens <= 8
        stream = ours.chat.completions.create(
            model="l0",
            messages=ASK,
            temperature=0,
            max_tokens=8,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == whole.choices[0].message.content
        assert chunks[-1].usage == whole.usage


def test_errors_are_the_protocols(chat):
    with client(chat) as ours:
        with pytest.raises(openai.NotFoundError) as unknown:
            ours.chat.completions.create(model="l9", messages=ASK)
        assert unknown.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError, match="temperature"):
            ours.chat.completions.create(model="l0", messages=ASK, temperature=9)
        with pytest.raises(openai.BadRequestError, match="together"):
            ours.chat.completions.create(model="l0", messages=[{"role": "user", "content": "x" * 400}])
    for body in (b"{", b"[]", b'{"model": "l0"}', b"\xff\xfe"):
        status, answer = chat.post("/v1/chat/completions", body)
        assert status == 400 and answer["error"]["type"] == "invalid_request_error"
    status, answer = chat.post("/v1/chat/completions", b" " * 30_000)
    assert status == 413 and answer["error"]["code"] == "request_too_large"
    assert chat.post("/classify", {"inputs": "x"})[0] == 404
    assert chat.post("/nowhere", {})[1]["error"]["code"] == "not_found"


def test_many_clients_with_mixed_adapters_and_aborts(chat):
    expected = {}
    with client(chat) as ours:
        for adapter in ("l0", "l1"):
            for number in range(3):
                messages = [{"role": "user", "content": f"say {number}"}]
                done = ours.chat.completions.create(
                    model=adapter, messages=messages, temperature=0, max_tokens=10
                )
                expected[adapter, number] = done.choices[0].message.content

    async def one(ours: Any, place: int) -> bool:
        adapter, number = f"l{place % 2}", place % 3
        messages = [{"role": "user", "content": f"say {number}"}]
        options = {"model": adapter, "messages": messages, "temperature": 0, "max_tokens": 10}
        if place % 5 == 4:  # leaves after the first piece
            stream = await ours.chat.completions.create(**options, stream=True)
            async for _ in stream:
                break
            await stream.close()
            return True
        done = await ours.chat.completions.create(**options)
        return done.choices[0].message.content == expected[adapter, number]

    async def all_of_them() -> list[bool]:
        async with openai.AsyncOpenAI(base_url=f"{chat.url}/v1", api_key="none", max_retries=0) as ours:
            return await asyncio.gather(*(one(ours, place) for place in range(50)))

    assert all(asyncio.run(all_of_them()))
    assert any(size > 1 and adapters == 2 for size, adapters in chat.engine.batches)
    with client(chat) as ours:  # and it is well afterwards
        ours.chat.completions.create(model="l1", messages=ASK, max_tokens=2)


def test_classification_of_mixed_adapters(classes):
    texts = ["a red thing", "blue"]
    status, answer = classes.post("/classify", {"model": "c1", "inputs": texts, "top": 3})
    assert status == 200 and answer["model"] == "c1"
    assert {item["class"] for item in answer["results"][0]["top"]} == set(NAMES)
    model = classes.engine.model
    mixed = model(texts * 2, 1, ["c0", "c0", "c1", "c1"])
    assert [a.prediction for a in mixed[2:]] == [row["prediction"] for row in answer["results"]]
    assert classes.post("/classify", {"inputs": ["x"] * 9})[0] == 413
    assert classes.post("/classify", {"inputs": [["a", "b"]]})[0] == 400
    assert classes.post("/classify", {"inputs": "x", "modell": "c0"})[1]["error"]["param"] == "modell"
    with urlopen(classes.url + "/") as page:
        text = page.read().decode()
    assert "<option>c1</option>" in text and "classify" in text


def test_a_full_queue_is_refused(tmp_path):
    model = open_model(classifier(tmp_path / "c"), str(tmp_path / "bert"))
    gate, entered = threading.Event(), threading.Event()

    class Slow(type(model)):  # type: ignore[misc]
        def __call__(self, *args: Any) -> Any:
            entered.set()
            gate.wait()
            return super().__call__(*args)

    model.__class__ = Slow
    engine = Engine(model, max_batch=1, max_waiting=2)
    engine.submit(Job("default", inputs=["a"]))
    entered.wait()
    engine.submit(Job("default", inputs=["b"]))
    engine.submit(Job("default", inputs=["c"]))
    with pytest.raises(Busy):
        engine.submit(Job("default", inputs=["d"]))
    gate.set()
    engine.close()


def test_a_job_that_fails_does_not_cost_others_theirs(tmp_path):
    model = open_model(classifier(tmp_path / "c"), str(tmp_path / "bert"))
    engine = Engine(model)
    good, bad = Job("default", inputs=["a"]), Job("nobody", inputs=["b"])
    engine._answer([good, bad])
    engine.close()
    assert good.error is None and good.answers
    assert "no adapter 'nobody'" in str(bad.error)
