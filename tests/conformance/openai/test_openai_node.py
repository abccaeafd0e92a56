"""The official JavaScript client, unchanged, against a real server and a real engine."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.models import CHAT_MODEL
from support.node import node_package, run_node
from support.servers import TEST_DRIVER

SCRIPT = Path(__file__).parents[1] / "node" / "openai_client.mjs"
VERSION = "6.30.1"  # the newest that runs on Node 20


@pytest.mark.node
@pytest.mark.timeout(500)
def test_node(base_url: str) -> None:
    told = run_node(SCRIPT, node_package("openai", VERSION), base_url, CHAT_MODEL, "all-minilm")
    assert "Paris" in told["whole"]
    assert told["streamed"] == told["whole"]
    assert told["usage"]["completion_tokens"] == told["streamedUsage"]["completion_tokens"] > 0
    assert (told["driver"], told["id"].partition("-")[0]) == (TEST_DRIVER, "chatcmpl")
    assert told["left"].startswith("chatcmpl-")
    assert "Paris" in told["completion"]
    assert told["dimensions"] == [384, 384]
    assert CHAT_MODEL in told["models"]
    assert told["retrieved"] == CHAT_MODEL
    assert isinstance(told["shaped"]["name"], str)
    assert told["errors"] == {
        "missing": ["NotFoundError", 404, "model_not_found", "model"],
        "range": ["BadRequestError", 400, None, "temperature"],
    }
