"""The application: which address answers what, and within which limits."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse

from moe_adapt.errors import UserError, did_you_mean
from moe_adapt.serving.classify import Classifying
from moe_adapt.serving.generate import Request as Writing
from moe_adapt.serving.generate import Sampling
from moe_adapt.serving.http.engine import Busy, Engine, Job
from moe_adapt.serving.http.limit import BodyLimit
from moe_adapt.serving.http.page import try_page
from moe_adapt.serving.http.protocol import ChatRequest, ClassifyRequest, Refusal, text_of

__all__ = ["Limits", "make_app"]


@dataclass(frozen=True)
class Limits:
    """What one request may cost.

    Attributes:
        max_body: Bytes of a request.
        max_seconds: Seconds from its arrival to its last token.
        max_new_tokens: Tokens of an answer; also the default.
        max_rows: Rows of a classification.
    """

    max_body: int = 1_000_000
    max_seconds: float = 120.0
    max_new_tokens: int = 512
    max_rows: int = 256


def make_app(engine: Engine, limits: Limits | None = None) -> FastAPI:
    """Return the application over an engine.

    Args:
        engine: Answers.
        limits: What one request may cost.
    """
    service = _Service(engine, limits or Limits())
    app = FastAPI(title="moe-adapt", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(BodyLimit, most=service.limits.max_body)

    @app.exception_handler(Refusal)
    async def refused(request: Request, refusal: Refusal) -> JSONResponse:
        heads = {"Retry-After": "1"} if refusal.status == 429 else None
        return JSONResponse(refusal.body(), refusal.status, heads)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        refusal = Refusal(400, f"{place or 'body'}: {first['msg']}", "invalid_request", place or None)
        return JSONResponse(refusal.body(), 400)

    @app.exception_handler(404)
    async def unknown(request: Request, error: Any) -> JSONResponse:
        refusal = Refusal(404, f"there is nothing at {request.url.path}.", "not_found")
        return JSONResponse(refusal.body(), 404)

    @app.get("/", response_class=HTMLResponse)
    async def page() -> str:
        return try_page(list(engine.model.adapters), isinstance(engine.model, Classifying))

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "waiting": engine.waiting.qsize()}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        rows = [_model_row(name) for name in engine.model.adapters]
        return {"object": "list", "data": rows}

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Any:
        return await service.chat(body, request)

    @app.post("/classify")
    async def classify(body: ClassifyRequest, request: Request) -> dict[str, Any]:
        return await service.classify(body, request)

    return app


def _model_row(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "moe-adapt"}


class _Service:
    """The requests' way through the engine."""

    def __init__(self, engine: Engine, limits: Limits) -> None:
        self.engine, self.limits = engine, limits

    async def classify(self, body: ClassifyRequest, request: Request) -> dict[str, Any]:
        """Answer ``POST /classify``."""
        model = self.engine.model
        if not isinstance(model, Classifying):
            raise Refusal(404, "this server has a language model: ask /v1/chat/completions.", "not_found")
        if model.images:
            raise Refusal(400, "images are classified by `moe-adapt predict`, not over HTTP.", "unsupported")
        rows = [body.inputs] if isinstance(body.inputs, str) else body.inputs
        if len(rows) > self.limits.max_rows:
            raise Refusal(
                413, f"the request has {len(rows)} rows, {self.limits.max_rows} are allowed.", "too_many"
            )
        inputs = [row if isinstance(row, str) else tuple(row) for row in rows]
        columns = len(model.columns)
        if any(columns != (1 if isinstance(row, str) else len(row)) for row in inputs):
            raise Refusal(
                400, f"every input has {columns} text(s): {', '.join(model.columns)}.", "invalid", "inputs"
            )
        job = Job(self._adapter(body.model), inputs=inputs, top=body.top, domain=body.domain)
        await self._answered(job, request)
        return {"model": job.adapter, "results": [answer.row(body.top > 1) for answer in job.answers]}

    async def chat(self, body: ChatRequest, request: Request) -> Any:
        """Answer ``POST /v1/chat/completions``."""
        model = self.engine.model
        if isinstance(model, Classifying):
            raise Refusal(404, "this server has a classifier: ask /classify.", "not_found")
        adapter = self._adapter(body.model)
        messages = [{"role": m.role, "content": text_of(m.content)} for m in body.messages]
        asked = body.max_completion_tokens or body.max_tokens or self.limits.max_new_tokens
        stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
        temperature = 1.0 if body.temperature is None else body.temperature
        try:
            tokens = model.chat_tokens(messages, adapter)
            most = min(asked, self.limits.max_new_tokens)
            if body.max_completion_tokens is None and body.max_tokens is None:
                most = max(1, min(most, model.context - len(tokens)))
            sampling = Sampling(most, temperature, body.top_p or 1.0, body.seed, stop)
            writing = Writing(tokens, adapter, sampling, domain=body.domain)
            model.check(writing)
        except UserError as error:
            raise Refusal(400, str(error), "invalid_request", "messages") from error
        job = Job(adapter, request=writing)
        writing.called_off = job.dropped.is_set
        facts = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": adapter}
        if body.stream:
            usage = body.stream_options is not None and body.stream_options.include_usage
            pieces = self._submit_streaming(job)
            return StreamingResponse(self._events(job, pieces, facts, usage), media_type="text/event-stream")
        await self._answered(job, request)
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": writing.text},
            "finish_reason": writing.finish,
            "logprobs": None,
        }
        return {**facts, "object": "chat.completion", "choices": [choice], "usage": _usage(writing)}

    def _adapter(self, asked: str | None) -> str:
        known = self.engine.model.adapters
        if asked is None:
            return self.engine.model.first
        if asked not in known:
            message = f"there is no model {asked!r}.{did_you_mean(asked, known)} /v1/models lists them."
            raise Refusal(404, message, "model_not_found", "model")
        return asked

    def _submit(self, job: Job) -> None:
        try:
            self.engine.submit(job)
        except Busy:
            message = f"{self.engine.waiting.maxsize} requests wait already; try again in a second."
            raise Refusal(429, message, "overloaded") from None

    async def _answered(self, job: Job, request: Request) -> None:
        """Wait for a job, as long as the limit allows and the client is there."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        job.notify = lambda: loop.call_soon_threadsafe(done.set)
        self._submit(job)
        end = loop.time() + self.limits.max_seconds
        try:
            while not done.is_set():
                try:
                    await asyncio.wait_for(done.wait(), min(0.25, max(0.0, end - loop.time())))
                except TimeoutError:
                    if loop.time() >= end:
                        message = f"no answer within {self.limits.max_seconds:g} seconds."
                        raise Refusal(504, message, "timeout") from None
                    if await request.is_disconnected():
                        raise Refusal(499, "the client has gone.", "disconnected") from None
        finally:
            job.dropped.set()
        if job.error is not None:
            raise _refusal_of(job.error)

    def _submit_streaming(self, job: Job) -> asyncio.Queue[str | None]:
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[str | None] = asyncio.Queue()
        assert job.request is not None
        job.request.emit = lambda piece: loop.call_soon_threadsafe(pieces.put_nowait, piece)
        job.notify = lambda: loop.call_soon_threadsafe(pieces.put_nowait, None)
        self._submit(job)
        return pieces

    async def _events(
        self, job: Job, pieces: asyncio.Queue[str | None], facts: Mapping[str, Any], usage: bool
    ) -> AsyncIterator[str]:
        """Yield the chunks of a streamed answer; a client that leaves calls the job off."""
        assert job.request is not None

        def chunk(delta: Mapping[str, Any], finish: str | None = None) -> str:
            choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
            return _event({**facts, "object": "chat.completion.chunk", "choices": [choice]})

        loop = asyncio.get_running_loop()
        end = loop.time() + self.limits.max_seconds
        try:
            yield chunk({"role": "assistant", "content": ""})
            while True:
                piece = await asyncio.wait_for(pieces.get(), max(0.0, end - loop.time()))
                if piece is None:
                    break
                yield chunk({"content": piece})
            if job.error is not None:
                yield _event(_refusal_of(job.error).body())
                return
            yield chunk({}, job.request.finish)
            if usage:
                last = {
                    **facts,
                    "object": "chat.completion.chunk",
                    "choices": [],
                    "usage": _usage(job.request),
                }
                yield _event(last)
            yield "data: [DONE]\n\n"
        except TimeoutError:
            message = f"no answer within {self.limits.max_seconds:g} seconds."
            yield _event(Refusal(504, message, "timeout").body())
        finally:
            job.dropped.set()


def _event(content: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def _usage(writing: Writing) -> dict[str, int]:
    prompt, written = len(writing.tokens), len(writing.written)
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}


def _refusal_of(error: Exception) -> Refusal:
    if isinstance(error, Refusal):
        return error
    if isinstance(error, UserError):
        return Refusal(400, str(error), "invalid_request")
    return Refusal(500, f"the model failed ({type(error).__name__}); the server's log says more.", "internal")
