"""A real server with a real engine, seen through a proxy that holds every answer and event against the document."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.checking_proxy import CheckingProxy, checking_proxy
from support.servers import RealServer


@pytest.fixture(scope="session")
def anthropic_proxy(real_server: RealServer) -> Iterator[CheckingProxy]:
    with checking_proxy(real_server.url) as proxy:
        yield proxy


@pytest.fixture
def base_url(anthropic_proxy: CheckingProxy) -> Iterator[str]:
    """What clients are given; all that passed is checked when the test is over."""
    anthropic_proxy.exchanges.clear()
    yield anthropic_proxy.url
    anthropic_proxy.check()
