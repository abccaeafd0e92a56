"""With an engine there, a request is held to what the engine can, and its gaps are filled in their order."""

from __future__ import annotations

from typing import Any

import pytest

from oprel.dialects.openai.settling import settled
from oprel.errors import UnsupportedError
from oprel.schema import (
    ALL_SAMPLING,
    AudioPart,
    Capabilities,
    ChatRequest,
    CompletionRequest,
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
from oprel.testing import scripted_model

HELLO = (Message("user", (TextPart("hi"),)),)
PLAIN = Capabilities(chat=True, complete=True, sampling=ALL_SAMPLING)


def settle(request: Any, capabilities: Capabilities = PLAIN, **model: Any) -> Any:
    return settled(
        request,
        name="mine",
        model=scripted_model("tiny:latest", **model),
        driver="llama_cpp",
        capabilities=capabilities,
        time_limit_s=600.0,
    )


def chat(**fields: Any) -> ChatRequest:
    return ChatRequest(**{"messages": HELLO, **fields})


def test_every_value_is_explicit() -> None:
    assert settle(chat()).sampling == Sampling(
        temperature=1.0,
        top_p=1.0,
        top_k=40,
        min_p=0.0,
        typical_p=1.0,
        repeat_penalty=1.0,
        repeat_last_n=64,
        presence_penalty=0.0,
        frequency_penalty=0.0,
        time_limit_s=600.0,
    )


def test_the_dialects_temperature_stands_above_the_models_and_the_rest_below() -> None:
    parameters = (("temperature", 0.2), ("top_k", 5), ("stop", ["<end>"]), ("num_predict", 9))
    found = settle(chat(), parameters=parameters).sampling
    assert (found.temperature, found.top_k, found.stop, found.max_tokens) == (1.0, 5, ("<end>",), 9)


def test_the_request_stands_above_all() -> None:
    asked = Sampling(temperature=0.0, top_k=1, stop=("x",), max_tokens=3)
    found = settle(chat(sampling=asked), parameters=(("top_k", 5), ("stop", ["<end>"]))).sampling
    assert (found.temperature, found.top_k, found.stop, found.max_tokens) == (0.0, 1, ("x",), 3)


def test_a_limit_of_time_where_there_is_none_of_tokens() -> None:
    assert settle(chat(sampling=Sampling(max_tokens=5))).sampling.time_limit_s is None
    assert settle(CompletionRequest("x")).sampling.time_limit_s == 600.0


def test_an_engine_is_never_asked_for_no_token() -> None:
    assert settle(chat(sampling=Sampling(max_tokens=0))).sampling.max_tokens == 1


def test_an_engine_gets_only_what_it_honours() -> None:
    few = Capabilities(chat=True, sampling=frozenset({"temperature", "max_tokens"}))
    assert settle(chat(), few, parameters=(("top_k", 5),)).sampling == Sampling(temperature=1.0)


def test_a_parameter_that_the_engine_does_not_honour_is_refused_by_name() -> None:
    few = Capabilities(chat=True, sampling=frozenset({"temperature"}))
    with pytest.raises(UnsupportedError) as caught:
        settle(chat(sampling=Sampling(seed=1)), few)
    assert (caught.value.param, caught.value.driver) == ("seed", "llama_cpp")
    assert "'seed'" in caught.value.message and "'llama_cpp'" in caught.value.message


IMAGE = Message("user", (TextPart("see"), ImagePart(b"x")))
SOUND = Message("user", (AudioPart(b"x"),))
ASKS = {
    "vision": (chat(messages=(*HELLO, IMAGE)), "messages[1].content[1]"),
    "audio": (chat(messages=(SOUND,)), "messages[0].content[0]"),
    "tools": (chat(tools=(Tool("f"),)), None),
    "thinking": (chat(thinking=Thinking(True, "low")), None),
    "json_schema": (chat(format=JsonSchema("{}")), None),
    "grammar": (chat(format=Grammar("root ::= x")), None),
    "logprobs": (chat(logprobs=0), None),
    "infill": (CompletionRequest("x", suffix="y"), None),
}


@pytest.mark.parametrize(("capability", "request_", "param"), [(c, r, p) for c, (r, p) in ASKS.items()], ids=ASKS)
def test_a_capability_that_is_missing_is_named(capability: str, request_: Any, param: str | None) -> None:
    with pytest.raises(UnsupportedError) as caught:
        settle(request_)
    assert (caught.value.capability, caught.value.param, caught.value.model) == (capability, param, "mine")
    able = Capabilities(chat=True, complete=True, sampling=ALL_SAMPLING, **{capability: True})
    settle(request_, able)


def test_json_without_a_schema_needs_the_same_capability() -> None:
    with pytest.raises(UnsupportedError):
        settle(chat(format=JsonObject()))


def test_what_is_turned_off_needs_no_capability() -> None:
    assert settle(chat(thinking=Thinking(False))).thinking == Thinking(False)
    assert settle(chat(tools=(Tool("f"),), tool_choice="none")).tools == ()
