"""Refuse large bodies before they are read to the end."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

from moe_adapt.serving.http.protocol import Refusal

__all__ = ["BodyLimit"]


class BodyLimit:
    """Middleware that answers 413 once a body has more bytes than allowed, whatever its headers say.

    Args:
        app: The application.
        most: The most bytes.
    """

    def __init__(self, app: Any, most: int) -> None:
        self.app, self.most = app, most

    async def __call__(self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        """Pass a request on with its body counted."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self.most:
            await self._refuse(send)
            return
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return
            parts.append(message.get("body", b""))
            size, more = size + len(parts[-1]), message.get("more_body", False)
            if size > self.most:
                await self._refuse(send)
                return
        whole = {"type": "http.request", "body": b"".join(parts), "more_body": False}
        given = False

        async def replay() -> Any:
            nonlocal given
            if given:
                return await receive()
            given = True
            return whole

        await self.app(scope, replay, send)

    async def _refuse(self, send: Any) -> None:
        refusal = Refusal(413, f"the request has more than {self.most:,} bytes.", "request_too_large")
        body = json.dumps(refusal.body()).encode()
        heads = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        heads.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": 413, "headers": heads})
        await send({"type": "http.response.body", "body": body})
