"""A package index on loopback, with faults to order, and wheels to put on it."""

from __future__ import annotations

import hashlib
import io
import json
import re
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from http.server import BaseHTTPRequestHandler
from typing import Any

from support.local_server import LocalServer

__all__ = ["Handler", "IndexServer", "etag_of", "make_wheel", "running_index"]

_BLOCK_BYTES = 1 << 16
_RANGE = re.compile(r"bytes=(\d+)-(\d+)")
WHEEL_NAME = "{package}-{version}-py3-none-any.whl"


def make_wheel(
    package: str,
    members: Mapping[str, bytes],
    *,
    version: str = "1.0",
    requires: tuple[str, ...] = (),
    compression: int = zipfile.ZIP_DEFLATED,
) -> bytes:
    """`members` by name below the package's folder; a name with a leading `!` is taken as it is."""
    folder = package.replace("-", "_")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name[1:] if name.startswith("!") else f"{folder}/{name}", data)
        lines = ["Metadata-Version: 2.1", f"Name: {package}", f"Version: {version}"]
        lines += [f"Requires-Dist: {requirement}" for requirement in requires]
        archive.writestr(f"{folder}-{version}.dist-info/METADATA", "\n".join([*lines, "", "Read me."]))
    return buffer.getvalue()


class Handler(BaseHTTPRequestHandler):
    """GET asks the server's `respond`."""

    protocol_version = "HTTP/1.1"
    server: IndexServer

    def do_GET(self) -> None:
        self.server.requests.append((self.path, {key.lower(): value for key, value in self.headers.items()}))
        self.server.respond(self)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Quiet."""

    def answer(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def answer_file(self, body: bytes | memoryview, status: int, headers: Mapping[str, str]) -> None:
        """In blocks, each counted when it is sent."""
        self.answer(status, b"", {"Content-Length": str(len(body)), **headers})
        for at in range(0, len(body), _BLOCK_BYTES):
            self.server.per_block()
            block = body[at : at + _BLOCK_BYTES]
            try:
                self.wfile.write(block)
            except OSError:  # who asked is gone
                self.close_connection = True
                return
            self.server.count(len(block))


class IndexServer(LocalServer):
    """`files` are wheels by file name; `special` takes a path over, whatever is there. `sent_bytes` are of files;
    `per_block` is called before each block of one."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.hashes: dict[str, str | None] = {}
        self.urls: dict[str, str] = {}
        self.special: dict[str, Callable[[Handler], None]] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.is_html = False
        self.gives_sizes = True
        self.has_ranges = True
        self.sent_bytes = 0
        self.per_block: Callable[[], None] = lambda: None
        self.stopping = threading.Event()
        self._guard = threading.Lock()

    def hold_at(self, size: int) -> threading.Event:
        """No more than so many bytes of files are sent until the event is set."""
        released = threading.Event()

        def wait() -> None:
            if self.sent_bytes >= size:
                released.wait(60)

        self.per_block = wait
        return released

    def count(self, size: int) -> None:
        with self._guard:
            self.sent_bytes += size

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def url(self) -> str:
        return f"{self.origin}/simple"

    def add(self, package: str, members: Mapping[str, bytes], *, version: str = "1.0", **more: Any) -> str:
        """Returns the wheel's file name."""
        return self.add_file(
            WHEEL_NAME.format(package=package.replace("-", "_"), version=version),
            make_wheel(package, members, version=version, **more),
        )

    def add_file(self, filename: str, data: bytes) -> str:
        self.files[filename] = data
        return filename

    def path_of(self, filename: str) -> str:
        return f"/files/{filename}"

    def downloads(self) -> list[str]:
        return [path for path, _ in self.requests if path.startswith("/files/")]

    def respond(self, handler: Handler) -> None:
        if handler.path in self.special:
            self.special[handler.path](handler)
        elif handler.path.startswith("/simple/"):
            self.page(handler, handler.path.split("/")[2])
        elif handler.path.startswith("/files/") and handler.path[7:] in self.files:
            self.file(handler, self.files[handler.path[7:]])
        else:
            handler.answer(404, b"not here")

    def page(self, handler: Handler, package: str) -> None:
        names = [name for name in self.files if name.split("-")[0].replace("_", "-").lower() == package]
        if not names:
            handler.answer(404, b"no such package")
        elif self.is_html:
            links = "".join(f'<a href="{self._url(name)}#sha256={self._hash(name)}">{name}</a>\n' for name in names)
            handler.answer(200, f"<html><body>{links}</body></html>".encode(), {"Content-Type": "text/html"})
        else:
            page = {"meta": {"api-version": "1.0"}, "name": package, "files": [self._entry(name) for name in names]}
            kind = "application/vnd.pypi.simple.v1+json"
            handler.answer(200, json.dumps(page).encode(), {"Content-Type": kind})

    def _entry(self, name: str) -> dict[str, object]:
        digest = self._hash(name)
        entry: dict[str, object] = {
            "filename": name,
            "url": self._url(name),
            "hashes": {"sha256": digest} if digest else {},
        }
        if self.gives_sizes:
            entry["size"] = len(self.files[name])
        return entry

    def _url(self, name: str) -> str:
        return self.urls.get(name, f"../../files/{name}")

    def _hash(self, name: str) -> str | None:
        return self.hashes.get(name, hashlib.sha256(self.files[name]).hexdigest())

    def file(self, handler: Handler, data: bytes) -> None:
        """The range that is asked for, or all of it."""
        etag = etag_of(data)
        asked = _RANGE.fullmatch(handler.headers.get("Range", ""))
        if asked is None or not self.has_ranges or handler.headers.get("If-Range", etag) != etag:
            handler.answer_file(data, 200, {"ETag": etag})
            return
        first, end = int(asked[1]), min(int(asked[2]) + 1, len(data))
        span = f"bytes {first}-{end - 1}/{len(data)}"
        handler.answer_file(memoryview(data)[first:end], 206, {"Content-Range": span, "ETag": etag})


@lru_cache(maxsize=16)
def etag_of(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'  # noqa: S324


@contextmanager
def running_index() -> Iterator[IndexServer]:
    server = IndexServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.stopping.set()
        server.shutdown()
        thread.join(10)
        server.server_close()
