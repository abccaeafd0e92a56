"""`curl -d` without a content type, which calls its JSON a form."""

from __future__ import annotations

import json

import pytest
from support.curl import curl
from support.models import CHAT_MODEL


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
def test_a_body_of_any_content_type(base_url: str, is_streamed: bool) -> None:
    body = {
        "model": CHAT_MODEL,
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 4,
        "stream": is_streamed,
    }
    answer = curl(f"{base_url}/chat/completions", "-d", json.dumps(body))
    if is_streamed:
        assert answer.endswith("data: [DONE]\n\n")
    else:
        assert json.loads(answer)["choices"][0]["message"]["content"]
