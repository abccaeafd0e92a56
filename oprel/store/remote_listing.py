"""What an OpenAI-compatible server lists at `/models`: untrusted, read within bounds, in the shapes that there are."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

__all__ = ["MAX_LISTING_BYTES", "ListedModel", "capability_words", "read_listing"]

MAX_LISTING_BYTES = 4 * 1024 * 1024
_MAX_MODELS = 5000
_MAX_ID = 500
_MAX_CONTEXT = 2**31 - 1
# Where servers say how long a context may be: vLLM and SGLang; routers; LM Studio and Mistral; llama-server (in meta);
# another Oprel (in oprel).
_CONTEXT_FIELDS = (
    "max_model_len", "context_length", "context_window", "max_context_length", "n_ctx", "context_tokens",
)  # fmt: skip
_WORDS = frozenset({"completion", "embedding", "tools", "vision", "thinking", "insert", "audio"})
_OPRELS_WORDS = {"complete": "completion", "embed": "embedding", "infill": "insert"}


class ListedModel(Struct, frozen=True):
    """`owner` is what the server says of itself or of who made the model; `capabilities` are Ollama's words, none
    where it doesn't tell."""

    id: str
    created: float = 0.0
    owner: str = ""
    context_tokens: int | None = None
    capabilities: frozenset[str] = frozenset()


def read_listing(body: bytes) -> tuple[ListedModel, ...]:
    """Entries that can't be used are left out. ValueError for what is no listing at all, in half a sentence."""
    try:
        told = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError("it isn't JSON") from None
    rows = told.get("data") if isinstance(told, dict) else told  # some answer the bare list
    if not isinstance(rows, list):
        raise ValueError("it has no list of models")
    found = {entry.id: entry for row in rows[:_MAX_MODELS] if (entry := _entry(row)) is not None}
    return tuple(found.values())


def _entry(row: Any) -> ListedModel | None:
    if not isinstance(row, dict):
        return None
    name = row.get("id")
    if not isinstance(name, str) or not 0 < len(name) <= _MAX_ID or not name.isprintable() or name != name.strip():
        return None
    created, owner = row.get("created"), row.get("owned_by")
    return ListedModel(
        id=name,
        created=float(created) if isinstance(created, int | float) and 0 < created < 1e11 else 0.0,
        owner=owner[:100] if isinstance(owner, str) else "",
        context_tokens=_context(row),
        capabilities=capability_words(row.get("capabilities")) or _oprels_capabilities(row.get("oprel")),
    )


def _context(row: dict[str, Any]) -> int | None:
    places = (row, row.get("meta"), row.get("oprel"))
    for place in places:
        if not isinstance(place, dict):
            continue
        for field in _CONTEXT_FIELDS:
            value = place.get(field)
            if isinstance(value, int) and not isinstance(value, bool) and 4 <= value <= _MAX_CONTEXT:
                return value
    return None


def capability_words(told: Any) -> frozenset[str]:
    """Those of Ollama's words that are in a list; none where it is no list."""
    if not isinstance(told, list):
        return frozenset()
    return frozenset(word for word in told if isinstance(word, str) and word in _WORDS)


def _oprels_capabilities(told: Any) -> frozenset[str]:
    """Another Oprel tells what its engines can do, in words of its own."""
    words = told.get("capabilities") if isinstance(told, dict) else None
    if not isinstance(words, list):
        return frozenset()
    return capability_words([_OPRELS_WORDS.get(word, word) for word in words if isinstance(word, str)])
