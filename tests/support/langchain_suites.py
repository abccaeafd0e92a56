"""What LangChain's standard suites have in common here, whatever package they try."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any

import httpx
import pytest
from langchain_tests.integration_tests import ChatModelIntegrationTests

__all__ = ["COPY", "HTTP", "MODEL", "StandardChat"]

MODEL = "with-tools"
COPY = "copied"
# How the packages' HTTP clients are made. A connection that outlives its test is one that nobody closes, and belongs to
# a loop that has ended. No certificate is needed, and to read them takes longer than most of the tests.
HTTP: dict[str, Any] = {
    "limits": httpx.Limits(max_keepalive_connections=0),
    "verify": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
    "timeout": 100,
}


# JSON is of use only when it came to its end; other answers may be cut short.
_MUST_END = (
    "structured_output",
    "json_mode",
    "tool_calling",
    "tool_choice",
    "runnables_as_tools",
    "unicode_tool_call",
    "agent_loop",
)


class StandardChat(ChatModelIntegrationTests):
    """`unable` says what the model that a class runs on can't do: names of tests, and why.

    `unrepeated` are parameters with which a small model doesn't repeat itself to its limit where it has to make text up
    (with them it couldn't copy a name, so they are for the tests of structured output alone).
    """

    unable: Mapping[str, str] = {}
    unrepeated: Mapping[str, Any] = {}

    @pytest.fixture(autouse=True)
    def _prepared(self, request: pytest.FixtureRequest) -> None:
        name = request.node.originalname
        self.most_tokens = 150 if any(part in name for part in _MUST_END) else 12
        self.against_repetition = self.unrepeated if "structured_output" in name else {}
        if name in self.unable:
            request.applymarker(pytest.mark.xfail(reason=self.unable[name]))

    @property
    def model_override_value(self) -> str:
        return COPY
