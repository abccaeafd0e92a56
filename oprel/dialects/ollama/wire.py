"""What clients send, as typed structs, and how a body becomes one.

Go's rules: names of fields match in any case, `null` is "not given", unknown fields are ignored, a wrong type is
refused in the words of `encoding/json`. The structs carry Go's names because those words name them.
"""

from __future__ import annotations

import asyncio
import re
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar, cast, get_args, get_origin

import msgspec
from msgspec import Struct, field

from oprel.dialects.ollama.errors import refusal
from oprel.dialects.ollama.reading import decode_first

__all__ = [
    "ChatRequest",
    "CreateRequest",
    "DeleteRequest",
    "EmbedRequest",
    "EmbeddingRequest",
    "GenerateRequest",
    "Message",
    "PullRequest",
    "ShowRequest",
    "Tool",
    "ToolCall",
    "ToolCallFunction",
    "ToolFunction",
    "LARGE_BYTES",
    "read",
    "read_off_loop",
    "unknown_fields",
]


class GenerateRequest(Struct, frozen=True):
    model: str = ""
    prompt: str = ""
    suffix: str = ""
    system: str = ""
    template: str = ""
    context: list[int] = field(default_factory=list)
    stream: bool = True
    raw: bool = False
    format: Any = None
    images: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    keep_alive: Any = None
    think: Any = None
    truncate: bool = True
    shift: bool | None = None
    logprobs: bool = False
    top_logprobs: int = 0
    debug_render_only: bool = field(name="_debug_render_only", default=False)


class ToolCallFunction(Struct, frozen=True):
    name: str = ""
    arguments: Any = None
    index: int = 0


class ToolCall(Struct, frozen=True):
    function: ToolCallFunction = ToolCallFunction()
    id: str = ""


class Message(Struct, frozen=True):
    role: str = ""
    content: str = ""
    thinking: str = ""
    images: list[str] = field(default_factory=list)
    tool_calls: list[ToolCall] = field(default_factory=list)
    tool_name: str = ""
    tool_call_id: str = ""


class ToolFunction(Struct, frozen=True):
    name: str = ""
    description: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)


class Tool(Struct, frozen=True):
    function: ToolFunction = ToolFunction()
    type: str = ""


class ChatRequest(Struct, frozen=True):
    model: str = ""
    messages: list[Message] = field(default_factory=list)
    stream: bool = True
    format: Any = None
    keep_alive: Any = None
    tools: list[Tool] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    think: Any = None
    truncate: bool = True
    shift: bool | None = None
    logprobs: bool = False
    top_logprobs: int = 0
    debug_render_only: bool = field(name="_debug_render_only", default=False)


class EmbedRequest(Struct, frozen=True):
    model: str = ""
    input: Any = None
    truncate: bool = True
    dimensions: int = 0
    keep_alive: Any = None
    options: dict[str, Any] = field(default_factory=dict)


class EmbeddingRequest(Struct, frozen=True):
    model: str = ""
    prompt: str = ""
    keep_alive: Any = None
    options: dict[str, Any] = field(default_factory=dict)


class ShowRequest(Struct, frozen=True):
    """`name` is the old word for `model`, here and below."""

    model: str = ""
    name: str = ""
    system: str = ""
    template: str = ""
    verbose: bool = False
    options: dict[str, Any] = field(default_factory=dict)


class PullOptions(Struct, frozen=True):
    """What Oprel's own clients add, under the key `oprel`. Zero: no limit."""

    allow_low_quality: bool = False
    max_memory_mb: int = 0


class PullRequest(Struct, frozen=True):
    model: str = ""
    name: str = ""
    insecure: bool = False
    username: str = ""
    password: str = ""
    stream: bool = True
    oprel: PullOptions = PullOptions()


class PushRequest(Struct, frozen=True):
    model: str = ""
    name: str = ""
    insecure: bool = False
    username: str = ""
    password: str = ""
    stream: bool = True


class CreateRequest(Struct, frozen=True):
    """Files are named by the digests of uploaded blobs."""

    model: str = ""
    name: str = ""
    from_: str = field(name="from", default="")
    files: dict[str, str] = field(default_factory=dict)
    adapters: dict[str, str] = field(default_factory=dict)
    draft_files: dict[str, str] = field(default_factory=dict)
    quantize: str = ""
    quantization: str = ""
    draft_quantize: str = ""
    template: str = ""
    system: str = ""
    license: Any = None
    parameters: dict[str, Any] = field(default_factory=dict)
    messages: list[Message] = field(default_factory=list)
    renderer: str = ""
    parser: str = ""
    requires: str = ""
    remote_host: str = ""
    info: dict[str, Any] = field(default_factory=dict)
    stream: bool = True


class DeleteRequest(Struct, frozen=True):
    model: str = ""
    name: str = ""


class CopyRequest(Struct, frozen=True):
    source: str = ""
    destination: str = ""


# What is read on the loop: about a millisecond of work.
LARGE_BYTES = 256 * 1024

Request = TypeVar("Request", bound=Struct)

# Sent by old or official clients, without any effect on Ollama either: no warning.
_SILENT = frozenset({"width", "height", "steps", "username", "password"})


def read(body: bytes, wanted: type[Request]) -> tuple[Request, tuple[str, ...]]:
    """`body` as a request, with the names of the fields that nothing was done with."""
    value = decode_first(body)
    if value is None:
        value = {}
    unknown = unknown_fields(value, wanted)
    try:
        return msgspec.convert(_folded(value, wanted), wanted), unknown
    except msgspec.ValidationError as error:
        raise refusal("bad_json", text=_in_go_words(str(error), wanted)) from None


async def read_off_loop(body: bytes, wanted: type[Request]) -> tuple[Request, tuple[str, ...]]:
    """As `read`; a large body (images) is read in a thread, since it would hold up every other request."""
    if len(body) <= LARGE_BYTES:
        return read(body, wanted)
    return await asyncio.to_thread(read, body, wanted)


def unknown_fields(value: object, wanted: type[Struct]) -> tuple[str, ...]:
    if not isinstance(value, dict):
        return ()
    known = _fields(wanted)
    return tuple(name for name in value if name.lower() not in known and name.lower() not in _SILENT)


@cache
def _fields(struct: type[Struct]) -> Mapping[str, Any]:
    """Type by wire name."""
    hints = typing.get_type_hints(struct)
    return {item.encode_name: hints[item.name] for item in msgspec.structs.fields(struct)}


def _folded(value: object, wanted: Any) -> object:
    """`value` with the names of `wanted`'s fields in lower case and without nulls, all the way down."""
    if get_origin(wanted) is list and isinstance(value, list):
        (item,) = get_args(wanted)
        return [_folded(_zero(item) if entry is None else entry, item) for entry in value]
    if not (isinstance(wanted, type) and issubclass(wanted, Struct)) or not isinstance(value, dict):
        return value
    fields = _fields(wanted)
    folded = {}
    for name, entry in value.items():
        kind = fields.get(name.lower())
        if kind is not None and entry is not None:
            folded[name.lower()] = _folded(entry, kind)
    return folded


def _zero(kind: Any) -> object:
    return {} if isinstance(kind, type) and issubclass(kind, Struct) else kind()


# --- wrong types, in Go's words

_EXPECTED = re.compile(r"^(?:Expected `[^`]*`, got `(?P<got>[^`]*)`|.*?)(?: - at `\$(?P<path>[^`]*)`)?$", re.DOTALL)
_GO_VALUES = {"str": "string", "int": "number", "float": "number", "bool": "bool", "array": "array", "object": "object"}
_GO_TYPES: Mapping[Any, str] = {
    str: "string",
    bool: "bool",
    bool | None: "bool",
    int: "int",
    float: "float64",
}
# Decoded by a method of its own in Ollama, so that an error inside is told under the struct around it.
_SELF_DECODING = (Message,)


def _in_go_words(said: str, wanted: type[Struct]) -> str:
    found = _EXPECTED.match(said)
    got = _GO_VALUES.get((found and found["got"]) or "", "value")
    names = re.findall(r"\.(\w+)", (found and found["path"]) or "")
    if not names:
        return f"json: cannot unmarshal {got} into Go value of type api.{wanted.__name__}"
    owner, kind, in_list = wanted, cast(Any, wanted), False
    for name in names:
        if isinstance(kind, type) and issubclass(kind, Struct) and kind not in _SELF_DECODING and owner is not Message:
            owner = kind
        kind = _fields(kind)[name]
        if get_origin(kind) is list and name != names[-1]:
            (kind,) = get_args(kind)
    in_list = bool(found and (found["path"] or "").endswith("]"))
    if in_list and get_origin(kind) is list:
        (kind,) = get_args(kind)
    return (
        f"json: cannot unmarshal {got} into Go struct field {owner.__name__}.{'.'.join(names)} of type {_go_type(kind)}"
    )


def _go_type(kind: Any) -> str:
    if get_origin(kind) is list:
        return f"[]{_go_type(get_args(kind)[0])}"
    if get_origin(kind) is dict:
        return "map[string]interface {}"
    if isinstance(kind, type) and issubclass(kind, Struct):
        return f"api.{kind.__name__}"
    return _GO_TYPES.get(kind, "interface {}")
