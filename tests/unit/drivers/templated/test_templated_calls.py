"""Calls are found in an answer's text, whole and wherever it was cut; what is no call stays text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oprel.drivers.templated.calls import CallFinder, FoundCall

NAMES = frozenset({"add", "get_time"})
ADD = FoundCall("add", '{"a":1,"b":"{x}"}')
TIME = FoundCall("get_time", "{}")
Found = list[str | FoundCall]


def found(pieces: list[str], mark: str = "<tool_call>", end_mark: str = "</tool_call>") -> Found:
    """Neighbouring texts as one."""
    finder = CallFinder(NAMES, mark=mark, end_mark=end_mark)
    joined: Found = []
    for each in [each for piece in pieces for each in finder.feed(piece)] + finder.end():
        if isinstance(each, str) and joined and isinstance(joined[-1], str):
            joined[-1] += each
        else:
            joined.append(each)
    assert finder.has_calls == any(isinstance(each, FoundCall) for each in joined)
    return joined


CASES: dict[str, tuple[str, str, Found]] = {
    "text alone": ("<tool_call>", "Hello <b>", ["Hello <b>"]),
    "one call": (
        "<tool_call>",
        '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "{x}"}}\n</tool_call>',
        [ADD],
    ),
    "two calls": (
        "<tool_call>",
        '<tool_call>{"name":"add","arguments":{"a":1,"b":"{x}"}}</tool_call>\n'
        '<tool_call>{"name":"get_time","arguments":{}}</tool_call>',
        [ADD, TIME],
    ),
    "text before": ("<tool_call>", 'So: <tool_call>{"name":"get_time","arguments":{}}</tool_call>', ["So: ", TIME]),
    "text behind": ("<tool_call>", '<tool_call>{"name":"get_time","arguments":{}}</tool_call> ok',
                    [TIME, "ok"]),
    "parameters": ("<tool_call>", '<tool_call>{"name":"add","parameters":{"a":1,"b":"{x}"}}', [ADD]),
    "arguments as text": ("<tool_call>", '<tool_call>{"name":"get_time","arguments":"{}"}', [TIME]),
    "a list behind a mark": (
        "[TOOL_CALLS]",
        '[TOOL_CALLS] [{"name":"add","arguments":{"a":1,"b":"{x}"}},{"name":"get_time","arguments":{}}]',
        [ADD, TIME],
    ),
    "a mark that doesn't show": ("[TOOL_CALLS]", ' [{"name":"get_time","arguments":{}}]', [TIME]),
    "no mark": ("", '{"name": "add", "parameters": {"a": 1, "b": "{x}"}}', [ADD]),
    "no mark, and text first": ("", 'Use {"name": "get_time", "arguments": {}}',
                                ['Use {"name": "get_time", "arguments": {}}']),
    "JSON that is no call": ("", '{"answer": {"name": "x"}} fine', ['{"answer": {"name": "x"}} fine']),
    "an unknown tool": ("<tool_call>", '<tool_call>{"name":"rm","arguments":{}}</tool_call>',
                        ['<tool_call>{"name":"rm","arguments":{}}</tool_call>']),
    "an unknown tool and a known one": (
        "<tool_call>",
        '<tool_call>{"name":"rm","arguments":{}}</tool_call><tool_call>{"name":"get_time","arguments":{}}',
        ['<tool_call>{"name":"rm","arguments":{}}</tool_call>', TIME],
    ),
    "a name before its arguments": ("[TOOL_CALLS]", '[TOOL_CALLS]add[ARGS]{"a": 1, "b": "{x}"}', [ADD]),
    "a name in a function": ("<tool_call>", '<tool_call>{"function":{"name":"get_time","arguments":{}}}', [TIME]),
    "cut off": ("<tool_call>", '<tool_call>{"name":"add","argu', ['<tool_call>{"name":"add","argu']),
    "no JSON": ("<tool_call>", "<tool_call>{name: add}</tool_call>", ["<tool_call>{name: add}</tool_call>"]),
    "half a mark": ("<tool_call>", "a <tool_", ["a <tool_"]),
    "an action in a fence": (
        "Action: ```json",
        'Plan: none.\nAction: ```json\n[\n  {"tool_name": "get_time", "parameters": {}}\n]```',
        ["Plan: none.\n", TIME],
    ),
    "arguments that aren't an object": ("<tool_call>", '<tool_call>{"name":"add","arguments":[1]}',
                                        ['<tool_call>{"name":"add","arguments":[1]}']),
    "quotes and braces in a text": (
        "<tool_call>",
        '<tool_call>{"name":"add","arguments":{"a":"}\\"{"}}',
        [FoundCall("add", '{"a":"}\\"{"}')],
    ),
    "white space only": ("<tool_call>", " \n", [" \n"]),
    "nothing": ("<tool_call>", "", []),
}  # fmt: skip


@pytest.mark.parametrize(("mark", "text", "expected"), CASES.values(), ids=CASES)
def test_calls_are_found(mark: str, text: str, expected: Found) -> None:
    end_mark = "</tool_call>" if mark == "<tool_call>" else ""
    assert found([text], mark, end_mark) == expected
    assert found(list(text), mark, end_mark) == found([text], mark, end_mark)


_PARTS = st.sampled_from(
    ["<tool_call>", "</tool_call>", '{"name":"add","arguments":{"a":1}}', '{"name":"rm","arguments":{}}', "{", "}", "[",
     "]", '"', " ", "\n", "text", "<", "add", '{"a":{"b":2}}', ","]
)  # fmt: skip


@given(st.lists(_PARTS, max_size=10).map("".join), st.data(), st.sampled_from(["<tool_call>", "", "[TOOL", "{"]))
def test_any_cut_gives_the_same(text: str, data: st.DataObject, mark: str) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert found(pieces, mark) == found([text], mark)


def test_a_long_call_is_not_read_over_and_over() -> None:
    """A megabyte of arguments in pieces of some characters takes no more than going through it once."""
    finder = CallFinder(NAMES, mark="<tool_call>")
    body = '<tool_call>{"name":"add","arguments":{"a":"' + "x" * 200_000 + '"}}'
    events = [each for at in range(0, len(body), 64) for each in finder.feed(body[at : at + 64])]
    [call] = events
    assert isinstance(call, FoundCall) and len(call.arguments) > 200_000
