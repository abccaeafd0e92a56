"""The texts that a template puts around thinking and around calls of tools, by which an answer can be read."""

from __future__ import annotations

import re
from collections.abc import Iterator

from msgspec import Struct

from oprel.templates.nodes import Action, Block, If, Node, Range, Text, With, names_in
from oprel.templates.template import Template

__all__ = ["Marks", "find_marks"]

_USUAL = ("<think>", "</think>")
_LAST_TAG = re.compile(r"(<[^<>\s]{1,60}>|\[[A-Z][A-Z_]*\])\s*\Z")
_OF_A_CALL = frozenset({"Function", "Arguments", "ToolCalls"})
_BESIDE_CALLS = frozenset({"Content", "Thinking", "IsThinkSet", "Think", "Role"})
_FIRST_TAG = re.compile(r"\s*(<[^<>\s]{1,60}>|\[/?[A-Z][A-Z_]*\])")


class Marks(Struct, frozen=True):
    """`thinking` are the texts before and after what was thought; None: the template has no place for it.
    `call` stands before a call, or before all of them; "": nothing does, and a call is JSON from the first character.
    `call_end` stands behind one."""

    thinking: tuple[str, str] | None = None
    call: str = ""
    call_end: str = ""

    def without_thinking(self, text: str) -> str:
        """An answer of the assistant without the thoughts that it may begin with."""
        if self.thinking is None or not text.lstrip().startswith(self.thinking[0]):
            return text
        _, closed, answer = text.partition(self.thinking[1])
        return answer.lstrip() if closed else text


def find_marks(template: Template) -> Marks:
    blocks = (template.root, *template.defined.values())
    thinking: tuple[str, str] | None = None
    if template.uses("Thinking"):
        thinking = next((found for block in blocks for found in _around_thinking(block)), _USUAL)
    call = next((found for block in blocks if (found := _of_calls(block)) is not None), ("", ""))
    return Marks(thinking, *call)


def _around_thinking(block: Block) -> Iterator[tuple[str, str]]:
    for at, node in enumerate(block):
        if isinstance(node, If | Range | With):
            for below in (node.body, node.otherwise or ()):
                yield from _around_thinking(below)
        elif isinstance(node, Action) and "Thinking" in names_in(node) and not node.pipe.variables:
            before, after = _text_at(block, at - 1), _text_at(block, at + 1)
            opening, closing = _last(before), _first(after)
            if opening and closing:
                yield opening, closing


def _text_at(block: Block, at: int) -> str:
    node = block[at] if 0 <= at < len(block) else None
    return node.text if isinstance(node, Text) else ""


def _last(text: str) -> str:
    """The tag at the end, or the last word."""
    if (found := _LAST_TAG.search(text)) is not None:
        return found[1]
    return text.split()[-1] if text.split() else ""


def _first(text: str) -> str:
    if (found := _FIRST_TAG.match(text)) is not None:
        return found[1]
    return text.split()[0] if text.split() else ""


def _of_calls(block: Block) -> tuple[str, str] | None:
    """From the first part of the template that is about calls."""
    for node in block:
        if not isinstance(node, If | Range | With):
            continue
        if "ToolCalls" in names_in(node.pipe) and not _OF_A_CALL.isdisjoint(names_in(node.body)):
            return _marker([text for each in node.body for text in _written(each)])
        for below in (node.body, node.otherwise or ()):
            if (found := _of_calls(below)) is not None:
                return found
    return None


def _written(node: Node) -> Iterator[str]:
    """The texts of a node, in order, with an empty one for what isn't known; what is said beside calls isn't theirs."""
    if not isinstance(node, Text):
        names = set(names_in(node.pipe)) if isinstance(node, Action | If | With) else set()
        if names and names <= _BESIDE_CALLS:
            return
    match node:
        case Text():
            yield node.text
        case If() | Range() | With():
            for each in node.body:
                yield from _written(each)
        case Action() if node.pipe.variables:
            pass
        case _:
            yield ""


def _marker(texts: list[str]) -> tuple[str, str]:
    """What stands before the JSON of the first call, and behind that of the last."""
    first = texts[0] if texts else ""
    before = first.partition("{")[0].strip().rstrip("[").strip()
    before = before.splitlines()[-1].strip() if before else ""  # a turn's own beginning may stand above it
    after = texts[-1].rpartition("}")[2].strip() if len(texts) > 1 else ""
    return before, after.lstrip("]").strip()
