"""Which of a model's two templates its conversations are put into, decided from their texts alone."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Literal

__all__ = ["ChatForm", "chat_form", "of_go", "of_jinja"]

ChatForm = Literal["jinja", "go"]

_GO_TOOLS = re.compile(r"\{\{[^}]*\.Tools\b")
_GO_SUFFIX = re.compile(r"\{\{[^}]*\.Suffix\b")
_GO_THINKING = re.compile(r"\{\{[^}]*\.Thinking\b")
_SAYS_NOTHING = frozenset({"", "{{ .Prompt }}", "{{.Prompt}}"})
# Their answers have a form of their own (channels), which no template tells and engines read by themselves.
_FORMS_OF_THEIR_OWN = frozenset({"gptoss", "gpt-oss"})


@lru_cache(256)
def chat_form(jinja: str | None, go: str | None, *, architecture: str = "", renderer: str = "") -> ChatForm | None:
    """The Go template of a model's manifest is used, as Ollama does, unless the Jinja template of its file has tools or
    thinking which the Go one lacks, and lacks nothing of these itself; one that only passes the prompt on gives way to
    any Jinja. `renderer` names code of Ollama's that takes the place of a template: only a Jinja one does instead.
    None: there is nothing to chat with."""
    says_nothing = go is None or go.strip() in _SAYS_NOTHING
    if go is None or (says_nothing and (renderer or not go.strip())):
        return "jinja" if jinja else None
    if not jinja:
        return "go"
    if says_nothing or architecture in _FORMS_OF_THEIR_OWN:
        return "jinja"
    ours = set(of_go(go)) - {"insert"}
    return "jinja" if ours < set(of_jinja(jinja)) else "go"


def of_jinja(template: str) -> Iterable[str]:
    """What a model's own chat template has a place for, in Ollama's words."""
    if "tools" in template or "tool_call" in template:
        yield "tools"
    closes = "</think>" in template
    if closes and ("<think>" in template or "split('</think>')" in template or 'split("</think>")' in template):
        yield "thinking"


def of_go(template: str) -> Iterable[str]:
    """What a Go template has a place for."""
    if _GO_TOOLS.search(template):
        yield "tools"
    if _GO_THINKING.search(template):
        yield "thinking"
    if _GO_SUFFIX.search(template):
        yield "insert"
