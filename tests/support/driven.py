"""A real `oprel serve` on each driver, with a model that says what tests want (support/speaking.py).

llama_cpp runs it, and so does vLLM where there is one; a remote is another Oprel on llama_cpp. ExLlama needs a GPU, and
vLLM an environment of gigabytes: on their stand-ins the driver, its child process and its HTTP are real, and the words
are scripted to be the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Literal

import httpx
import pytest
from msgspec import Struct

from support.models import EMBED_MODEL, embed_gguf
from support.servers import RealServer, real_server
from support.speaking import write_speaking_folder, write_speaking_gguf

__all__ = [
    "MODEL",
    "Ability",
    "Driven",
    "DrivenRules",
    "exllama_driven",
    "fake_vllm_driven",
    "llama_cpp_driven",
    "remote_driven",
    "speaking_trees",
    "vllm_driven",
]

MODEL = "speaking:latest"
Ability = Literal["think", "call", "embed", "tokenize", "logprobs", "prefill"]


class Driven(Struct, frozen=True):
    """`can`: what of the abilities that drivers differ in this one has, with these models. `client` asks it: making one
    takes longer than most answers."""

    server: RealServer
    client: httpx.Client
    driver: str
    can: frozenset[Ability]
    model: str = MODEL
    embedder: str = EMBED_MODEL

    @property
    def url(self) -> str:
        return self.server.url


class DrivenRules:
    """Tests of a server on one driver: `on` is the fixture that has it."""

    on: ClassVar[str]

    @pytest.fixture(scope="class")
    @classmethod
    def driven(cls, request: pytest.FixtureRequest) -> Driven:
        driven: Driven = request.getfixturevalue(cls.on)
        return driven


def _asked(server: RealServer, driver: str, can: frozenset[Ability]) -> Iterator[Driven]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield Driven(server, client, driver, can)


@contextmanager
def llama_cpp_driven(folder: Path) -> Iterator[Driven]:
    from oprel.store import Store

    store = Store(folder / "models", state_dir=folder / "state")
    store.import_gguf(write_speaking_gguf(folder / "speaking.gguf"), MODEL)
    store.import_gguf(embed_gguf(), EMBED_MODEL)
    with real_server("--driver", "llama_cpp", "--threads", "1", models_dir=folder / "models") as server:
        yield from _asked(server, "llama_cpp", frozenset({"think", "call", "embed", "tokenize", "logprobs", "prefill"}))


@contextmanager
def remote_driven(folder: Path, behind: Driven) -> Iterator[Driven]:
    """It asks the other Oprel what the models can do."""
    config = folder / "config.toml"
    config.write_text(f'[remote.other]\nurl = "{behind.url}"\nmodels = ["{MODEL}", "{EMBED_MODEL}"]\n')
    with real_server(environ={"OPREL_CONFIG": str(config)}) as server:
        yield from _asked(server, "openai", frozenset({"think", "call", "embed", "logprobs"}))


@contextmanager
def fake_vllm_driven(folder: Path) -> Iterator[Driven]:
    from support.fake_vllm import install

    python = install(folder / "env", speaks=True)
    environ = {"OPREL_VLLM_PYTHON": str(python), "OPREL_TREES_DIR": str(speaking_trees(folder))}
    with real_server("--driver", "vllm", environ=environ) as server:
        yield from _asked(server, "vllm", frozenset({"think", "call", "tokenize", "logprobs"}))


@contextmanager
def vllm_driven(folder: Path, python: Path) -> Iterator[Driven]:
    from support.vllm_real import LOAD_LIMIT_S

    environ = {
        "OPREL_VLLM_PYTHON": str(python),
        "OPREL_TREES_DIR": str(speaking_trees(folder)),
        "OPREL_KEEP_ALIVE": "-1",
    }
    with real_server("--driver", "vllm", "--model", MODEL, environ=environ, start_limit_s=LOAD_LIMIT_S) as server:
        yield from _asked(server, "vllm", frozenset({"think", "call", "tokenize", "logprobs"}))


@contextmanager
def exllama_driven(folder: Path, driver: str) -> Iterator[Driven]:
    """On a machine that says it has a GPU."""
    from support.exllama_python import TURN_END, install

    packages = ("torch", "exllamav3") if driver == "exllamav3" else ("torch", "exllamav2", "lmformatenforcer")
    python = install(folder / "env", packages=packages, fits_schemas=True)
    quantization = {"quant_method": {"exllamav2": "exl2", "exllamav3": "exl3"}[driver], "bits": 4.0}
    environ = {
        "OPREL_EXLLAMA_PYTHON": str(python),
        "OPREL_TREES_DIR": str(speaking_trees(folder, quantization_config=quantization, eos_token_id=TURN_END)),
        "PATH": f"{_with_gpu(folder / 'bin')}{os.pathsep}{os.environ['PATH']}",
    }
    with real_server("--driver", driver, environ=environ) as server:
        yield from _asked(server, driver, frozenset({"tokenize", "logprobs"}))


def speaking_trees(folder: Path, **config: object) -> Path:
    """A store of folders with the speaking model in it."""
    from oprel.store import Trees

    Trees(folder / "trees", state_dir=folder / "state").add(write_speaking_folder(folder / "speaking", **config), MODEL)
    return folder / "trees"


def _with_gpu(folder: Path) -> Path:
    """A folder with what NVIDIA's driver would answer."""
    folder.mkdir()
    tool = folder / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '0, NVIDIA Imaginary 4090, GPU-1, 24564, 24000'\n")
    tool.chmod(0o755)
    return folder
