"""A real server with a real engine, seen through a proxy that holds every answer and line against the document."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.checking_proxy import CheckingProxy, checking_proxy
from support.servers import RealServer


@pytest.fixture(scope="session")
def ollama_proxy(real_server: RealServer) -> Iterator[CheckingProxy]:
    with checking_proxy(real_server.url) as proxy:
        yield proxy


@pytest.fixture
def host(ollama_proxy: CheckingProxy) -> Iterator[str]:
    """What clients are given; all that passed is checked when the test is over."""
    ollama_proxy.exchanges.clear()
    yield ollama_proxy.url
    ollama_proxy.check()
