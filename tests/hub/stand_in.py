"""A Hugging Face Hub of our own: the few routes that push and pull need, on a port of this machine.

`Hub` holds repositories as lists of commits. `hub.fail[part of a route] = status` makes requests to it fail;
`hub.token` is the only token with which private repositories open and anything can be written. Files travel
inside the commit request: the real Hub's separate store for large files is not part of this.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]


@dataclass
class Repository:
    """Commits, oldest first, each with an id and all its files; names for some of them."""

    private: bool = False
    commits: list[tuple[str, Files]] = field(default_factory=list)

    def at(self, revision: str) -> tuple[str, Files] | None:
        """The commit of a revision."""
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit[0] == revision), None)


class Hub:
    """The server; use it as a context manager."""

    token = "hf_right"

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.fail: dict[str, int] = {}
        self.requests: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        self._handle(b"")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self._handle(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def log_message(self, *_: Any) -> None:
        pass

    def _handle(self, body: bytes) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        for part, status in self.hub.fail.items():
            if part in path:
                return self._send(status, {"error": "told to fail"})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._send(200, {"errors": [], "warnings": []})
        if path == "/api/whoami-v2":
            return (
                self._send(200, {"name": "me", "type": "user"}) if self._authorised() else self._send(401, {})
            )
        if match := re.fullmatch(
            r"/api/models/([^/]+/[^/]+)/(preupload|commit|tree|revision)/([^/]+)/?", path
        ):
            return self._of_repository(*match.groups(), body)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)", path):
            return self._of_repository(match[1], "revision", "main", body)
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._file(*match.groups())
        self._send(404, {"error": f"no route {path}"})

    def _authorised(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def _create(self, wish: dict[str, Any]) -> None:
        name = f"{wish['organization']}/{wish['name']}" if wish.get("organization") else f"me/{wish['name']}"
        if not self._authorised():
            return self._send(401, {"error": "Invalid username or password."})
        if name in self.hub.repositories:
            return self._send(409, {"url": f"{self.hub.url}/{name}"})
        first = (_digest(name), {".gitattributes": b""})
        self.hub.repositories[name] = Repository(
            wish.get("visibility") == "private" or wish.get("private", False), [first]
        )
        self._send(200, {"url": f"{self.hub.url}/{name}", "id": name, "name": name})

    def _of_repository(self, name: str, what: str, revision: str, body: bytes) -> None:
        repository = self._readable(name)
        if repository is None:
            return
        commit = repository.at(revision)
        if commit is None:
            return self._send(404, {"error": "no revision"}, {"X-Error-Code": "RevisionNotFound"})
        sha, files = commit
        if what == "revision":
            siblings = [{"rfilename": path} for path in files]
            return self._send(
                200, {"id": name, "sha": sha, "siblings": siblings, "private": repository.private}
            )
        if what == "tree":
            return self._send(200, [_entry(path, content) for path, content in files.items()])
        if not self._authorised():
            return self._send(403, {"error": "no write access"})
        if what == "preupload":
            wanted = json.loads(body)["files"]
            plain = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            return self._send(200, {"files": [{"path": file["path"], **plain} for file in wanted]})
        files = dict(files)
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "deletedFile":
                del files[line["value"]["path"]]
        new = _digest(f"{sha}{len(repository.commits)}")
        repository.commits.append((new, files))
        address = f"{self.hub.url}/{name}/commit/{new}"
        self._send(200, {"commitUrl": address, "commitOid": new, "success": True, "hookOutput": ""})

    def _file(self, name: str, revision: str, path: str) -> None:
        repository = self._readable(name)
        if repository is None:
            return
        commit = repository.at(revision)
        if commit is None:
            return self._send(404, {}, {"X-Error-Code": "RevisionNotFound"})
        sha, files = commit
        if path not in files:
            return self._send(404, {}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
        headers = {"ETag": f'"{hashlib.sha1(files[path]).hexdigest()}"', "X-Repo-Commit": sha}
        self._send(200, files[path], headers)

    def _readable(self, name: str) -> Repository | None:
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not self._authorised()):
            self._send(401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return None
        return repository

    def _send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _digest(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()


def _entry(path: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
