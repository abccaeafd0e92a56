"""What the tests on a real vLLM share. All of them carry the marker `vllm`, and minutes of patience."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.servers import RealServer
from support.vllm_real import LOAD_LIMIT_S, vllm_python, vllm_server

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.vllm)
            item.add_marker(pytest.mark.timeout(LOAD_LIMIT_S + 300))


@pytest.fixture(scope="session")
def python() -> Path:
    """The Python that has vLLM."""
    return vllm_python()


@pytest.fixture(scope="session")
def vllm(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    """A real `oprel serve` with a chat and an embedding model on vLLM; shared by the session."""
    with vllm_server(tmp_path_factory.mktemp("vllm")) as server:
        yield server
