"""instructor on a real server and a real engine: no answer needs a second try, since the engine is constrained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.checking_proxy import CheckingProxy
from support.client_env import run_client
from support.models import CHAT_MODEL

SCRIPT = Path(__file__).parent / "scripts" / "instructor_client.py"

pytestmark = pytest.mark.timeout(1500)  # the first run makes the environment


@pytest.fixture(scope="module")
def told(proxy: CheckingProxy, tell: Callable[[Any], Any], typed_clients: Path) -> Any:
    return tell(run_client(typed_clients, SCRIPT, proxy.url, CHAT_MODEL))


def assert_thing(made: Any) -> None:
    assert made["kind"] in ("fruit", "tool")
    assert 0 <= made["count"] <= 9


@pytest.mark.parametrize("way", ["tool", "schema"])
def test_a_typed_answer(told: Any, way: str) -> None:
    thing, tokens = told[way]
    assert_thing(thing)
    assert tokens > 0


@pytest.mark.parametrize("way", ["tool", "schema"])
def test_a_typed_answer_in_parts(told: Any, way: str) -> None:
    """Each part has what has come so far."""
    parts = told[f"{way} in parts"]
    assert len(parts) > 2
    assert parts[0]["count"] is None
    assert_thing(parts[-1])


@pytest.mark.parametrize("api", ["anthropic", "responses"])
def test_other_apis(told: Any, api: str) -> None:
    assert_thing(told[api])
