"""Fixtures that all tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.models import embed_gguf, make_store, smollm2_gguf

if TYPE_CHECKING:
    from support.servers import RealServer, ScriptedServer


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
    """A real `oprel serve` with `smollm2:135m` and `all-minilm` on OPREL_TEST_DRIVER (llama_cpp); shared by the
    session."""
    from support.servers import TEST_DRIVER
    from support.servers import real_server as start

    if TEST_DRIVER == "vllm":
        from support.vllm_real import vllm_server

        with vllm_server(tmp_path_factory.mktemp("vllm")) as server:
            yield server
        return
    with start("--driver", "llama_cpp", models_dir=request.getfixturevalue("real_models_dir")) as server:
        yield server


@pytest.fixture
def scripted_server() -> Iterator[Callable[..., ScriptedServer]]:
    """A factory: `scripted_server(Script(…), settings=…)` is the app on a socket over scripted engines."""
    from support.servers import scripted_server as start

    with ExitStack() as servers:
        yield lambda *args, **kwargs: servers.enter_context(start(*args, **kwargs))
