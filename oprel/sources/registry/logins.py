"""Who the user is at which registry: one file that only its owner may read."""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import Struct

from oprel.errors import StoreError
from oprel.sources.registry.private_files import private_file
from oprel.store.disk import Disk, FileLock, translated

__all__ = ["Login", "Logins"]

_MAX_BYTES = 1 << 20


class Login(Struct, frozen=True):
    user: str
    password: str

    def __repr__(self) -> str:
        return f"Login(user={self.user!r})"


class Logins:
    """`host` is a registry's name as a model's name has it, with its port if it has one. Methods block."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser()
        self._disk = Disk()

    def get(self, host: str) -> Login | None:
        return self._read().get(host.lower())

    def keep(self, host: str, login: Login) -> None:
        self._change(host, login)

    def forget(self, host: str) -> bool:
        """False when there was none."""
        return self._change(host, None)

    def _change(self, host: str, login: Login | None) -> bool:
        with FileLock(self.path.with_suffix(".lock")).held():
            logins = self._read()
            was_there = logins.pop(host.lower(), None) is not None
            if login is not None:
                logins[host.lower()] = login
            self._write(msgspec.json.encode({"logins": logins}))
        return was_there

    def _read(self) -> dict[str, Login]:
        try:
            with self.path.open("rb") as handle:
                data = handle.read(_MAX_BYTES)
        except FileNotFoundError:
            return {}
        except OSError as problem:
            raise StoreError(f"The file of logins {self.path} can't be read: {problem.strerror}.") from problem
        try:
            return msgspec.json.decode(data, type=dict[str, dict[str, Login]]).get("logins", {})
        except msgspec.MsgspecError:  # its text could quote what is in the file
            raise StoreError(f"The file of logins {self.path} is damaged; remove it and log in again.") from None

    def _write(self, data: bytes) -> None:
        with translated("keep the login"), private_file(self._disk, self.path, data) as written:
            self._disk.rename(written, self.path)
