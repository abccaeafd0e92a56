"""Fixtures that all tests share."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import hypothesis
import pytest
from support.models import CHAT_MODEL, EMBED_MODEL, embed_gguf, make_store, smollm2_gguf

import oprel

if TYPE_CHECKING:
    from support.servers import RealServer, ScriptedServer

# How long an example takes is the machine's affair: a busy one would fail what is right.
hypothesis.settings.register_profile("oprel", deadline=None)
hypothesis.settings.load_profile("oprel")

# Each client of httpx reads 140 certificates in 20 ms, and most of them here ask a server over plain http, once.
httpx._transports.default.create_ssl_context = cache(httpx._transports.default.create_ssl_context)

# pytest parses what it imports of a package with a plugin, and Python 3.11 can't parse in two threads at the same time
# ("AST constructor recursion depth mismatch"): what servers would import later, in whatever thread, is here already.
for _module in pkgutil.walk_packages(oprel.__path__, "oprel."):
    if not _module.name.endswith("__main__"):
        import_module(_module.name)


def pytest_collection_finish(session: pytest.Session) -> None:
    if session.config.option.collectonly:
        return
    for module in {getattr(item, "module", None) for item in session.items}:
        for ahead in getattr(module, "AHEAD", ()):
            ahead.begin()
            session.config.add_cleanup(ahead.give_up)


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """A real chat model's GGUF file."""
    return smollm2_gguf()


@pytest.fixture(scope="session")
def embed_path() -> Path:
    """A real embedding model's GGUF file."""
    return embed_gguf()


@pytest.fixture(scope="session")
def real_models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with `smollm2:135m` and `all-minilm`; shared by the session, so only read it."""
    return make_store(tmp_path_factory.mktemp("real") / "models", linked=True)


@pytest.fixture(scope="session")
def real_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    """A real `oprel serve` with `smollm2:135m` and `all-minilm` on OPREL_TEST_DRIVER (llama_cpp; `openai` is a
    remote, which is another one on llama_cpp); shared by the session."""
    from support.servers import TEST_DRIVER
    from support.servers import real_server as start

    if TEST_DRIVER == "vllm":
        from support.vllm_real import vllm_server

        with vllm_server(tmp_path_factory.mktemp("vllm")) as server:
            yield server
        return
    models_dir = request.getfixturevalue("real_models_dir")
    with start("--driver", "llama_cpp", models_dir=models_dir) as server:
        if TEST_DRIVER != "openai":
            yield server
            return
        config = tmp_path_factory.mktemp("remote") / "config.toml"
        config.write_text(
            f'[remote.chat]\nurl = "{server.url}"\nmodels = ["{CHAT_MODEL}"]\ncontext = 8192\n'
            'capabilities = ["chat", "complete", "json_schema", "logprobs"]\n'
            f'[remote.embed]\nurl = "{server.url}"\nmodels = ["{EMBED_MODEL}"]\ncontext = 512\n'
            'capabilities = ["embed"]\n'
        )
        with start(environ={"OPREL_CONFIG": str(config)}) as front:
            yield front


@pytest.fixture
def scripted_server() -> Iterator[Callable[..., ScriptedServer]]:
    """A factory: `scripted_server(Script(…), settings=…)` is the app on a socket over scripted engines."""
    from support.servers import scripted_server as start

    with ExitStack() as servers:
        yield lambda *args, **kwargs: servers.enter_context(start(*args, **kwargs))
