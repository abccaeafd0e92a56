"""The run directory: where each engine has its socket and its record, for nobody else to reach."""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
import sys
import tempfile
from pathlib import Path

import msgspec

from oprel.drivers.children.processes import start_mark
from oprel.errors import ConfigError

__all__ = ["STEM_LENGTH", "Place", "Record", "RunDirectory", "choose_run_dir"]

STEM_LENGTH = 8

# sockaddr_un holds 108 bytes on Linux and 104 on macOS, the final zero included.
_MAX_SOCKET_PATH_BYTES = 107 if sys.platform == "linux" else 103
_NAME_BYTES = len("/") + STEM_LENGTH + len(".sock")


class Record(msgspec.Struct, frozen=True):
    """What a later start needs to find an orphan: the engine and the Oprel process that it belongs to. `pid` is 0
    while the engine is being started."""

    owner_pid: int
    owner_mark: str
    pid: int = 0
    mark: str = ""
    engine: str = ""


class Place:
    """The files of one engine: all start with the same random stem, and `clear` removes them."""

    def __init__(self, folder: Path, stem: str) -> None:
        self.folder = folder
        self.stem = stem
        self.socket = folder / f"{stem}.sock"
        self.record = folder / f"{stem}.json"

    def __repr__(self) -> str:
        return f"<Place {self.socket}>"

    def claim(self, *, engine: str, pid: int = 0) -> None:
        """Writes the record, whole or not at all. Before the engine starts, so that no socket is ever without one."""
        record = Record(
            owner_pid=os.getpid(),
            owner_mark=start_mark(os.getpid()) or "",
            pid=pid,
            mark=(start_mark(pid) or "") if pid else "",
            engine=engine,
        )
        self._write(self.record, msgspec.json.encode(record))

    def add_file(self, suffix: str, content: str) -> Path:
        """A file beside the socket, readable by its owner only, gone with `clear`."""
        path = self.folder / f"{self.stem}.{suffix}"
        self._write(path, content.encode())
        return path

    def add_link(self, suffix: str, target: str) -> Path:
        """A link beside the socket to a file elsewhere, gone with `clear`."""
        path = self.folder / f"{self.stem}.{suffix}"
        path.symlink_to(target)
        return path

    def clear(self) -> None:
        """The record goes last: while it is there, a sweep knows whose the rest is."""
        for path in self.folder.glob(f"{self.stem}.*"):
            if path != self.record:
                path.unlink(missing_ok=True)
        self.record.unlink(missing_ok=True)

    def _write(self, path: Path, content: bytes) -> None:
        partial = path.with_name(path.name + ".part")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        partial.replace(path)


class RunDirectory:
    """A directory of ours alone (0700), checked before anything is put into it, else ConfigError."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def prepare(self) -> None:
        """Makes it, or makes sure that nobody else owns it or can look into it."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = self.path.lstat()
        except OSError as error:
            raise ConfigError(f"The run directory {str(self.path)!r} can't be used: {error.strerror}.") from error
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            raise ConfigError(f"The run directory {str(self.path)!r} isn't a directory of this user: remove it.")
        if status.st_mode & 0o077:
            self.path.chmod(0o700)

    def place(self) -> Place:
        """Room for one more engine."""
        self.prepare()
        if not _fits(self.path):
            raise ConfigError(
                f"The run directory {str(self.path)!r} is too long for a socket in it "
                f"({_MAX_SOCKET_PATH_BYTES - _NAME_BYTES} bytes at most): set a shorter state directory."
            )
        return Place(self.path.absolute(), secrets.token_hex(STEM_LENGTH // 2))


def choose_run_dir(preferred: Path) -> Path:
    """`preferred`, made private, or a short directory of this user's for it where a socket's path would not fit."""
    path = preferred.expanduser().absolute()
    if not _fits(path):
        short = hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
        path = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()) / f"oprel-{os.geteuid()}-{short}"
    RunDirectory(path).prepare()
    return path


def _fits(path: Path) -> bool:
    # A comma would be read as the end of an address in the engine's list of addresses.
    return len(os.fsencode(path.absolute())) + _NAME_BYTES <= _MAX_SOCKET_PATH_BYTES and "," not in str(path)
