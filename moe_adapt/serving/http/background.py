"""Run an application in a thread of this process: in a notebook, a test or a benchmark."""

import socket
import threading
from typing import Any, Self

import uvicorn

__all__ = ["BackgroundServer"]


class BackgroundServer:
    """An application on a free port of this machine; ready when the constructor returns.

    Args:
        app: The application (`make_app`, `make_gateway`).

    Attributes:
        url: Where it listens.
    """

    def __init__(self, app: Any) -> None:
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        self.thread = threading.Thread(target=self.server.run, args=([self.socket],))
        self.thread.start()
        while not self.server.started:
            threading.Event().wait(0.01)

    def close(self) -> None:
        """Answer what is asked, then stop."""
        self.server.should_exit = True
        self.thread.join()
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
