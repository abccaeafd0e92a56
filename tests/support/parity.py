"""One conversation said in every dialect, and what each dialect's answer comes to.

`ways(talk)` are the same conversation as each endpoint wants to be asked, streamed and not; each reads its answer into
a `Told`, which has the same words for all. `ways` may then be held against each other, on any engine.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, Literal

from msgspec import Struct

__all__ = ["ANSWER", "CALL", "DIALECTS", "SCHEMA", "THOUGHT", "Heard", "Talk", "Told", "Way", "call", "pairs", "ways"]

DIALECTS = ("chat", "responses", "anthropic", "ollama")

# What a model that is held to them can only say in one way: with an answer in the text and a call in the arguments.
SCHEMA = {
    "type": "object",
    "properties": {"sky": {"type": "string", "enum": ["blue"]}},
    "required": ["sky"],
    "additionalProperties": False,
}
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
ANSWER = '{"sky":"blue"}'
CALL = ("weather", {"city": "Rome"})
THOUGHT = "Let me see"

_SYSTEM = "Be brief."
_NOTHING: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
_FUNCTIONS: list[dict[str, Any]] = [
    {"name": "weather", "description": "The weather.", "parameters": PARAMETERS},
    {"name": "clock", "description": "The time.", "parameters": _NOTHING},
]
_CALLED = {"city": "Rome"}
_EARLIER = {"name": "weather", "arguments": json.dumps(_CALLED)}
_OUTPUT = "sunny"
_REPLY = {"role": "assistant", "content": "Sunny."}
_QUESTION = "And now?"


class Talk(Struct, frozen=True):
    """A conversation with a system message, an earlier call and its result, and what it asks for.

    `tools` and `schema`: whether they are asked for; without `tools` the earlier turn of the model is a text. `choice`
    None leaves calls to the model, "clock" names the one of two functions that the model wouldn't call. `think` None
    says nothing of thinking, which dialects take in different ways.
    """

    model: str
    think: bool | None
    tools: bool = False
    choice: Literal["required", "clock"] | None = None
    schema: bool = False
    max_tokens: int = 60
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    seed: int | None = None


class Told(Struct, frozen=True):
    """What an answer comes to, whatever words it came in. `calls` are names with their decoded arguments, without those
    that were cut off; the tokens of the prompt include the cached ones, which Ollama's dialect has no word for (None);
    `reason` is the engine's own word, in as far as the dialect has one for it."""

    text: str
    thinking: str
    calls: tuple[tuple[str, str], ...]
    prompt_tokens: int
    cached_tokens: int | None
    completion_tokens: int
    reason: str

    def agrees(self, other: Told) -> bool:
        """Whether both say the same, as far as each dialect can say it."""
        if None in (self.cached_tokens, other.cached_tokens):
            return self._without_cached() == other._without_cached()
        return self == other

    def _without_cached(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.__struct_fields__ if name != "cached_tokens")


class Heard(Struct, frozen=True):
    """An answer's body, as far as readers look at it."""

    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.body.splitlines()]

    def events(self) -> Iterator[dict[str, Any]]:
        for line in self.body.decode().split("\n"):
            if line.startswith("data: ") and line != "data: [DONE]":
                yield json.loads(line.removeprefix("data: "))


class Way(Struct, frozen=True):
    """How one dialect is asked, and how its answer is read."""

    dialect: str
    path: str
    body: dict[str, Any]
    read: Callable[[Heard], Told]


def ways(talk: Talk, dialects: Iterable[str] = DIALECTS) -> dict[str, Way]:
    """By name: each dialect, and each dialect streamed."""
    asked = {
        "chat": ("/v1/chat/completions", _chat(talk), _chat_told, _chat_streamed),
        "responses": ("/v1/responses", _responses(talk), _response_told, _response_streamed),
        "anthropic": ("/v1/messages", _anthropic(talk), _message_told, _message_streamed),
        "ollama": ("/api/chat", _ollama(talk), _ollama_told, _ollama_told),
    }
    found: dict[str, Way] = {}
    for dialect in dialects:
        path, body, whole, streamed = asked[dialect]
        more = {"stream_options": {"include_usage": True}} if dialect == "chat" else {}
        found[dialect] = Way(dialect, path, {**body, "stream": False}, whole)
        found[f"{dialect}, streamed"] = Way(dialect, path, {**body, "stream": True, **more}, streamed)
    return found


def pairs(names: Iterable[str]) -> list[tuple[str, str]]:
    return list(itertools.combinations(names, 2))


def call(name: str, arguments: Any) -> tuple[str, str]:
    decoded = json.loads(arguments) if isinstance(arguments, str) else arguments
    return name, json.dumps(decoded, sort_keys=True)


def _whole_calls(given: Iterable[tuple[str, Any]]) -> tuple[tuple[str, str], ...]:
    """Without one whose arguments were cut off."""
    found = list[tuple[str, str]]()
    for name, arguments in given:
        with suppress(ValueError):
            found.append(call(name, arguments))
    return tuple(found)


# -- how each is asked


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _chat(talk: Talk) -> dict[str, Any]:
    tool_call = {"id": "c1", "type": "function", "function": _EARLIER}
    earlier = [
        {"role": "assistant", "content": None, "tool_calls": [tool_call]},
        {"role": "tool", "tool_call_id": "c1", "content": _OUTPUT},
    ]
    return _given(
        model=talk.model,
        messages=[
            {"role": "system", "content": _SYSTEM},
            {"role": "user", "content": "Rome?"},
            *(earlier if talk.tools else [_REPLY]),
            {"role": "user", "content": _QUESTION},
        ],
        tools=[{"type": "function", "function": function} for function in _FUNCTIONS] if talk.tools else None,
        tool_choice={"type": "function", "function": {"name": "clock"}} if talk.choice == "clock" else talk.choice,
        response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
        if talk.schema
        else None,
        reasoning_effort={True: "low", False: "none", None: None}[talk.think],
        max_tokens=talk.max_tokens,
        stop=list(talk.stop) or None,
        temperature=talk.temperature,
        top_p=0.9,
        seed=talk.seed,
    )


def _responses(talk: Talk) -> dict[str, Any]:
    """It has no stop strings, and no seed."""
    earlier = [
        {"type": "function_call", "call_id": "c1", **_EARLIER},
        {"type": "function_call_output", "call_id": "c1", "output": _OUTPUT},
    ]
    return _given(
        model=talk.model,
        instructions=_SYSTEM,
        input=[
            {"role": "user", "content": "Rome?"},
            *(earlier if talk.tools else [_REPLY]),
            {"role": "user", "content": _QUESTION},
        ],
        tools=[{"type": "function", **function, "strict": False} for function in _FUNCTIONS] if talk.tools else None,
        tool_choice={"type": "function", "name": "clock"} if talk.choice == "clock" else talk.choice,
        text={"format": {"type": "json_schema", "name": "answer", "schema": SCHEMA}} if talk.schema else None,
        reasoning={True: {"effort": "low"}, False: {"effort": "none"}, None: None}[talk.think],
        max_output_tokens=talk.max_tokens,
        store=False,
        temperature=talk.temperature,
        top_p=0.9,
    )


def _anthropic(talk: Talk) -> dict[str, Any]:
    earlier = [
        {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "weather", "input": _CALLED}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": _OUTPUT}]},
    ]
    tools = [{"input_schema" if key == "parameters" else key: value for key, value in function.items()}
             for function in _FUNCTIONS]  # fmt: skip
    choice = {"clock": {"type": "tool", "name": "clock"}, "required": {"type": "any"}, None: None}[talk.choice]
    output = _given(
        format={"type": "json_schema", "schema": SCHEMA} if talk.schema else None,
        effort="low" if talk.think else None,
    )
    thinking = {True: {"type": "enabled", "budget_tokens": 1024}, False: {"type": "disabled"}, None: None}
    return _given(
        model=talk.model,
        system=_SYSTEM,
        messages=[
            {"role": "user", "content": "Rome?"},
            *(earlier if talk.tools else [_REPLY]),
            {"role": "user", "content": _QUESTION},
        ],
        tools=tools if talk.tools else None,
        tool_choice=choice,
        output_config=output or None,
        thinking=thinking[talk.think],
        max_tokens=talk.max_tokens,
        stop_sequences=list(talk.stop) or None,
        temperature=talk.temperature,
        top_p=0.9,
    )


def _ollama(talk: Talk) -> dict[str, Any]:
    """It has no word for a call that must come."""
    earlier = [
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "weather", "arguments": _CALLED}}]},
        {"role": "tool", "tool_name": "weather", "content": _OUTPUT},
    ]
    options = _given(
        num_predict=talk.max_tokens,
        temperature=talk.temperature,
        top_p=0.9,
        stop=list(talk.stop) or None,
        seed=talk.seed,
    )
    return _given(
        model=talk.model,
        messages=[
            {"role": "system", "content": _SYSTEM},
            {"role": "user", "content": "Rome?"},
            *(earlier if talk.tools else [_REPLY]),
            {"role": "user", "content": _QUESTION},
        ],
        tools=[{"type": "function", "function": function} for function in _FUNCTIONS] if talk.tools else None,
        format=SCHEMA if talk.schema else None,
        think={True: "low", False: False, None: None}[talk.think],
        options=options,
    )


# -- how each answers


def _chat_told(heard: Heard) -> Told:
    body = heard.json()
    message = body["choices"][0]["message"]
    functions = [each["function"] for each in message.get("tool_calls", ())]
    return Told(
        message["content"] or "",
        message.get("reasoning", ""),
        _whole_calls((each["name"], each["arguments"]) for each in functions),
        **_openai_usage(body["usage"]),
        reason=body["choices"][0]["finish_reason"],
    )


def _openai_usage(usage: dict[str, Any]) -> dict[str, int]:
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    return {
        "prompt_tokens": usage["prompt_tokens"],
        "cached_tokens": usage["prompt_tokens_details"]["cached_tokens"],
        "completion_tokens": usage["completion_tokens"],
    }


def _chat_streamed(heard: Heard) -> Told:
    text, thinking, names, arguments, reason = "", "", dict[int, str](), dict[int, str](), ""
    usage: dict[str, Any] = {}
    for event in heard.events():
        usage = event["usage"] or usage
        for choice in event["choices"]:
            delta = choice["delta"]
            text += delta.get("content") or ""
            thinking += delta.get("reasoning") or ""
            reason = choice["finish_reason"] or reason
            for piece in delta.get("tool_calls", ()):
                names.setdefault(piece["index"], piece["function"].get("name"))
                arguments[piece["index"]] = arguments.get(piece["index"], "") + piece["function"]["arguments"]
    calls = _whole_calls((names[at], arguments[at]) for at in names)
    return Told(text, thinking, calls, **_openai_usage(usage), reason=reason)


def _response_told(heard: Heard) -> Told:
    return _of_response(heard.json())


def _of_response(body: dict[str, Any]) -> Told:
    text, thinking, calls = "", "", list[tuple[str, Any]]()
    for item in body["output"]:
        match item["type"]:
            case "message":
                text += "".join(part["text"] for part in item["content"])
            case "reasoning":
                thinking += "".join(part["text"] for part in item["content"])
            case "function_call":
                calls.append((item["name"], item["arguments"]))
    usage = body["usage"]
    return Told(
        text,
        thinking,
        _whole_calls(calls),
        usage["input_tokens"],
        usage["input_tokens_details"]["cached_tokens"],
        usage["output_tokens"],
        _response_reason(body, has_calls=bool(calls)),
    )


def _response_reason(body: dict[str, Any], *, has_calls: bool) -> str:
    if body["status"] == "incomplete":
        return {"max_output_tokens": "length"}[body["incomplete_details"]["reason"]]
    assert body["status"] == "completed"
    return "tool_calls" if has_calls else "stop"


def _response_streamed(heard: Heard) -> Told:
    """From its pieces; its last event must say the same."""
    events = list(heard.events())
    text = "".join(each["delta"] for each in events if each["type"] == "response.output_text.delta")
    thinking = "".join(each["delta"] for each in events if each["type"] == "response.reasoning_text.delta")
    whole = _of_response(events[-1]["response"])
    done = [each["item"] for each in events if each["type"] == "response.output_item.done"]
    calls = _whole_calls((each["name"], each["arguments"]) for each in done if each["type"] == "function_call")
    assert (text, thinking, calls) == (whole.text, whole.thinking, whole.calls)
    return whole


_ANTHROPIC_REASONS = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length", "tool_use": "tool_calls"}


def _message_told(heard: Heard) -> Told:
    body = heard.json()
    return _of_blocks(body["content"], body["usage"], body["stop_reason"])


def _of_blocks(blocks: list[dict[str, Any]], usage: dict[str, int], reason: str) -> Told:
    """Anthropic's `input_tokens` are those that weren't cached."""
    cached = usage["cache_read_input_tokens"]
    return Told(
        "".join(block["text"] for block in blocks if block["type"] == "text"),
        "".join(block["thinking"] for block in blocks if block["type"] == "thinking"),
        _whole_calls((block["name"], block["input"]) for block in blocks if block["type"] == "tool_use"),
        usage["input_tokens"] + cached,
        cached,
        usage["output_tokens"],
        _ANTHROPIC_REASONS[reason],
    )


def _message_streamed(heard: Heard) -> Told:
    blocks, usage, reason = list[dict[str, Any]](), dict[str, int](), ""
    for event in heard.events():
        match event["type"]:
            case "message_start":
                usage |= event["message"]["usage"]
            case "content_block_start":
                blocks.append({**event["content_block"], "json": ""})
            case "content_block_delta":
                delta, block = event["delta"], blocks[event["index"]]
                for field in ("text", "thinking"):
                    block[field] = block.get(field, "") + delta.get(field, "")
                block["json"] += delta.get("partial_json", "")
            case "content_block_stop" if blocks[event["index"]]["json"]:
                blocks[event["index"]]["input"] = blocks[event["index"]]["json"]
            case "message_delta":
                usage |= event["usage"]
                reason = event["delta"]["stop_reason"]
    return _of_blocks(blocks, usage, reason)


def _ollama_told(heard: Heard) -> Told:
    """Ollama says `stop` where a call was made as well."""
    lines = heard.lines()
    messages = [line["message"] for line in lines]
    calls = [each["function"] for message in messages for each in message.get("tool_calls", ())]
    reason = lines[-1]["done_reason"]
    return Told(
        "".join(message["content"] for message in messages),
        "".join(message.get("thinking", "") for message in messages),
        _whole_calls((each["name"], each["arguments"]) for each in calls),
        lines[-1]["prompt_eval_count"],
        None,
        lines[-1]["eval_count"],
        "tool_calls" if calls and reason == "stop" else reason,
    )
