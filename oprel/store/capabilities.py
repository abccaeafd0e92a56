"""What a model can do, read from its file and templates by Ollama's rules and in Ollama's words."""

from __future__ import annotations

import re
from collections.abc import Iterable

from oprel.store.gguf import GgufMetadata

__all__ = ["capabilities_of", "of_jinja"]

_GO_TOOLS = re.compile(r"\{\{[^}]*\.Tools\b")
_GO_SUFFIX = re.compile(r"\{\{[^}]*\.Suffix\b")
_GO_THINKING = re.compile(r"\{\{[^}]*\.Thinking\b")


def capabilities_of(
    metadata: GgufMetadata | None,
    *,
    stated: Iterable[str] = (),
    template: str | None = None,
    projector: GgufMetadata | None = None,
) -> frozenset[str]:
    """`stated` by the config, then what the file shows. The Jinja template decides about tools and thinking where
    there is one, since that is what engines render; the Go `template` only where there is none, and about infill."""
    found = set(stated)
    if metadata is not None:
        found.add("embedding" if metadata.is_embedding else "completion")
        found.update(_senses(metadata))
    if projector is not None:
        found.update(_projector_senses(projector))
    if metadata is not None and metadata.chat_template is not None:
        found.update(of_jinja(metadata.chat_template))
    elif template is not None:
        found.update(_of_go(template))
    if template is not None and _GO_SUFFIX.search(template):
        found.add("insert")
    return frozenset(found)


def _senses(metadata: GgufMetadata) -> Iterable[str]:
    if metadata.has_vision:
        yield "vision"
    if metadata.has_audio:
        yield "audio"


def _projector_senses(projector: GgufMetadata) -> Iterable[str]:
    yield "vision"
    if any(key.endswith(".has_audio_encoder") and value is True for key, value in projector.values.items()):
        yield "audio"


def of_jinja(template: str) -> Iterable[str]:
    """What a model's own chat template has a place for."""
    if "tools" in template or "tool_call" in template:
        yield "tools"
    closes = "</think>" in template
    if closes and ("<think>" in template or "split('</think>')" in template or 'split("</think>")' in template):
        yield "thinking"


def _of_go(template: str) -> Iterable[str]:
    if _GO_TOOLS.search(template):
        yield "tools"
    if _GO_THINKING.search(template):
        yield "thinking"
