"""The official JavaScript client, unchanged, against a real server and a real engine."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.models import CHAT_MODEL, EMBED_MODEL
from support.node import node_package, run_node
from support.servers import TEST_DRIVER

SCRIPT = Path(__file__).parents[1] / "node" / "ollama_client.mjs"
VERSION = "0.6.3"


@pytest.mark.skipif(TEST_DRIVER == "openai", reason="a remote doesn't show its tokens")
@pytest.mark.node
@pytest.mark.timeout(500)
def test_node(host: str) -> None:
    told = run_node(SCRIPT, node_package("ollama", VERSION), host, CHAT_MODEL, EMBED_MODEL)
    assert "Paris" in told["whole"]
    assert told["streamed"] == told["whole"]
    done, reason, count, created_at = told["done"]
    assert (done, reason in ("stop", "length"), created_at[:2]) == (True, True, "20")
    assert told["streamedCount"] == count > 0
    assert told["left"] is False
    assert "Paris" in told["generated"]
    assert told["pieces"] > 2
    assert told["context"] > 5
    assert told["dimensions"] == [384, 384]
    assert {CHAT_MODEL, EMBED_MODEL} <= set(told["models"])
    assert told["shown"][0] == told["shown"][2] == "llama"
    assert "completion" in told["shown"][1]
    assert {CHAT_MODEL, EMBED_MODEL} <= set(told["running"])
    assert told["version"] == "0.33.0"
    assert isinstance(told["shaped"]["city"], str)
    assert told["errors"] == {
        "chat": [404, "model 'absent' not found"],
        "stream": [404, "model 'absent' not found"],
        "embed": [404, 'model "absent" not found, try pulling it first'],
        "option": [500, 'option "num_ctx" must be of type integer'],
    }
