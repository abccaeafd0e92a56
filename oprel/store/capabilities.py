"""What a model can do, read from its file and templates by Ollama's rules and in Ollama's words."""

from __future__ import annotations

from collections.abc import Iterable

from oprel.schema.chat_form import chat_form, of_go, of_jinja
from oprel.store.gguf import GgufMetadata

__all__ = ["capabilities_of", "of_jinja"]


def capabilities_of(
    metadata: GgufMetadata | None,
    *,
    stated: Iterable[str] = (),
    template: str | None = None,
    renderer: str = "",
    projector: GgufMetadata | None = None,
) -> frozenset[str]:
    """`stated` by the config, then what the file shows. The template that is used, the file's own or the Go `template`,
    decides about tools and thinking, and the Go one about infill."""
    found = set(stated)
    if metadata is not None:
        found.add("embedding" if metadata.is_embedding else "completion")
        found.update(_senses(metadata))
    if projector is not None:
        found.update(_projector_senses(projector))
    jinja, architecture = (metadata.chat_template, metadata.architecture) if metadata is not None else (None, "")
    form = chat_form(jinja, template, architecture=architecture, renderer=renderer)
    if form == "jinja" and jinja is not None:
        found.update(of_jinja(jinja))
    elif form == "go" and template is not None:
        found.update(of_go(template))
    if template is not None and "insert" in of_go(template):
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
