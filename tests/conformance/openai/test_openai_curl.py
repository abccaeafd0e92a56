"""`curl -d` without a content type, which calls its JSON a form."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import pytest
from support.models import CHAT_MODEL


@pytest.fixture
def curl() -> str:
    found = shutil.which("curl")
    if found is None:
        if os.environ.get("OPREL_TEST_REQUIRE_CURL") == "1":
            pytest.fail("curl is not on PATH")
        pytest.skip("curl is not on PATH")
    return found


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
def test_a_body_of_any_content_type(curl: str, base_url: str, is_streamed: bool) -> None:
    body = {
        "model": CHAT_MODEL,
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 4,
        "stream": is_streamed,
    }
    command = [curl, "-sS", "--fail-with-body", f"{base_url}/chat/completions", "-d", json.dumps(body)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    if is_streamed:
        assert done.stdout.endswith("data: [DONE]\n\n")
    else:
        assert json.loads(done.stdout)["choices"][0]["message"]["content"]
