"""A real vLLM for tests: its Python, models in safetensors for it, and a server on it.

| variable | meaning |
|---|---|
| `OPREL_TEST_VLLM_PYTHON` | a Python that has vLLM (`tests/vllm/make_env.sh` makes one); without it these tests skip |
| `OPREL_TEST_REQUIRE_VLLM` | 1: its absence is a failure, not a skip |

Models are made once with that Python and kept in the tests' cache.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

from support.models import CHAT_MODEL, EMBED_MODEL, cache_dir, locked, minilm_wheel, smollm2_gguf
from support.servers import RealServer, real_server

__all__ = ["LOAD_LIMIT_S", "fill_trees", "minilm_folder", "smol_folder", "tiny_folder", "vllm_python", "vllm_server"]

LOAD_LIMIT_S = 600.0
_MAKE_MODEL = Path(__file__).resolve().parent.parent / "vllm" / "make_model.py"


def vllm_python() -> Path:
    """Skips the test where there is none."""
    named = os.environ.get("OPREL_TEST_VLLM_PYTHON", "")
    if not named:
        _absent("OPREL_TEST_VLLM_PYTHON is not set: tests/vllm/make_env.sh makes an environment and tells its name")
    if not os.access(named, os.X_OK):
        _absent(f"OPREL_TEST_VLLM_PYTHON names {named}, which can't be run")
    return Path(named)


def _absent(why: str) -> NoReturn:
    if os.environ.get("OPREL_TEST_REQUIRE_VLLM") == "1":
        pytest.fail(why)
    pytest.skip(why)


def smol_folder() -> Path:
    """SmolLM2-135M-Instruct in bfloat16, 270 MB, with a template that shows tools."""
    return _made("smol")


def tiny_folder() -> Path:
    """A random llama of two layers, 10 MB."""
    return _made("tiny")


def minilm_folder() -> Path:
    """all-MiniLM-L6-v2 in float32, 90 MB, as sentence-transformers keeps it."""
    folder = cache_dir() / "vllm-minilm"
    with locked(folder.with_name("vllm-minilm.lock")):
        if not folder.is_dir():
            partial = folder.with_name(f"{folder.name}.part")
            shutil.rmtree(partial, ignore_errors=True)
            with zipfile.ZipFile(minilm_wheel()) as archive:
                root = next(name for name in archive.namelist() if name.endswith("/model/config.json"))
                root = root.removesuffix("config.json")
                for name in archive.namelist():
                    if name.startswith(root) and not name.endswith("/"):
                        target = partial / name.removeprefix(root)
                        target.parent.mkdir(parents=True, exist_ok=True)
                        target.write_bytes(archive.read(name))
            partial.rename(folder)
    return folder


def fill_trees(trees_dir: Path, state_dir: Path) -> Path:
    """Folders under the names that the tests of all drivers ask for; links where the file system allows."""
    from oprel.store import Trees

    trees = Trees(trees_dir, state_dir=state_dir)
    trees.add(smol_folder(), CHAT_MODEL)
    trees.add(minilm_folder(), EMBED_MODEL)
    return trees_dir


@contextmanager
def vllm_server(folder: Path, *flags: str) -> Iterator[RealServer]:
    """A real `oprel serve` whose only driver is vLLM, both models loaded."""
    environ = {
        "OPREL_VLLM_PYTHON": str(vllm_python()),
        "OPREL_TREES_DIR": str(fill_trees(folder / "trees", folder / "state")),
        "OPREL_KEEP_ALIVE": "-1",
    }
    models = ("--model", CHAT_MODEL, "--model", EMBED_MODEL)
    with real_server("--driver", "vllm", *models, *flags, environ=environ, start_limit_s=LOAD_LIMIT_S) as server:
        yield server


def _made(kind: str) -> Path:
    folder = cache_dir() / f"vllm-{kind}"
    with locked(folder.with_name(f"{folder.name}.lock")):
        if not folder.is_dir():
            command = [str(vllm_python()), str(_MAKE_MODEL), kind, str(smollm2_gguf()), str(folder)]
            kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
            environ = {**kept, "HF_HUB_OFFLINE": "1"}
            done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=600, check=False)
            assert done.returncode == 0, done.stderr[-4000:]
    return folder
