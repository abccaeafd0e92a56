"""What a driver's answers must have in common, whichever dialect asked: rules for `class TestX(…ParityRules)`.

`driven` is a server with the model of support/speaking.py, which can say each thing in one way only.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from msgspec.structs import replace

from support.driven import Driven, DrivenRules
from support.parity import ANSWER, CALL, DIALECTS, THOUGHT, Heard, Talk, Told, Way, call, pairs, ways

__all__ = ["ThinkingParityRules", "UnthinkingParityRules"]

_CALLS = (call(*CALL),)
_HALF = '"blue"'
_WITHOUT_STOPS = tuple(name for name in DIALECTS if name != "responses")
_WITH_CHOICE = tuple(name for name in DIALECTS if name != "ollama")


class ParityRules(DrivenRules):
    """All dialects, and each streamed, against each other, once the prompt is in the engine's cache: text, thinking,
    calls, usage and the reason of the end."""

    def test_a_call_that_must_come(self, driven: Driven) -> None:
        """Ollama's dialect has no word for it."""
        told = _told(driven, Talk(driven.model, think=False, tools=True, choice="required"), _WITH_CHOICE)
        assert (told.text, told.thinking, told.calls, told.reason) == ("", "", _CALLS, "tool_calls")

    def test_a_function_that_is_named(self, driven: Driven) -> None:
        """And is not the one that the model would call: llama-server takes a name for "auto"."""
        told = _told(driven, Talk(driven.model, think=False, tools=True, choice="clock"), _WITH_CHOICE)
        assert ([name for name, _ in told.calls], told.reason) == (["clock"], "tool_calls")

    def test_a_schema(self, driven: Driven) -> None:
        told = _told(driven, Talk(driven.model, think=False, schema=True))
        assert (told.text, told.thinking, told.reason) == (ANSWER, "", "stop")

    def test_an_answer_that_is_cut_off(self, driven: Driven) -> None:
        told = _told(driven, Talk(driven.model, think=False, schema=True, max_tokens=2))
        assert (told.completion_tokens, told.reason) == (2, "length")
        assert ANSWER.startswith(told.text) and told.text not in ("", ANSWER)

    def test_a_call_that_is_cut_off(self, driven: Driven) -> None:
        """Nobody is told of it as a call that could be made. What there was of it shows in its own way in each."""
        talk = Talk(driven.model, think=False, tools=True, choice="required", max_tokens=3)
        found = {name: replace(told, text="") for name, told in _answers(driven, talk, _WITH_CHOICE).items()}
        for one, other in pairs(found):
            assert found[one].agrees(found[other]), f"{one}: {found[one]}\n{other}: {found[other]}"
        assert (found["chat"].calls, found["chat"].reason) == ((), "length")

    def test_a_stop_string(self, driven: Driven) -> None:
        """Responses have none."""
        told = _told(driven, Talk(driven.model, think=False, schema=True, stop=(_HALF,)), _WITHOUT_STOPS)
        assert (told.text, told.reason) == (ANSWER.partition(_HALF)[0], "stop")


class ThinkingParityRules(ParityRules):
    """For drivers on which the model thinks and calls of itself."""

    def test_thinking_and_a_call(self, driven: Driven) -> None:
        """That the model makes of itself, after an earlier call and its output."""
        told = _told(driven, Talk(driven.model, think=True, tools=True))
        assert (told.text, told.thinking, told.calls, told.reason) == ("", THOUGHT, _CALLS, "tool_calls")
        assert told.cached_tokens is not None
        assert 0 < told.cached_tokens < told.prompt_tokens

    def test_a_call_without_thinking(self, driven: Driven) -> None:
        told = _told(driven, Talk(driven.model, think=False, tools=True))
        assert (told.text, told.thinking, told.calls, told.reason) == ("", "", _CALLS, "tool_calls")

    def test_thinking_and_a_call_that_must_come(self, driven: Driven) -> None:
        told = _told(driven, Talk(driven.model, think=True, tools=True, choice="required"), _WITH_CHOICE)
        assert (told.text, told.thinking, told.calls, told.reason) == ("", THOUGHT, _CALLS, "tool_calls")

    def test_thinking_and_a_schema(self, driven: Driven) -> None:
        """What is said is held to it; what is thought is free."""
        told = _told(driven, Talk(driven.model, think=True, schema=True))
        assert (told.text, told.thinking, told.reason) == (ANSWER, THOUGHT, "stop")

    def test_thinking_tools_and_a_schema(self, driven: Driven) -> None:
        """Whether the model may still call is the engine's to say: llama-server holds all that comes to the schema,
        vLLM lets it call."""
        told = _told(driven, Talk(driven.model, think=True, tools=True, schema=True))
        assert told.thinking == THOUGHT
        assert (told.text, told.calls, told.reason) in ((ANSWER, (), "stop"), ("", _CALLS, "tool_calls"))

    def test_thinking_that_is_cut_off(self, driven: Driven) -> None:
        told = _told(driven, Talk(driven.model, think=True, schema=True, max_tokens=2))
        assert (told.text, told.completion_tokens, told.reason) == ("", 2, "length")
        assert THOUGHT.startswith(told.thinking) and told.thinking != THOUGHT


class UnthinkingParityRules(ParityRules):
    """For drivers that read neither thinking nor calls out of a text: every dialect says so."""

    @pytest.mark.parametrize(
        ("more", "named"),
        [({"think": True}, "doesn't think"), ({"think": False, "tools": True}, "tools")],
        ids=["thinking", "calls"],
    )
    def test_what_can_not_be_done_is_refused_by_name(self, driven: Driven, more: dict[str, Any], named: str) -> None:
        for way in ways(Talk(driven.model, **more)).values():
            answer = driven.client.post(way.path, json=way.body)
            assert answer.status_code == 400, answer.text
            assert named in answer.text

    def test_nothing_said_of_thinking_is_no_wish(self, driven: Driven) -> None:
        told = _told(driven, Talk(driven.model, think=None, schema=True))
        assert (told.text, told.thinking, told.reason) == (ANSWER, "", "stop")


def _told(driven: Driven, talk: Talk, dialects: Iterable[str] = DIALECTS) -> Told:
    """What all agree on, as the dialect says it that can say the most."""
    found = _answers(driven, talk, dialects)
    for one, other in pairs(found):
        assert found[one].agrees(found[other]), f"{one}: {found[one]}\n{other}: {found[other]}"
    return found["chat"]


def _answers(driven: Driven, talk: Talk, dialects: Iterable[str] = DIALECTS) -> dict[str, Told]:
    asked = ways(talk, dialects)
    _post(driven, asked["chat"])  # so that the cache holds as much for all
    return {name: way.read(Heard(_post(driven, way))) for name, way in asked.items()}


def _post(driven: Driven, way: Way) -> bytes:
    answer = driven.client.post(way.path, json=way.body)
    assert answer.status_code == 200, answer.text
    return answer.content
