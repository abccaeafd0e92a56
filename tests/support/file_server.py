"""A server of files on loopback that keeps HTTP's rules for ranges, and breaks them to order."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

from support.local_server import LocalServer

__all__ = ["FileHandler", "FileServer", "running_files"]

_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
Special = Callable[["FileHandler"], bool]


class FileHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FileServer
    body: bytes

    def do_GET(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.note(self.path, self.headers)
        if not any(special(self) for special in self.server.specials):
            self.server.answer_file(self)

    do_HEAD = do_POST = do_PATCH = do_PUT = do_GET

    def log_message(self, format: str, *arguments: Any) -> None:
        """Quiet."""

    def answer(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.send_body(body)

    def send_body(self, body: bytes) -> None:
        """In small steps, each counted before it goes."""
        view = memoryview(body)
        limit = self.server.cut_after
        for at in range(0, len(view), 1 << 16):
            if limit is not None and self.server.sent_bytes >= limit:
                self.close_connection = True
                self.connection.close()
                return
            block = view[at : at + (1 << 16)]
            self.server.count(len(block))
            try:
                self.wfile.write(block)
            except OSError:
                self.close_connection = True
                return
            if self.server.pause_s:
                self.server.stopping.wait(self.server.pause_s)


class FileServer(LocalServer):
    """`files` by path. `specials` may take a request over: each returns whether it answered. `sent_bytes` are of
    bodies, counted when they are handed to the kernel; at `cut_after` of them connections break."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), FileHandler)
        self.files: dict[str, bytes] = {}
        self.etags: dict[str, str] = {}
        self.specials: list[Special] = []
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.sent_bytes = 0
        self.cut_after: int | None = None
        self.pause_s = 0.0
        self.has_ranges = True
        self.has_etags = True
        self.stopping = threading.Event()
        self._guard = threading.Lock()
        self._changed = threading.Condition(self._guard)

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def note(self, path: str, headers: Mapping[str, str]) -> None:
        with self._guard:
            self.requests.append((path, {key.lower(): value for key, value in headers.items()}))

    def count(self, size: int) -> None:
        with self._changed:
            self.sent_bytes += size
            self._changed.notify_all()

    def wait_sent(self, size: int) -> None:
        """Blocks until so many bytes of bodies were handed to the kernel."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.sent_bytes >= size, 30)

    def first_time(self, path: str, status: int, headers: Mapping[str, str] | None = None, *, times: int = 1) -> None:
        """The next `times` requests of a path get this instead."""
        left = [times]

        def special(handler: FileHandler) -> bool:
            if handler.path != path or not left[0]:
                return False
            left[0] -= 1
            handler.answer(status, b"", headers)
            return True

        self.specials.append(special)

    def etag(self, path: str) -> str:
        return self.etags.get(path) or f'"{hashlib.md5(self.files[path]).hexdigest()}"'  # noqa: S324

    def answer_file(self, handler: FileHandler) -> None:
        data = self.files.get(handler.path)
        if handler.command not in ("GET", "HEAD"):
            handler.answer(405)
            return
        if data is None:
            handler.answer(404, b"not here")
            return
        headers = {"ETag": self.etag(handler.path)} if self.has_etags else {}
        match = _RANGE.fullmatch(handler.headers.get("Range", ""))
        wanted = handler.headers.get("If-Range")
        if match is None or not self.has_ranges or (wanted is not None and wanted != headers.get("ETag")):
            handler.answer(200, data, headers)
            return
        first, last = int(match[1]), min(int(match[2] or len(data) - 1), len(data) - 1)
        if first >= len(data):
            handler.answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            return
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        handler.answer(206, data[first : last + 1], headers)


@contextmanager
def running_files() -> Iterator[FileServer]:
    server = FileServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.stopping.set()
        server.shutdown()
        thread.join(10)
        server.server_close()
