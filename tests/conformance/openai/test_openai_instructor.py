"""instructor, unchanged, against a real server and a real engine."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum

import instructor
import pytest
from openai import OpenAI
from pydantic import BaseModel, Field
from support.models import CHAT_MODEL
from support.servers import TEST_DRIVER


class Kind(StrEnum):
    FRUIT = "fruit"
    TOOL = "tool"


class Thing(BaseModel):
    """A thing and what it is."""

    name: str = Field(max_length=20)
    kind: Kind
    count: int = Field(ge=0, le=9)


@pytest.fixture
def plain(base_url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=base_url, api_key="unused", max_retries=0, timeout=60) as made:
        yield made


def asked(plain: OpenAI, mode: instructor.Mode) -> Thing:
    client = instructor.from_openai(plain, mode=mode)
    return client.chat.completions.create(
        model=CHAT_MODEL,
        response_model=Thing,
        messages=[{"role": "user", "content": "Three apples."}],
        temperature=0,
        max_tokens=128,
        max_retries=1,  # of its own kind: the answer must fit the model at once
    )


@pytest.mark.skipif(TEST_DRIVER == "openai", reason="the remote is declared without tools")
def test_by_a_tool(plain: OpenAI) -> None:
    assert isinstance(asked(plain, instructor.Mode.TOOLS), Thing)


def test_by_a_schema(plain: OpenAI) -> None:
    assert isinstance(asked(plain, instructor.Mode.JSON_SCHEMA), Thing)
