"""What an engine doesn't declare is refused by name, before it's asked."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from support.upstream_engine import EVERYTHING

from oprel.drivers.upstream import LLAMA_SERVER
from oprel.drivers.upstream.refusals import Refusals
from oprel.errors import InvalidRequestError, UnsupportedError
from oprel.schema import (
    AudioPart,
    ChatRequest,
    CompletionRequest,
    EmbedRequest,
    Grammar,
    ImagePart,
    JsonObject,
    JsonSchema,
    Message,
    NamedTool,
    Sampling,
    TextPart,
    Thinking,
    Tool,
)

_USER = Message("user", (TextPart("hi"),))


def chat(**fields: Any) -> ChatRequest:
    return ChatRequest(**{"messages": (_USER,), **fields})


def complete(**fields: Any) -> CompletionRequest:
    return CompletionRequest(**{"prompt": "hi", **fields})


def check(request: ChatRequest | CompletionRequest | EmbedRequest, **capabilities: Any) -> None:
    refusals = Refusals(
        msgspec.structs.replace(EVERYTHING, **capabilities), LLAMA_SERVER, driver="llama_cpp", model="m:1"
    )
    match request:
        case ChatRequest():
            refusals.chat(request)
        case CompletionRequest():
            refusals.complete(request)
        case EmbedRequest():
            refusals.embed(request)


@pytest.mark.parametrize(
    ("request_", "capability"),
    [
        (chat(), "chat"),
        (complete(), "complete"),
        (EmbedRequest(("x",)), "embed"),
        (chat(messages=(Message("user", (ImagePart(b"x"),)),)), "vision"),
        (chat(messages=(Message("user", (AudioPart(b"x"),)),)), "audio"),
        (chat(tools=(Tool("f"),)), "tools"),
        (chat(thinking=Thinking(enabled=True)), "thinking"),
        (chat(format=JsonObject()), "json_schema"),
        (chat(format=JsonSchema("{}")), "json_schema"),
        (complete(format=Grammar("x")), "grammar"),
        (chat(logprobs=0), "logprobs"),
        (complete(logprobs=1), "logprobs"),
        (complete(suffix="x"), "infill"),
        (complete(images=(ImagePart(b"x"),)), "vision"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_missing_capability(request_: Any, capability: str) -> None:
    check(request_)
    with pytest.raises(UnsupportedError, match="m:1 on llama_cpp") as caught:
        check(request_, **{capability: False})
    assert (caught.value.capability, caught.value.driver, caught.value.model) == (capability, "llama_cpp", "m:1")


@pytest.mark.parametrize(
    "sampling",
    [
        {"max_tokens": 5}, {"temperature": 0.0}, {"top_k": 0}, {"seed": 1}, {"stop": ("a",)},
        {"logit_bias": ((1, 1.0),)}, {"min_p": 0.0},
    ],
    ids=lambda value: next(iter(value)),
)  # fmt: skip
def test_sampling_that_the_engine_lacks(sampling: dict[str, Any]) -> None:
    (name,) = sampling
    request = chat(sampling=Sampling(**sampling))
    check(request)
    with pytest.raises(UnsupportedError, match=name) as caught:
        check(request, sampling=EVERYTHING.sampling - {name})
    assert (caught.value.capability, caught.value.param) == (name, name)


def test_what_was_not_given_is_not_refused() -> None:
    check(chat(), sampling=frozenset())
    check(chat(thinking=Thinking(enabled=False)), thinking=False)
    check(chat(sampling=Sampling(time_limit_s=1.0)), sampling=frozenset())


def test_combinations() -> None:
    with pytest.raises(UnsupportedError, match="logprobs of an answer that may call tools"):
        check(chat(logprobs=1, tools=(Tool("f"),)))
    with pytest.raises(UnsupportedError, match="between two texts only"):
        check(complete(prompt=(1,), suffix="x"))
    with pytest.raises(InvalidRequestError, match=r"'g', which isn't among the tools \(f\)"):
        check(chat(tools=(Tool("f"),), tool_choice=NamedTool("g")))
    with pytest.raises(InvalidRequestError, match="there are no tools"):
        check(chat(tool_choice="required"))
    with pytest.raises(InvalidRequestError, match="nothing to embed"):
        check(EmbedRequest(()))
