"""A gateway: it decides which adapter a request is for, and another engine writes the answer.

The experts are loaded in an engine that serves LoRAs by name and speaks OpenAI's protocol (vLLM, SGLang,
LoRAX). A request that names a model of the engine goes there as it is. One that names the gateway's own
model is decided by the router of a composed adapter on what the users said in it, and gets the expert's name;
what the router leaves to the base goes to the base. Answers pass through as they come, streams included. The
header ``x-moe-adapt-model`` says who answered.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from moe_adapt.errors import UserError, did_you_mean
from moe_adapt.serving.http.limit import BodyLimit
from moe_adapt.serving.http.protocol import Refusal

__all__ = ["Gateway", "make_gateway", "upstream_models"]

#: Headers of a request that are handed on.
HANDED_ON = ("authorization", "x-request-id")

Choose = Callable[[Sequence[str]], list[str | None]]


@dataclass
class Gateway:
    """What is decided by whom, and who answers.

    Attributes:
        upstream: Address of the engine, with its ``/v1``.
        name: The model whose requests are decided here.
        models: What the engine serves.
        base: Its base model.
        choose: Returns the expert of each text, or None for the base.
        max_body: Bytes of a request.
        max_seconds: Seconds of a request.
        max_open: Requests at a time; more are refused.
        open: Requests that are open now.
    """

    upstream: str
    name: str
    models: Sequence[str]
    base: str
    choose: Choose
    max_body: int = 1_000_000
    max_seconds: float = 120.0
    max_open: int = 256
    open: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.deciding = asyncio.Lock()

    async def decide(self, asked: Any, content: Mapping[str, Any]) -> str:
        """Return the engine's model for a request.

        Args:
            asked: The model that it names.
            content: The request.

        Raises:
            Refusal: If there is no such model, or nothing to decide on.
        """
        if asked in self.models:
            return str(asked)
        if asked != self.name:
            known = [self.name, *self.models]
            near = did_you_mean(str(asked), known)
            message = f"there is no model {asked!r}.{near} /v1/models lists them."
            raise Refusal(404, message, "model_not_found", "model")
        text = said_by_users(content)
        if not text.strip():
            raise Refusal(400, "no user says anything, so there is nothing to decide on.", "invalid_request")
        async with self.deciding:
            try:
                (name,) = await asyncio.to_thread(self.choose, [text])
            except UserError as error:
                raise Refusal(400, str(error), "invalid_request", "messages") from error
        return name or self.base


def said_by_users(content: Mapping[str, Any]) -> str:
    """Return what the users of a request say, a line for each turn; of a completion its prompt.

    >>> said_by_users({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})
    'a'
    """
    if isinstance(content.get("prompt"), str):
        return content["prompt"]
    messages = content.get("messages")
    parts = []
    for message in messages if isinstance(messages, list) else []:
        if not isinstance(message, dict) or message.get("role") != "user":
            continue
        said = message.get("content")
        if isinstance(said, list):
            said = "".join(str(part.get("text", "")) for part in said if isinstance(part, dict))
        parts.append(str(said or ""))
    return "\n".join(parts)


def upstream_models(upstream: str, key: str | None = None, seconds: float = 10.0) -> list[str]:
    """Return the models of an engine.

    Args:
        upstream: Its address, with its ``/v1``.
        key: Its key, if it needs one.
        seconds: How long to wait.

    Raises:
        UserError: If it does not answer as the protocol says.
    """
    heads = {} if key is None else {"authorization": f"Bearer {key}"}
    try:
        answer = httpx2.get(f"{upstream}/models", headers=heads, timeout=seconds)
        answer.raise_for_status()
        return [str(model["id"]) for model in answer.json()["data"]]
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"the engine at {upstream} does not list its models ({reason}): give the address of a running "
            "OpenAI-compatible server, such as http://127.0.0.1:8001/v1."
        ) from error


def make_gateway(gateway: Gateway) -> FastAPI:
    """Return the application.

    Args:
        gateway: What is decided by whom, and who answers.
    """
    client = httpx2.AsyncClient(
        timeout=httpx2.Timeout(gateway.max_seconds, connect=10.0),
        limits=httpx2.Limits(max_connections=gateway.max_open),
        trust_env=False,
    )

    @asynccontextmanager
    async def closing(app: FastAPI) -> AsyncIterator[None]:
        async with client:
            yield

    app = FastAPI(
        title="moe-adapt gateway", docs_url=None, redoc_url=None, openapi_url=None, lifespan=closing
    )
    app.add_middleware(BodyLimit, most=gateway.max_body)

    @app.exception_handler(Refusal)
    async def refused(request: Request, refusal: Refusal) -> JSONResponse:
        heads = {"Retry-After": "1"} if refusal.status == 429 else None
        return JSONResponse(refusal.body(), refusal.status, heads)

    @app.exception_handler(404)
    async def unknown(request: Request, error: Any) -> JSONResponse:
        return JSONResponse(Refusal(404, f"there is nothing at {request.url.path}.", "not_found").body(), 404)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "open": gateway.open}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        rows = [
            {"id": name, "object": "model", "created": 0, "owned_by": "moe-adapt"}
            for name in (gateway.name, *gateway.models)
        ]
        return {"object": "list", "data": rows}

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await _forward(gateway, client, request, "chat/completions")

    @app.post("/v1/completions")
    async def complete(request: Request) -> Response:
        return await _forward(gateway, client, request, "completions")

    return app


async def _forward(gateway: Gateway, client: httpx2.AsyncClient, request: Request, path: str) -> Response:
    try:
        content = json.loads(await request.body())
    except ValueError as error:
        raise Refusal(400, f"the body is no JSON ({error}).", "invalid_request") from error
    if not isinstance(content, dict) or "model" not in content:
        raise Refusal(400, "the body is an object with a model.", "invalid_request", "model")
    if gateway.open >= gateway.max_open:
        raise Refusal(429, f"{gateway.open} requests are open already; try again in a second.", "overloaded")
    gateway.open += 1
    passed = False
    try:
        model = await gateway.decide(content["model"], content)
        heads = {name: request.headers[name] for name in HANDED_ON if name in request.headers}
        sent = client.build_request(
            "POST", f"{gateway.upstream}/{path}", json={**content, "model": model}, headers=heads
        )
        try:
            answer = await client.send(sent, stream=True)
        except httpx2.TimeoutException as error:
            raise Refusal(504, f"no answer within {gateway.max_seconds:g} seconds.", "timeout") from error
        except httpx2.HTTPError as error:
            raise Refusal(502, f"the engine cannot be reached ({error}).", "upstream") from error
        passed = True
    finally:
        gateway.open -= not passed
    return _Passed(gateway, answer, model)


class _Passed(StreamingResponse):
    """An answer of the engine, handed on as it comes; a client that leaves ends it at the engine, too."""

    def __init__(self, gateway: Gateway, answer: httpx2.Response, model: str) -> None:
        self.gateway, self.answer = gateway, answer
        kind = answer.headers.get("content-type", "application/json")
        heads = {"x-moe-adapt-model": model}
        super().__init__(self._parts(kind), answer.status_code, heads, media_type=kind)

    async def _parts(self, kind: str) -> AsyncIterator[bytes]:
        try:
            async for part in self.answer.aiter_bytes():
                yield part
        except httpx2.HTTPError as error:
            if not kind.startswith("text/event-stream"):
                raise
            refusal = Refusal(502, f"the engine broke off ({type(error).__name__}).", "upstream")
            yield f"data: {json.dumps(refusal.body())}\n\n".encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send it, and let go of the engine however that ends."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.gateway.open -= 1
            await self.answer.aclose()
