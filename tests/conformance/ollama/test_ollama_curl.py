"""`curl -d` without a content type, which calls its JSON a form."""

from __future__ import annotations

import json

from support.curl import curl
from support.models import CHAT_MODEL


def test_generate_streams(host: str) -> None:
    body = {"model": CHAT_MODEL, "prompt": "Say hello.", "options": {"num_predict": 8}}
    lines = [json.loads(line) for line in curl(f"{host}/api/generate", "-d", json.dumps(body)).splitlines()]
    assert len(lines) > 2
    assert lines[-1]["done"] is True


def test_chat_without_a_stream(host: str) -> None:
    messages = [{"role": "user", "content": "Say hello."}]
    body = {"model": CHAT_MODEL, "messages": messages, "stream": False, "options": {"num_predict": 8}}
    assert json.loads(curl(f"{host}/api/chat", "-d", json.dumps(body)))["message"]["content"]
