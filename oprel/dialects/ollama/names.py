"""What Ollama reads in a model's name beside the name itself: the `:local` and `:cloud` suffixes. And what it doesn't
read, `NAME@sha256:…`: its clients get its refusal, and only Oprel's own client gets that version of the model."""

from __future__ import annotations

from contextvars import ContextVar

from oprel.dialects.ollama.errors import refusal
from oprel.dialects.ollama.gojson import go_quoted
from oprel.errors import InvalidNameError
from oprel.store import ModelName

__all__ = ["accept_versions", "displayed", "local_name", "qualified"]

_LOCAL = ":local"
_OWN_AGENT = "oprel/"
# Of the request that is being answered.
_accepts_versions: ContextVar[bool] = ContextVar("accepts_versions", default=False)


def accept_versions(user_agent: str) -> None:
    """For the rest of the request: whether a name may have a digest."""
    _accepts_versions.set(user_agent.startswith(_OWN_AGENT))


def local_name(raw: str, *, cloud_row: str = "cloud_model") -> str:
    """The name to look up. A name that asks for a model of Ollama's cloud is refused: there is none here."""
    name = raw.strip()
    if "@" in name:
        if not _accepts_versions.get():
            raise InvalidNameError(f"{raw[:100]!r} isn't a model name.", name=raw[:100])
        return name
    asked = name.lower()
    if asked.endswith(_LOCAL):
        if asked.removesuffix(_LOCAL).endswith(":cloud"):
            raise refusal("local_and_cloud", name=go_quoted(raw))
        return name[: -len(_LOCAL)]
    if asked.endswith(":cloud") and asked.removesuffix(":cloud").endswith(_LOCAL):
        raise refusal("local_and_cloud", name=go_quoted(raw))
    if asked.endswith(":cloud") or (":" in asked.rpartition("/")[2] and asked.endswith("-cloud")):
        raise refusal(cloud_row)
    return name


def displayed(name: str) -> str:
    """`name` with its tag; unchanged where it isn't a name."""
    try:
        return str(ModelName.parse(name))
    except InvalidNameError:
        return name


def qualified(name: str) -> str:
    """`name` with all its parts: `registry.ollama.ai/library/llama3:latest`."""
    try:
        parsed = ModelName.parse(name)
    except InvalidNameError:
        return name
    return f"{parsed.host}/{parsed.namespace}/{parsed.model}:{parsed.tag}"
