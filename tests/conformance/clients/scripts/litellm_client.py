"""litellm, unchanged: each of its providers that Oprel can be, with the same questions."""

from __future__ import annotations

import os
import sys
from typing import Any, Literal

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it downloads one

import litellm
from pydantic import BaseModel
from told import Calls

litellm.suppress_debug_info = True  # it prints to where the results go

URL, MODEL, EMBEDDER, TOOLS_URL, TOOLS_MODEL = sys.argv[1:]
OPENAI = {"model": f"openai/{MODEL}", "api_base": f"{URL}/v1", "api_key": "unused"}
PROVIDERS: dict[str, dict[str, Any]] = {
    "openai": OPENAI,
    "ollama": {"model": f"ollama/{MODEL}", "api_base": URL},
    "ollama_chat": {"model": f"ollama_chat/{MODEL}", "api_base": URL},
    "anthropic": {"model": f"anthropic/{MODEL}", "api_base": URL, "api_key": "unused"},
}
SURE: dict[str, Any] = {"temperature": 0, "max_tokens": 12, "max_retries": 0, "timeout": 120}
QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CERTAIN = {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "weather"}}, "max_tokens": 64}


class City(BaseModel):
    name: Literal["Rome", "Oslo"]


def ask(**asked: Any) -> Any:
    return litellm.completion(**{"messages": QUESTION, **SURE, **asked})


def whole(**asked: Any) -> Any:
    return shown(ask(**asked))


def streamed(**asked: Any) -> Any:
    """The answer put together as litellm does it, and of how many chunks."""
    chunks = list(ask(stream=True, stream_options={"include_usage": True}, **asked))
    return {**shown(litellm.stream_chunk_builder(chunks)), "chunks": len(chunks)}


def shown(answer: Any) -> dict[str, Any]:
    (choice,) = answer.choices
    found = choice.message.tool_calls or []
    return {
        "text": choice.message.content,
        "calls": [[call.function.name, call.function.arguments] for call in found],
        "reason": choice.finish_reason,
        "tokens": [answer.usage.prompt_tokens, answer.usage.completion_tokens],
    }


def embedded(**asked: Any) -> list[int]:
    return [len(item["embedding"]) for item in litellm.embedding(input=["A cat.", "A dog."], **asked).data]


def response() -> Any:
    """Responses, streamed: its text, and the kind of the last event."""
    asked = {**OPENAI, "input": QUESTION[0]["content"], "max_output_tokens": 12, "temperature": 0, "stream": True}
    events = list(litellm.responses(**asked))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    return ["".join(deltas), events[-1].type]


def completed() -> str:
    asked = {**OPENAI, "model": f"text-completion-openai/{MODEL}", "prompt": "The capital of France is"}
    return str(litellm.text_completion(max_tokens=4, temperature=0, **asked).choices[0].text)


calls = Calls()
for name, provider in PROVIDERS.items():
    absent = {**provider, "model": f"{name}/absent"}
    calls.run(f"{name}: whole", lambda provider=provider: whole(**provider))
    calls.run(f"{name}: streamed", lambda provider=provider: streamed(**provider))
    calls.run(f"{name}: absent", lambda absent=absent: whole(**absent))
    calls.run(f"{name}: absent, streamed", lambda absent=absent: streamed(**absent))
for name in ("openai", "anthropic"):
    calls.run(f"{name}: a tool", lambda name=name: whole(**PROVIDERS[name], **CERTAIN))
    calls.run(f"{name}: a tool, streamed", lambda name=name: streamed(**PROVIDERS[name], **CERTAIN))
    calls.run(f"{name}: too hot", lambda name=name: whole(**{**PROVIDERS[name], "temperature": 3}))
    too_long = [{"role": "user", "content": "word " * 9000}]
    calls.run(f"{name}: too long", lambda name=name, turns=too_long: whole(**PROVIDERS[name], messages=turns))
for name in ("openai", "ollama_chat"):
    shape = {"response_format": City, "max_tokens": 32}
    calls.run(f"{name}: a schema", lambda name=name, shape=shape: whole(**PROVIDERS[name], **shape))
# Ollama's API can't make a call certain.
tools = {"model": f"ollama_chat/{TOOLS_MODEL}", "api_base": TOOLS_URL, "tools": [WEATHER]}
calls.run("ollama_chat: a tool", lambda: whole(**tools))
calls.run("ollama_chat: a tool, streamed", lambda: streamed(**tools))
calls.run("openai: embeddings", lambda: embedded(**{**OPENAI, "model": f"openai/{EMBEDDER}"}))
calls.run("ollama: embeddings", lambda: embedded(model=f"ollama/{EMBEDDER}", api_base=URL))
calls.run("openai: a response", response)
calls.run("openai: a completion", completed)
calls.print()
