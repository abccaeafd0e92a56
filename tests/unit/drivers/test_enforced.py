"""What a request asks for, held against what an engine declares."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from oprel.drivers.enforced import asked_for, check_request
from oprel.errors import InvalidRequestError, UnsupportedError
from oprel.schema import (
    ALL_SAMPLING,
    AudioPart,
    Capabilities,
    ChatRequest,
    CompletionRequest,
    EmbedRequest,
    Grammar,
    ImagePart,
    JsonObject,
    JsonSchema,
    Message,
    Sampling,
    TextPart,
    Thinking,
    Tool,
)

EVERYTHING = msgspec.structs.replace(
    Capabilities(sampling=ALL_SAMPLING),
    **{name: True for name in Capabilities.__struct_fields__ if name not in ("sampling", "context_tokens")},
)


def chat(*parts: Any, **changes: Any) -> ChatRequest:
    return ChatRequest((Message("user", (TextPart("a"), *parts)),), **changes)


CASES: list[tuple[Any, str]] = [
    (chat(), "chat"),
    (chat(ImagePart(b"x")), "vision"),
    (chat(AudioPart(b"x", "wav")), "audio"),
    (chat(tools=(Tool("f", "", "{}"),)), "tools"),
    (chat(thinking=Thinking(enabled=True)), "thinking"),
    (chat(format=JsonObject()), "json_schema"),
    (chat(format=JsonSchema("{}")), "json_schema"),
    (chat(format=Grammar("x")), "grammar"),
    (chat(logprobs=0), "logprobs"),
    (CompletionRequest("a"), "complete"),
    (CompletionRequest("a", suffix=""), "infill"),
    (CompletionRequest("a", images=(ImagePart(b"x"),)), "vision"),
    (CompletionRequest("a", logprobs=1), "logprobs"),
    (EmbedRequest(("a",)), "embed"),
]


@pytest.mark.parametrize(("request_", "capability"), CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_missing_is_refused_by_name(request_: Any, capability: str) -> None:
    assert capability in asked_for(request_)
    check_request(request_, EVERYTHING, driver="d", model="m")
    without = msgspec.structs.replace(EVERYTHING, **{capability: False})
    with pytest.raises(UnsupportedError) as caught:
        check_request(request_, without, driver="d", model="m")
    error = caught.value
    assert (error.capability, error.driver, error.model) == (capability, "d", "m")
    assert "'m' on the driver 'd'" in error.message


def test_thinking_that_is_switched_off_asks_for_nothing() -> None:
    assert asked_for(chat(thinking=Thinking(enabled=False))) == ("chat",)


def test_a_parameter_that_is_not_honoured_is_refused_by_name() -> None:
    some = msgspec.structs.replace(EVERYTHING, sampling=frozenset({"temperature"}))
    check_request(chat(sampling=Sampling(temperature=0.0, time_limit_s=3.0)), some, driver="d", model="m")
    with pytest.raises(UnsupportedError, match="can't honour the parameter top_k") as caught:
        check_request(chat(sampling=Sampling(temperature=0.0, top_k=0)), some, driver="d", model="m")
    assert caught.value.param == "top_k"


def test_nothing_to_embed_is_the_clients_mistake() -> None:
    with pytest.raises(InvalidRequestError, match="nothing to embed"):
        check_request(EmbedRequest(()), EVERYTHING, driver="d", model="m")
