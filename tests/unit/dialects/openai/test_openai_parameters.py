"""What a model's record says of a field is what becomes of it: record, documentation and refusal are of one table."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.asgi import Reply
from support.scripted_app import scripted_app

from oprel.dialects.openai import router, rules
from oprel.dialects.rules import Rule, treatments
from oprel.schema import ALL_SAMPLING, Capabilities
from oprel.testing import Script

FUNCTION = {"type": "function", "function": {"name": "f"}}
# A value that asks for something, for each field that needs a capability; with what must stand beside it.
CHAT: dict[str, dict[str, Any]] = {
    "max_tokens": {"max_tokens": 5},
    "max_completion_tokens": {"max_completion_tokens": 5},
    "temperature": {"temperature": 0.5},
    "top_p": {"top_p": 0.5},
    "presence_penalty": {"presence_penalty": 0.5},
    "frequency_penalty": {"frequency_penalty": 0.5},
    "seed": {"seed": 1},
    "stop": {"stop": "x"},
    "logit_bias": {"logit_bias": {"1": 1}},
    "top_k": {"top_k": 3},
    "min_p": {"min_p": 0.5},
    "repeat_penalty": {"repeat_penalty": 1.5},
    "response_format": {"response_format": {"type": "json_object"}},
    "logprobs": {"logprobs": True},
    "top_logprobs": {"logprobs": True, "top_logprobs": 1},
    "tools": {"tools": [FUNCTION]},
    "tool_choice": {"tools": [FUNCTION], "tool_choice": "auto"},
    "parallel_tool_calls": {"tools": [FUNCTION], "parallel_tool_calls": False},
    "reasoning_effort": {"reasoning_effort": "low"},
}
ALL = Capabilities(
    chat=True, complete=True, tools=True, thinking=True, json_schema=True, logprobs=True, infill=True,
    sampling=ALL_SAMPLING,
)  # fmt: skip
HELLO = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


def without(needed: str) -> Capabilities:
    from msgspec.structs import replace

    if needed in ALL_SAMPLING:
        return replace(ALL, sampling=ALL_SAMPLING - {needed})
    # What is forced needs schemas; here nothing is.
    return replace(ALL, **{needed: False}) if needed != "tools" else replace(ALL, tools=False, json_schema=False)


def asked(capabilities: Capabilities, body: dict[str, Any]) -> tuple[Reply, dict[str, str]]:
    async def go() -> tuple[Reply, dict[str, str]]:
        async with scripted_app(router, Script(capabilities=capabilities)) as app:
            await app.post("/v1/chat/completions", HELLO)  # a record is the engine's own word once it is loaded
            shown = await app.get("/v1/models/tiny")
            record = shown.json()["oprel"]["parameters"]["/v1/chat/completions"]
            return await app.post("/v1/chat/completions", {**HELLO, **body}), record

    return asyncio.run(go())


NEEDING = [rule for rule in rules.CHAT if rule.needs]


def test_there_is_a_case_for_each_field_that_needs_something() -> None:
    assert {rule.field for rule in NEEDING} == CHAT.keys()


@pytest.mark.parametrize("rule", NEEDING, ids=lambda rule: rule.field)
def test_a_field_is_refused_exactly_where_the_record_says_so(rule: Rule) -> None:
    reply, record = asked(without(rule.needs), CHAT[rule.field])
    assert record[rule.field] == "refused"
    assert reply.status == 400, reply.body
    assert reply.json()["error"]["code"] == "unsupported_parameter"

    reply, record = asked(ALL, CHAT[rule.field])
    assert record[rule.field] == "honoured"
    assert reply.status == 200, reply.body


def test_tools_that_can_only_be_forced_are_honoured_in_part() -> None:
    told = treatments(rules.CHAT, Capabilities(chat=True, json_schema=True))
    assert (told["tools"], told["tool_choice"]) == ("partly", "partly")
    assert (told["store"], told["functions"], told["messages"]) == ("ignored", "refused", "honoured")
