"""The forms that OpenAI's clients send and read: request bodies as they come in, answers as they go out.

Everything documented has its field, so that what a client sent beside them is known to be unknown. Ranges, and
which fields are honoured, are in `rules`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import UNSET, Struct, UnsetType

from oprel.dialects.rules import Record
from oprel.schema import TokenLogprob

__all__ = [
    "AnswerMessage",
    "AudioContent",
    "ChatAnswer",
    "ChatBody",
    "ChatChoice",
    "ChoiceLogprobs",
    "CompletionAnswer",
    "CompletionBody",
    "CompletionChoice",
    "CompletionDetails",
    "Content",
    "EmbeddingAnswer",
    "EmbeddingBody",
    "EmbeddingItem",
    "EmbeddingUsage",
    "ErrorAnswer",
    "ErrorObject",
    "FileContent",
    "FunctionCall",
    "FunctionPiece",
    "FunctionSpec",
    "ImageContent",
    "LegacyLogprobs",
    "MessageBody",
    "ModelEntry",
    "ModelList",
    "ModelServing",
    "NamedFunction",
    "PromptDetails",
    "RankedDocument",
    "RefusalContent",
    "RerankAnswer",
    "RerankBody",
    "RerankDocument",
    "ResponseFormat",
    "StreamOptions",
    "TextContent",
    "TokenText",
    "TokenizeBody",
    "TokensAnswer",
    "ToolBody",
    "ToolCallAnswer",
    "ToolCallBody",
    "ToolCallPiece",
    "ToolChoiceBody",
    "UsageBody",
]


# Requests.


class TextContent(Struct, tag_field="type", tag="text"):
    text: str
    prompt_cache_breakpoint: Any = None


class ImageUrl(Struct):
    url: str
    detail: str | None = None


class ImageContent(Struct, tag_field="type", tag="image_url"):
    image_url: ImageUrl | str
    prompt_cache_breakpoint: Any = None


class InputAudio(Struct):
    data: str
    format: str


class AudioContent(Struct, tag_field="type", tag="input_audio"):
    input_audio: InputAudio
    prompt_cache_breakpoint: Any = None


class RefusalContent(Struct, tag_field="type", tag="refusal"):
    refusal: str


class FileContent(Struct, tag_field="type", tag="file"):
    file: dict[str, Any]
    prompt_cache_breakpoint: Any = None


Content = TextContent | ImageContent | AudioContent | RefusalContent | FileContent


class FunctionCall(Struct):
    name: str
    arguments: str = ""


class ToolCallBody(Struct):
    id: str | None = None
    type: str | None = None
    index: int | None = None
    function: FunctionCall | None = None
    custom: dict[str, Any] | None = None


class MessageBody(Struct):
    """All roles' fields. `reasoning` and `reasoning_content` are what earlier answers called the thinking."""

    role: str
    content: str | list[Content] | None = None
    name: str | None = None
    refusal: str | None = None
    audio: dict[str, Any] | None = None
    annotations: list[Any] | None = None
    tool_calls: list[ToolCallBody] | None = None
    tool_call_id: str | None = None
    function_call: FunctionCall | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class FunctionSpec(Struct):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolBody(Struct):
    type: str = "function"
    function: FunctionSpec | None = None
    custom: dict[str, Any] | None = None


class NamedFunction(Struct):
    name: str


class AllowedTool(Struct):
    type: str = "function"
    function: NamedFunction | None = None


class AllowedTools(Struct):
    mode: str
    tools: list[AllowedTool]


class ToolChoiceBody(Struct):
    type: str = "function"
    function: NamedFunction | None = None
    custom: dict[str, Any] | None = None
    allowed_tools: AllowedTools | None = None


class SchemaFormat(Struct):
    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseFormat(Struct):
    type: str
    json_schema: SchemaFormat | None = None


class StreamOptions(Struct):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ChatBody(Struct):
    model: str
    messages: list[MessageBody]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    n: int | None = None
    response_format: ResponseFormat | None = None
    tools: list[ToolBody] | None = None
    tool_choice: str | ToolChoiceBody | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    keep_alive: float | str | None = None
    num_ctx: int | None = None
    options: dict[str, Any] | None = None
    functions: list[Any] | None = None
    function_call: str | dict[str, Any] | None = None
    modalities: list[str] | None = None
    audio: dict[str, Any] | None = None
    web_search_options: dict[str, Any] | None = None
    moderation: Any = None
    verbosity: str | None = None
    prediction: dict[str, Any] | None = None
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: Any = None


class CompletionBody(Struct):
    model: str
    prompt: str | list[str | int | list[int]] | None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: int | None = None
    n: int | None = None
    best_of: int | None = None
    echo: bool | None = None
    suffix: str | None = None
    response_format: ResponseFormat | None = None
    keep_alive: float | str | None = None
    num_ctx: int | None = None
    options: dict[str, Any] | None = None
    user: str | None = None


class EmbeddingBody(Struct):
    model: str
    input: str | list[str | int | list[int]]
    encoding_format: str | None = None
    dimensions: int | None = None
    keep_alive: float | str | None = None
    num_ctx: int | None = None
    options: dict[str, Any] | None = None
    user: str | None = None


class RerankDocument(Struct):
    text: str


class RerankBody(Struct):
    model: str
    query: str
    documents: list[str | RerankDocument]
    top_n: int | None = None
    return_documents: bool | None = None
    keep_alive: float | str | None = None
    num_ctx: int | None = None
    options: dict[str, Any] | None = None
    user: str | None = None
    max_tokens_per_doc: int | None = None
    priority: int | None = None


class TokenizeBody(Struct):
    model: str
    content: str | None = None
    prompt: str | None = None
    messages: list[MessageBody] | None = None
    add_special: bool | None = None
    add_special_tokens: bool | None = None
    with_pieces: bool | None = None
    keep_alive: float | str | None = None


class DetokenizeBody(Struct):
    model: str
    tokens: list[int]
    keep_alive: float | str | None = None


# Answers.


class PromptDetails(Struct):
    cached_tokens: int


class CompletionDetails(Struct):
    """`reasoning_tokens` is left out where the engine doesn't count them."""

    reasoning_tokens: int | UnsetType = UNSET


class UsageBody(Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class ChoiceLogprobs(Struct):
    content: Sequence[TokenLogprob]
    refusal: None = None


class ToolCallAnswer(Struct):
    id: str
    type: str
    function: FunctionCall


class FunctionPiece(Struct):
    arguments: str
    name: str | UnsetType = UNSET


class ToolCallPiece(Struct):
    """A streamed delta of a call: only the first has `id`, `type` and the function's name."""

    index: int
    function: FunctionPiece
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET


class AnswerMessage(Struct):
    """The thinking is there twice: clients read either name."""

    role: str
    content: str | None
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[ToolCallAnswer] | UnsetType = UNSET


class ChatChoice(Struct):
    index: int
    message: AnswerMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: str


class ChatAnswer(Struct):
    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: UsageBody


class LegacyLogprobs(Struct):
    """`text_offset` counts characters from the start of the choice's text; `top_logprobs` is null when none were
    asked for."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class CompletionChoice(Struct):
    index: int
    text: str
    logprobs: LegacyLogprobs | None
    finish_reason: str


class CompletionAnswer(Struct):
    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: UsageBody


class EmbeddingItem(Struct):
    object: str
    index: int
    embedding: tuple[float, ...] | str


class EmbeddingUsage(Struct):
    prompt_tokens: int
    total_tokens: int


class EmbeddingAnswer(Struct):
    object: str
    data: list[EmbeddingItem]
    model: str
    usage: EmbeddingUsage


class RankedDocument(Struct, omit_defaults=True):
    index: int
    relevance_score: float
    document: RerankDocument | None = None


class RerankAnswer(Struct):
    object: str
    model: str
    results: list[RankedDocument]
    usage: EmbeddingUsage


class TokensAnswer(Struct):
    tokens: tuple[int, ...]
    count: int
    max_model_len: int


class TokenText(Struct):
    content: str
    prompt: str


class ModelServing(Struct, omit_defaults=True):
    """What would serve the model, or serves it now. No `driver`: nothing can, and `problem` says why."""

    capabilities: tuple[str, ...]
    loaded: bool
    driver: str | None = None
    context_tokens: int | None = None
    problem: str | None = None
    parameters: Record | None = None


class ModelEntry(Struct):
    """`oprel` is what Oprel tells beside the published fields."""

    id: str
    object: str
    created: int
    owned_by: str
    oprel: ModelServing


class ModelList(Struct):
    object: str
    data: list[ModelEntry]


class ErrorObject(Struct):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(Struct):
    error: ErrorObject
