"""The forms that Anthropic's clients send and read: request bodies as they come in, answers as they go out.

Everything documented has its field, so that what a client sent beside them is known to be unknown. Content blocks and
tools are read one by one, by their type (`blocks`, `tools`). Ranges, and which fields are honoured, are in `rules`.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

from oprel.dialects.rules import Record

__all__ = [
    "Answer",
    "CountAnswer",
    "CountBody",
    "DocumentBlock",
    "ErrorAnswer",
    "ErrorObject",
    "ImageBlock",
    "MessageBody",
    "MessagesBody",
    "ModelEntry",
    "ModelList",
    "ModelServing",
    "OutputConfig",
    "RedactedThinkingBlock",
    "SearchResultBlock",
    "TextAnswer",
    "TextBlock",
    "ThinkingAnswer",
    "ThinkingBlock",
    "ThinkingConfig",
    "ToolBody",
    "ToolChoiceBody",
    "ToolResultBlock",
    "ToolUseAnswer",
    "ToolUseBlock",
    "UsageBody",
]

Block = dict[str, Any]

# Requests.


class MessageBody(Struct):
    role: str
    content: str | list[Block]


class ToolChoiceBody(Struct):
    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingConfig(Struct):
    type: str
    budget_tokens: int | None = None
    display: str | None = None


class OutputConfig(Struct):
    effort: str | None = None
    format: dict[str, Any] | None = None


class CountBody(Struct, kw_only=True):
    """What counts: all that the prompt is made of."""

    model: str
    messages: list[MessageBody]
    system: str | list[Block] | None = None
    tools: list[Block] | None = None
    tool_choice: ToolChoiceBody | None = None
    thinking: ThinkingConfig | None = None
    output_config: OutputConfig | None = None
    output_format: dict[str, Any] | None = None
    keep_alive: float | str | None = None
    num_ctx: int | None = None
    options: dict[str, Any] | None = None
    cache_control: dict[str, Any] | None = None
    context_management: dict[str, Any] | None = None
    mcp_servers: list[Any] | None = None
    speed: str | None = None
    user_profile_id: str | None = None
    workspace_id: str | None = None


class MessagesBody(CountBody, kw_only=True):
    max_tokens: int
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    container: Any = None
    diagnostics: dict[str, Any] | None = None
    inference_geo: str | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None


class ToolBody(Struct):
    name: str
    input_schema: dict[str, Any]
    type: str | None = None
    description: str | None = None
    strict: bool | None = None
    allowed_callers: list[str] | None = None
    cache_control: dict[str, Any] | None = None
    defer_loading: bool | None = None
    eager_input_streaming: bool | None = None
    input_examples: list[Any] | None = None


# Blocks of a request. `type` is known when one is read.


class TextBlock(Struct):
    text: str
    type: str = "text"
    cache_control: dict[str, Any] | None = None
    citations: Any = None


class ImageBlock(Struct):
    source: dict[str, Any]
    type: str = "image"
    cache_control: dict[str, Any] | None = None
    transformations: Any = None


class ThinkingBlock(Struct):
    thinking: str
    type: str = "thinking"
    signature: str | None = None


class RedactedThinkingBlock(Struct):
    data: str
    type: str = "redacted_thinking"


class ToolUseBlock(Struct):
    id: str
    name: str
    input: dict[str, Any]
    type: str = "tool_use"
    cache_control: dict[str, Any] | None = None
    caller: Any = None
    toolset_name: str | None = None


class ToolResultBlock(Struct):
    tool_use_id: str
    type: str = "tool_result"
    content: str | list[Block] | None = None
    is_error: bool | None = None
    cache_control: dict[str, Any] | None = None
    toolset_name: str | None = None


class DocumentBlock(Struct):
    source: dict[str, Any]
    type: str = "document"
    title: str | None = None
    context: str | None = None
    cache_control: dict[str, Any] | None = None
    citations: Any = None


class SearchResultBlock(Struct):
    content: list[Block]
    source: str
    title: str
    type: str = "search_result"
    cache_control: dict[str, Any] | None = None
    citations: Any = None


# Answers.


class UsageBody(Struct):
    """`input_tokens` doesn't include what came from the cache."""

    input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0


class TextAnswer(Struct):
    """Without `citations`: there are none, and clients that check answers refuse a null."""

    text: str
    type: str = "text"


class ThinkingAnswer(Struct):
    thinking: str
    signature: str
    type: str = "thinking"


class ToolUseAnswer(Struct):
    id: str
    name: str
    input: dict[str, Any]
    type: str = "tool_use"


class Answer(Struct):
    id: str
    model: str
    usage: UsageBody
    content: list[TextAnswer | ThinkingAnswer | ToolUseAnswer]
    stop_reason: str | None = None
    stop_sequence: str | None = None
    type: str = "message"
    role: str = "assistant"


class CountAnswer(Struct):
    input_tokens: int


class ModelServing(Struct, omit_defaults=True):
    """Oprel's own: what a client of any dialect may want to know of a model."""

    loaded: bool
    capabilities: tuple[str, ...]
    driver: str | UnsetType = UNSET
    context_tokens: int | UnsetType = UNSET
    problem: str | UnsetType = UNSET
    parameters: Record | UnsetType = UNSET


class ModelEntry(Struct, kw_only=True):
    """`object`, `created` and `owned_by` are what OpenAI's clients would look for."""

    id: str
    type: Literal["model"] = "model"
    display_name: str
    created_at: str
    lifecycle: Literal["active"] = "active"
    max_input_tokens: int | None = None
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    oprel: ModelServing


class ModelList(Struct):
    data: list[ModelEntry]
    has_more: bool
    first_id: str | None
    last_id: str | None
    object: Literal["list"] = "list"


class ErrorObject(Struct):
    type: str
    message: str


class ErrorAnswer(Struct):
    error: ErrorObject
    request_id: str | None
    type: str = "error"
