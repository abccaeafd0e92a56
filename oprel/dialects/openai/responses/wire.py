"""The forms of `/v1/responses`: a request and the items of its input as they come in, a response as it goes out."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET, Raw, Struct, UnsetType

__all__ = [
    "CallItem",
    "CallOutputItem",
    "Deleted",
    "FunctionTool",
    "Incomplete",
    "InputDetails",
    "ItemList",
    "MessageItem",
    "OutputCall",
    "OutputDetails",
    "OutputItem",
    "OutputMessage",
    "OutputReasoning",
    "OutputText",
    "Part",
    "Problem",
    "ReasoningBody",
    "ReasoningInput",
    "ReasoningItem",
    "ReasoningText",
    "Reference",
    "ResponseAnswer",
    "ResponseBody",
    "ResponseUsage",
    "SummaryText",
    "TextBody",
    "TextFormat",
    "ToolChoiceBody",
]


# Requests.


class TextFormat(Struct):
    type: str
    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class TextBody(Struct):
    format: TextFormat | None = None
    verbosity: str | None = None


class ReasoningBody(Struct):
    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None
    mode: Any = None
    context: Any = None


class FunctionTool(Struct):
    """`type` says whether it is one: other tools are OpenAI's own, and have other fields."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    output_schema: Any = None
    defer_loading: Any = None
    allowed_callers: Any = None


class ToolChoiceBody(Struct):
    type: str
    name: str | None = None
    mode: str | None = None
    tools: list[dict[str, Any]] | None = None


class StreamOptions(Struct):
    include_obfuscation: bool | None = None


class ResponseBody(Struct):
    """`input` holds items of many forms, which `items` reads one by one."""

    model: str
    input: str | list[dict[str, Any]] | None = None
    instructions: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    include: list[str] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | ToolChoiceBody | None = None
    parallel_tool_calls: bool | None = None
    text: TextBody | None = None
    reasoning: ReasoningBody | None = None
    store: bool | None = None
    previous_response_id: str | None = None
    metadata: dict[str, str] | None = None
    truncation: str | None = None
    keep_alive: float | str | None = None
    num_ctx: int | None = None
    options: dict[str, Any] | None = None
    background: bool | None = None
    conversation: str | dict[str, Any] | None = None
    prompt: dict[str, Any] | None = None
    moderation: Any = None
    context_management: list[Any] | None = None
    max_tool_calls: int | None = None
    service_tier: str | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: Any = None


# The items of an input.


class InputText(Struct, tag_field="type", tag="input_text"):
    text: str
    prompt_cache_breakpoint: Any = None


class InputImage(Struct, tag_field="type", tag="input_image"):
    image_url: str | None = None
    file_id: str | None = None
    detail: str | None = None
    prompt_cache_breakpoint: Any = None


class InputFile(Struct, tag_field="type", tag="input_file"):
    file_id: str | None = None
    file_data: str | None = None
    file_url: str | None = None
    filename: str | None = None
    detail: str | None = None
    prompt_cache_breakpoint: Any = None


class EarlierText(Struct, tag_field="type", tag="output_text"):
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class EarlierRefusal(Struct, tag_field="type", tag="refusal"):
    refusal: str


Part = InputText | InputImage | InputFile | EarlierText | EarlierRefusal


class MessageItem(Struct):
    """Of any role; an earlier answer is one of role "assistant"."""

    role: str
    content: str | list[Part]
    type: str | None = None
    id: str | None = None
    status: str | None = None
    phase: str | None = None


class CallItem(Struct):
    type: str
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: str | None = None
    namespace: str | None = None
    caller: Any = None


class CallOutputItem(Struct):
    type: str
    output: str | list[Part]
    call_id: str | None = None
    id: str | None = None
    name: str | None = None
    namespace: str | None = None
    caller: Any = None
    status: str | None = None


class ReasoningPart(Struct):
    text: str
    type: str | None = None


class ReasoningInput(Struct):
    type: str
    id: str | None = None
    summary: list[ReasoningPart] | None = None
    content: list[ReasoningPart] | None = None
    encrypted_content: str | None = None
    status: str | None = None


class Reference(Struct):
    id: str
    type: str | None = None


# Answers.


class OutputText(Struct):
    type: str
    text: str
    annotations: list[Any]
    logprobs: Raw  # a list of `TokenLogprob`


class OutputMessage(Struct):
    type: str
    id: str
    status: str
    role: str
    content: list[OutputText]


class OutputCall(Struct):
    type: str
    id: str
    status: str
    call_id: str
    name: str
    arguments: str


class ReasoningText(Struct):
    type: str
    text: str


class SummaryText(Struct):
    type: str
    text: str


class OutputReasoning(Struct):
    type: str
    id: str
    status: str
    summary: list[SummaryText]
    content: list[ReasoningText] | UnsetType = UNSET
    encrypted_content: str | UnsetType = UNSET


OutputItem = OutputMessage | OutputCall | OutputReasoning
ReasoningItem = OutputReasoning


class InputDetails(Struct):
    """Nothing is charged for, so that writing a cache is never counted."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputDetails(Struct):
    """`reasoning_tokens` is left out where they can't be counted."""

    reasoning_tokens: int | UnsetType = UNSET


class ResponseUsage(Struct):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class Problem(Struct):
    code: str
    message: str


class Incomplete(Struct):
    reason: str


class ResponseAnswer(Struct):
    """What a request asked for comes back with the answer; `completed_at` is null, and `usage` left out,
    until it is whole."""

    id: str
    object: str
    created_at: int
    status: str
    completed_at: int | None
    error: Problem | None
    incomplete_details: Incomplete | None
    instructions: str | None
    max_output_tokens: int | None
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    reasoning: dict[str, str | None]
    temperature: float | None
    text: dict[str, Any]
    tool_choice: Any
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float | None
    truncation: str
    metadata: dict[str, str]
    usage: ResponseUsage | UnsetType = UNSET
    background: bool = False
    service_tier: str = "default"
    user: str | UnsetType = UNSET
    safety_identifier: str | UnsetType = UNSET
    prompt_cache_key: str | UnsetType = UNSET


class ItemList(Struct):
    object: str
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Deleted(Struct):
    id: str
    object: str
    deleted: bool
