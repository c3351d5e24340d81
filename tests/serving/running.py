"""A FastAPI application on a free port, in a thread, and a plain client for it."""

import json
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from moe_adapt.serving.http.background import BackgroundServer


class Running(BackgroundServer):
    """The server; ``url`` is where it listens."""

    def post(self, path: str, body: bytes | dict) -> tuple[int, dict]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = Request(self.url + path, data, {"content-type": "application/json"}, method="POST")
        try:
            with urlopen(request) as answer:
                return answer.status, json.load(answer)
        except HTTPError as error:
            return error.code, json.load(error)
