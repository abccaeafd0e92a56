"""The port: taking it, or saying who has it."""

from __future__ import annotations

import errno
import http.client
import json
import os
import socket
from contextlib import suppress
from pathlib import Path

from oprel.config import Settings
from oprel.errors import ConfigError, OprelError

__all__ = ["bind", "program_at", "who_answers"]

_BACKLOG = 2048
_PROBE_S = 2.0


def bind(settings: Settings) -> socket.socket:
    """A listening socket; else, in one sentence, ConfigError for an address that can't be, OprelError for a port that
    can't be had now."""
    host = settings.host or "0.0.0.0"  # noqa: S104  # as Ollama reads ":11434"
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ConfigError(f"--host {host!r} is no address of this machine: {error.strerror or error}") from error
    listener = socket.socket(family, kind, proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise _why_not(error, host, settings) from error
    listener.setblocking(False)
    return listener


def _why_not(error: OSError, host: str, settings: Settings) -> OprelError:
    if error.errno == errno.EADDRINUSE:
        answers = who_answers(settings.base_url)
        program = program_at(settings.port)
        who = " ".join(part for part in (answers or "", f"({program})" if program else "") if part)
        return OprelError(
            f"port {settings.port} is in use by {who or 'another program'}: end it, or choose another --port"
        )
    if error.errno == errno.EACCES:
        return ConfigError(f"port {settings.port} needs more rights than this user has: choose a --port above 1023")
    if error.errno == errno.EADDRNOTAVAIL:
        return ConfigError(
            f"--host {host!r} is no address of this machine: use 127.0.0.1, or 0.0.0.0 for all of its addresses"
        )
    return OprelError(f"{host}:{settings.port} can't be listened on: {error.strerror or error}")


def who_answers(base_url: str, *, timeout_s: float = _PROBE_S) -> str | None:
    """What listens at an address: "oprel", "Ollama", "an HTTP server", "a program that does not speak HTTP", or None
    when nothing does."""
    host, port = _host_port(base_url)
    try:
        with socket.create_connection((host, port), timeout=timeout_s):
            pass
    except OSError:
        return None
    try:
        if _says_oprel(_get(host, port, "/health", timeout_s)):
            return "oprel"
        body = _get(host, port, "/", timeout_s)
    except (OSError, http.client.HTTPException):
        return "a program that does not speak HTTP"
    return "Ollama" if body.strip() == b"Ollama is running" else "an HTTP server"


def program_at(port: int) -> str | None:
    """The program that listens on a TCP port of this machine, as "NAME, pid N", where /proc tells it to this user."""
    inodes = _listening_inodes(port)
    if not inodes:
        return None
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and not wanted.isdisjoint(_open_files(process)):
            with suppress(OSError):
                return f"{(process / 'comm').read_text().strip()}, pid {process.name}"
    return None


def _open_files(process: Path) -> set[str]:
    """What its descriptors are; none where it has ended or belongs to another user."""
    found = set()
    with suppress(OSError):
        for descriptor in (process / "fd").iterdir():
            with suppress(OSError):  # closed meanwhile
                found.add(os.readlink(descriptor))  # noqa: PTH115
    return found


def _listening_inodes(port: int) -> set[str]:
    """Columns of /proc/net/tcp (proc_pid_net(5)): local address as hex `ADDRESS:PORT` in 1, state in 3 (0A: listen),
    inode in 9."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(fields[9])
    return inodes


def _says_oprel(body: bytes) -> bool:
    try:
        answer = json.loads(body)
    except ValueError:
        return False
    return isinstance(answer, dict) and answer.get("server") == "oprel"


def _get(host: str, port: int, path: str, timeout_s: float) -> bytes:
    connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        return connection.getresponse().read(64 * 1024)
    finally:
        connection.close()


def _host_port(base_url: str) -> tuple[str, int]:
    rest = base_url.partition("://")[2]
    host, _, port = rest.rpartition(":")
    return host.strip("[]"), int(port)
