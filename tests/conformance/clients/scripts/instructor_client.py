"""instructor, unchanged: typed answers by tools and schemas, whole and in parts, over OpenAI's and Anthropic's APIs."""

from __future__ import annotations

import sys
from typing import Any, Literal

import instructor
from anthropic import Anthropic
from openai import OpenAI
from pydantic import BaseModel, Field
from told import Calls

URL, MODEL = sys.argv[1:]
PLAIN = OpenAI(base_url=f"{URL}/v1", api_key="unused", max_retries=0, timeout=120)
ANTHROPIC = Anthropic(base_url=URL, api_key="unused", max_retries=0, timeout=120)


class Thing(BaseModel):
    """A thing and what it is."""

    kind: Literal["fruit", "tool"]
    count: int = Field(ge=0, le=9)


def asked(**more: Any) -> dict[str, Any]:
    """`max_retries` is instructor's own: the answer must fit at once."""
    messages = [{"role": "user", "content": "Three apples."}]
    return {"model": MODEL, "response_model": Thing, "messages": messages, "max_tokens": 64, "max_retries": 0, **more}


def typed(mode: instructor.Mode) -> Any:
    client = instructor.from_openai(PLAIN, mode=mode)
    thing, raw = client.chat.completions.create_with_completion(**asked(temperature=0))
    return [thing.model_dump(mode="json"), raw.usage.completion_tokens]


def parts(mode: instructor.Mode) -> Any:
    client = instructor.from_openai(PLAIN, mode=mode)
    return [part.model_dump(mode="json") for part in client.chat.completions.create_partial(**asked(temperature=0))]


def anthropic() -> Any:
    client = instructor.from_anthropic(ANTHROPIC)
    return client.messages.create(**asked()).model_dump(mode="json")


def responses() -> Any:
    client = instructor.from_openai(PLAIN, mode=instructor.Mode.RESPONSES_TOOLS)
    made = client.responses.create(
        model=MODEL, input="Three apples.", response_model=Thing, max_output_tokens=64, max_retries=0
    )
    return made.model_dump(mode="json")


calls = Calls()
calls.run("tool", lambda: typed(instructor.Mode.TOOLS))
calls.run("schema", lambda: typed(instructor.Mode.JSON_SCHEMA))
calls.run("tool in parts", lambda: parts(instructor.Mode.TOOLS))
calls.run("schema in parts", lambda: parts(instructor.Mode.JSON_SCHEMA))
calls.run("anthropic", anthropic)
calls.run("responses", responses)
calls.print()
