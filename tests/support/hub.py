"""A hub on loopback: the real one's endpoints, with faults to order; large files come from a CDN on another port.

Answers have the form of huggingface.co's (`/api/models/…?blobs=true`, `/api/models?search=`, `/OWNER/REPO/resolve/…`):
large files (LFS) are redirected to a signed address of the CDN with `X-Repo-Commit`, `X-Linked-Size` and
`X-Linked-ETag`, small ones are answered at once.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from oprel.sources.hub import HubAccess
from support.local_server import LocalServer

__all__ = ["Handler", "HubServer", "Repo", "running_hub"]

_BLOCK = 1 << 16
_LARGE = 10_000  # the hub's own limit for git files is larger; tests' models aren't


@dataclass
class Repo:
    """One repository; `branches` are others by name, `past` the commits that `main` was at. `digests` tells lies about
    files, by name."""

    id: str
    files: dict[str, bytes | Path]
    gated: bool = False
    private: bool = False
    license: str | None = "apache-2.0"
    parameters: int | None = None
    branches: dict[str, dict[str, bytes | Path]] = field(default_factory=dict)
    past: dict[str, dict[str, bytes | Path]] = field(default_factory=dict)
    digests: dict[str, str | None] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)

    def content(self, revision: str) -> dict[str, bytes | Path] | None:
        return self._at(revision)[1]

    def commit_at(self, revision: str) -> str:
        return self._at(revision)[0]

    def move_on(self, files: Mapping[str, bytes | Path]) -> str:
        """A new commit on `main`; the one before, which stays."""
        before = self.commit()
        self.past[before] = self.files
        self.files = dict(files)
        return before

    def _at(self, revision: str) -> tuple[str, dict[str, bytes | Path] | None]:
        if revision in ("main", self.commit()):
            return self.commit(), self.files
        for name, files in self.branches.items():
            if revision in (name, self.commit(name)):
                return self.commit(name), files
        return revision, self.past.get(revision)

    def commit(self, branch: str = "main") -> str:
        files = self.files if branch == "main" else self.branches[branch]
        told = sorted((name, _sha256(data)) for name, data in files.items())
        return _sha1(f"{self.id} {branch} {told}".encode())

    def is_large(self, name: str, data: bytes | Path) -> bool:
        return name in self.large or name.endswith((".gguf", ".safetensors", ".bin")) or _size(data) > _LARGE


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer | _Cdn

    def do_GET(self) -> None:
        headers = {key.lower(): value for key, value in self.headers.items()}
        self.server.requests.append((self.path, headers))
        special = self.server.special.get(urlsplit(self.path).path)
        if special is not None:
            special(self)
        else:
            self.server.respond(self)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Quiet."""

    def answer(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def json(self, value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        kind = {"Content-Type": "application/json; charset=utf-8"}
        self.answer(status, json.dumps(value).encode(), {**kind, **(headers or {})})


class _Cdn(LocalServer):
    """Files by digest; `at_most` bytes of an answer are sent, then the connection is cut; `per_block` is called before
    each block."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes | Path] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.special: dict[str, Callable[[Handler], None]] = {}
        self.takes_ranges = True
        self.cuts: list[int] = []
        self.per_block: Callable[[], None] = lambda: None
        self.sent_bytes = 0

    def respond(self, handler: Handler) -> None:
        data = self.files.get(urlsplit(handler.path).path.rpartition("/")[2])
        if data is None or "X-Amz-Signature=" not in handler.path:
            handler.answer(403, b"AccessDenied")
            return
        size, tag = _size(data), f'"{_sha256(data)}"'
        first, last, status = 0, size - 1, 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("Range", ""))
        if asked is not None and self.takes_ranges and handler.headers.get("If-Range", tag) == tag:
            first, last = int(asked[1]), min(int(asked[2] or last), last)
            status = 206
        handler.send_response(status)
        handler.send_header("Content-Length", str(last - first + 1))
        handler.send_header("Accept-Ranges", "bytes")
        handler.send_header("ETag", tag)
        if status == 206:
            handler.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        handler.end_headers()
        self._send(handler, data, first, last)

    def _send(self, handler: Handler, data: bytes | Path, first: int, last: int) -> None:
        left = min(last - first + 1, self.cuts.pop(0) if self.cuts else 1 << 62)
        is_cut = left < last - first + 1
        try:
            for block in _blocks(data, first, left):
                self.per_block()
                handler.wfile.write(block)
                self.sent_bytes += len(block)
        except OSError:  # whoever asked has gone
            is_cut = True
        handler.close_connection = handler.close_connection or is_cut


class HubServer(LocalServer):
    """`repos` by id; `special` takes a path over; `tokens` are those that may see what is gated or private."""

    daemon_threads = True

    def __init__(self, cdn: _Cdn) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.cdn = cdn
        self.repos: dict[str, Repo] = {}
        self.special: dict[str, Callable[[Handler], None]] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.tokens = {"hf_secret"}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def cdn_url(self) -> str:
        return f"http://127.0.0.1:{self.cdn.server_address[1]}"

    def access(self, token: str | None = None) -> HubAccess:
        return HubAccess(self.url, token, is_configured=True)

    def forget(self) -> None:
        """As if it had just been started."""
        for noted in (self.requests, self.cdn.requests, self.repos, self.special):
            noted.clear()

    def add(self, id: str, files: Mapping[str, bytes | Path], **more: Any) -> Repo:
        self.repos[id] = Repo(id, dict(files), **more)
        return self.repos[id]

    def resolve_path(self, repo: Repo, name: str, branch: str = "main") -> str:
        return f"/{repo.id}/resolve/{repo.commit(branch)}/{quote(name)}"

    def respond(self, handler: Handler) -> None:
        url = urlsplit(handler.path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        match parts:
            case ["api", "models"]:
                self._search(handler, parse_qs(url.query))
            case ["api", "models", owner, name, "revision", revision]:
                self._info(handler, f"{owner}/{name}", revision)
            case [owner, name, "resolve", revision, *rest]:
                self._file(handler, f"{owner}/{name}", revision, "/".join(rest))
            case _:
                handler.json({"error": "Not found"}, 404)

    def _search(self, handler: Handler, query: dict[str, list[str]]) -> None:
        text = query.get("search", [""])[0].lower()
        kind = query.get("filter", [""])[0]
        found = [repo for repo in self.repos.values() if text in repo.id.lower()]
        if kind:
            found = [repo for repo in found if any(name.endswith(f".{kind}") for name in repo.files)]
        entries = [
            {"id": repo.id, "modelId": repo.id, "downloads": 100 - number, "likes": number, "tags": ["gguf"]}
            for number, repo in enumerate(found)
        ]
        handler.json(entries[: int(query.get("limit", ["30"])[0])])

    def _info(self, handler: Handler, id: str, revision: str) -> None:
        repo = self.repos.get(id)
        has_token = self._has_token(handler)
        if repo is None or (repo.private and not has_token):
            headers = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
            handler.json({"error": "Repository not found"}, 404 if has_token else 401, headers)
            return
        files = repo.content(revision)
        if files is None:
            handler.json({"error": "Invalid rev id"}, 404, {"X-Error-Code": "RevisionNotFound"})
            return
        told: dict[str, Any] = {
            "_id": "6512f1b3",
            "id": repo.id,
            "modelId": repo.id,
            "sha": repo.commit_at(revision),
            "private": repo.private,
            "gated": "manual" if repo.gated else False,
            "tags": ["gguf"],
            "siblings": [self._sibling(repo, name, data) for name, data in files.items()],
        }
        if repo.license is not None:
            told["cardData"] = {"license": repo.license}
        if repo.parameters is not None:
            told["gguf"] = {"total": repo.parameters, "architecture": "llama", "context_length": 8192}
        handler.json(told)

    def _sibling(self, repo: Repo, name: str, data: bytes | Path) -> dict[str, Any]:
        size = repo.sizes.get(name, _size(data))
        entry: dict[str, Any] = {"rfilename": name, "size": size}
        if not repo.is_large(name, data):
            content = _read(data)
            entry["blobId"] = _sha1(b"blob %d\0" % len(content) + content)
        else:
            entry["blobId"] = _sha1(name.encode())  # of the pointer
            digest = repo.digests.get(name, _sha256(data))
            if digest is not None:
                entry["lfs"] = {"sha256": digest, "size": size, "pointerSize": 134}
        return entry

    def _file(self, handler: Handler, id: str, revision: str, name: str) -> None:
        repo = self.repos.get(id)
        files = None if repo is None else repo.content(revision)
        if repo is None or files is None or name not in files:
            handler.json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        if repo.gated and not self._has_token(handler):
            status = 401 if "Authorization" not in handler.headers else 403
            handler.json({"error": f"Access to model {id} is restricted."}, status, {"X-Error-Code": "GatedRepo"})
            return
        data = files[name]
        if not repo.is_large(name, data):
            handler.answer(200, _read(data), {"X-Repo-Commit": revision, "ETag": f'"{_sha1(_read(data))}"'})
            return
        digest = _sha256(data)
        self.cdn.files[digest] = data
        handler.answer(
            302,
            b"Found. Redirecting",
            {
                "Location": f"{self.cdn_url}/repos/{digest[:2]}/{digest}?X-Amz-Expires=3600&X-Amz-Signature=cafe",
                "X-Repo-Commit": revision,
                "X-Linked-Size": str(_size(data)),
                "X-Linked-ETag": f'"{digest}"',
                "Accept-Ranges": "bytes",
            },
        )

    def _has_token(self, handler: Handler) -> bool:
        return handler.headers.get("Authorization", "").removeprefix("Bearer ") in self.tokens


@contextmanager
def running_hub() -> Iterator[HubServer]:
    cdn = _Cdn()
    hub = HubServer(cdn)
    threads = [threading.Thread(target=each.serve_forever, kwargs={"poll_interval": 0.02}) for each in (hub, cdn)]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        for server in (hub, cdn):
            server.shutdown()
        for thread in threads:
            thread.join(10)
        for server in (hub, cdn):
            server.server_close()


def _size(data: bytes | Path) -> int:
    return data.stat().st_size if isinstance(data, Path) else len(data)


def _read(data: bytes | Path) -> bytes:
    return data.read_bytes() if isinstance(data, Path) else data


def _sha1(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


_digests: dict[Path, str] = {}


def _sha256(data: bytes | Path) -> str:
    if isinstance(data, bytes):
        return hashlib.sha256(data).hexdigest()
    if data not in _digests:
        with data.open("rb") as handle:
            _digests[data] = hashlib.file_digest(handle, "sha256").hexdigest()
    return _digests[data]


def _blocks(data: bytes | Path, first: int, count: int) -> Iterator[bytes]:
    if isinstance(data, bytes):
        for at in range(first, first + count, _BLOCK):
            yield data[at : min(at + _BLOCK, first + count)]
        return
    with data.open("rb") as handle:
        handle.seek(first)
        while count and (block := handle.read(min(_BLOCK, count))):
            count -= len(block)
            yield block
