"""Clients that speak several dialects, or none of their own, in processes of their own: each runs once a module, and
what passed is held against the documents."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.checking_proxy import CheckingProxy, checking_proxy
from support.client_env import client_environment
from support.servers import TEST_DRIVER, RealServer


@dataclass(frozen=True)
class Told:
    """What a script told: of each call by name its result, or in `errors` what it raised."""

    results: Mapping[str, Any]
    errors: Mapping[str, Sequence[Any]]

    def __getitem__(self, name: str) -> Any:
        assert name not in self.errors, f"{name} raised {self.errors[name]}"
        return self.results[name]


@pytest.fixture(scope="module")
def proxy(real_server: RealServer) -> Iterator[CheckingProxy]:
    if TEST_DRIVER == "openai":
        pytest.skip("the remote is declared without tools")
    with checking_proxy(real_server.url) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def tell(proxy: CheckingProxy) -> Callable[[Any], Told]:
    """Reads what a script printed: `{"results": {}, "errors": {}}`; checks what it sent and got."""

    def read(printed: Any) -> Told:
        proxy.check()
        return Told(printed["results"], printed["errors"])

    return read


@pytest.fixture(scope="session")
def typed_clients() -> Path:
    """The Python that has litellm and instructor: the latter takes no newest `openai`."""
    return client_environment("typed", ["anthropic", "instructor>=1.7", "litellm>=1.60"])
