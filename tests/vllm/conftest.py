"""What the tests on a real vLLM share. All of them carry the marker `vllm`, and minutes of patience; those that take
most of the time, `vllm_full` too: CI leaves them out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.servers import TEST_DRIVER, RealServer
from support.vllm_real import LOAD_LIMIT_S, vllm_python, vllm_server

from oprel.testing.engine_rules import EmbeddingRules

_HERE = Path(__file__).parent
# Rules of the contract that start an engine of their own, or the embedding model's.
_LONG_RULES = (
    "test_stopping_leaves_nothing_and_may_be_repeated",
    "test_stopping_under_load_ends_the_streams",
    "test_death_is_noticed",
    *(name for name in vars(EmbeddingRules) if name.startswith("test_")),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.vllm)
            if getattr(item, "originalname", None) in _LONG_RULES:
                item.add_marker(pytest.mark.vllm_full)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(LOAD_LIMIT_S + 300))


@pytest.fixture(scope="session")
def python() -> Path:
    """The Python that has vLLM."""
    return vllm_python()


@pytest.fixture(scope="session")
def vllm(
    request: pytest.FixtureRequest, python: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RealServer]:
    """A real `oprel serve` with a chat and an embedding model on vLLM; shared by the session, and with the tests of
    real clients where they run on it too."""
    if TEST_DRIVER == "vllm":
        yield request.getfixturevalue("real_server")
        return
    with vllm_server(tmp_path_factory.mktemp("vllm")) as server:
        yield server
