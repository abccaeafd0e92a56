"""This machine's key, by which Ollama's registry knows who asks: ed25519, in OpenSSH's format, as Ollama keeps its own.

`cryptography` is imported when something is to be signed: a public model needs no key, and none is made for it.
"""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path
from typing import TYPE_CHECKING

from oprel.errors import StoreError
from oprel.sources.registry.private_files import private_file
from oprel.store.disk import Disk, translated

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = ["MachineKey", "Signer"]

_MAX_BYTES = 64 << 10


class Signer:
    """`public` is the line that goes into an account's settings."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        self._key = key
        self.public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode("ascii")

    def sign(self, text: str) -> str:
        """`<base64 of the public key>:<base64 of the signature>`, in OpenSSH's encodings."""
        return f"{self.public.split()[1]}:{b64encode(self._key.sign(text.encode())).decode('ascii')}"


class MachineKey:
    """`places` are files, the preferred one first: where none of them is there, the key is made at the last."""

    def __init__(self, *places: Path) -> None:
        self._places = places
        self._disk = Disk()

    def signer(self) -> Signer:
        """Blocks. Raises StoreError for a key that can't be used or made."""
        try:
            from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        except ImportError as problem:
            raise StoreError(
                "This registry wants a signature, and the package that makes one isn't installed: "
                "pip install cryptography"
            ) from problem
        for place in self._places:
            if (data := _read(place)) is not None:
                return Signer(_parsed(place, data))
        place = self._places[-1]
        self._make(place, Ed25519PrivateKey.generate())
        return Signer(_parsed(place, _read(place) or b""))

    def _make(self, place: Path, key: Ed25519PrivateKey) -> None:
        """Linked into place, so that of two processes that do this at once both have the first one's."""
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        data = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        with translated(f"make the key {place}"):
            self._disk.make_folder(place.parent, mode=0o700)
            try:
                with private_file(self._disk, place, data) as written:
                    self._disk.link(written, place)
            except FileExistsError:
                return


def _read(place: Path) -> bytes | None:
    try:
        with place.open("rb") as handle:
            return handle.read(_MAX_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as problem:
        raise StoreError(f"The key {place} can't be read: {problem.strerror}.") from problem


def _parsed(place: Path, data: bytes) -> Ed25519PrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    try:
        key = load_ssh_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # its text could quote what is in the file
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise StoreError(f"The key {place} isn't an ed25519 key in OpenSSH's format without a passphrase.")
    return key
