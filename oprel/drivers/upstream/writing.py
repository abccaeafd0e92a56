"""Requests as the JSON that an engine reads: by allow-list, with every value that was given and nothing else."""

from __future__ import annotations

import base64
from typing import Any

import msgspec

from oprel.drivers.upstream.quirks import Quirks
from oprel.errors import InvalidRequestError
from oprel.schema import (
    AudioPart,
    ChatRequest,
    CompletionRequest,
    ImagePart,
    JsonObject,
    JsonSchema,
    Message,
    NamedTool,
    OutputFormat,
    Part,
    Sampling,
    TextPart,
    Tool,
    ToolCall,
)

__all__ = ["RequestWriter"]

# Fields of Sampling that go out under their own name (or the one in `Quirks.renamed`).
_PLAIN = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "typical_p",
    "repeat_penalty",
    "presence_penalty",
    "frequency_penalty",
)
# llama-server's seeds are 32 bits wide, and the last one means "any".
_SEEDS = 2**32 - 1
# The final event of `/completion` repeats the prompt and all settings, unless it's told what to say.
_NATIVE_FIELDS = (
    "content", "stop", "stop_type", "stopping_word", "tokens_predicted", "tokens_evaluated", "timings",
    "completion_probabilities",
)  # fmt: skip
_NO_PARAMETERS = msgspec.Raw(b'{"type":"object","properties":{}}')


class RequestWriter:
    """For one engine; `context_tokens` is what "the whole context" comes to, where an engine wants a number."""

    def __init__(self, quirks: Quirks, *, context_tokens: int, can_think: bool) -> None:
        self._quirks = quirks
        self._context_tokens = context_tokens
        self._can_think = can_think
        self._renamed = dict(quirks.renamed)
        self._efforts = dict(quirks.efforts)

    def chat(self, request: ChatRequest) -> bytes:
        fields = self._streaming()
        fields["stream_options"] = {"include_usage": True}
        fields |= self._prompt(request)
        fields |= self._sampling(request.sampling, limit_field=self._quirks.chat_limit_field)
        fields |= _chat_format(request.format)
        if request.sampling.stop and self._quirks.tells_stop_word:
            # Its chat tells the word only among what `verbose` adds, which is cut down to it.
            fields |= {"verbose": True, "response_fields": ("stopping_word",)}
        if request.logprobs is not None:
            # llama-server tells none at all for `top_logprobs` 0: the reader drops the one.
            count = request.logprobs + self._quirks.more_top_logprobs
            fields |= {"logprobs": True, "top_logprobs": max(1, count)}
        return _encoded(fields)

    def render(self, request: ChatRequest) -> bytes:
        return _encoded(self._prompt(request))

    def complete(self, request: CompletionRequest, *, media_marker: str | None = None) -> bytes:
        """`media_marker` is what stands for an image in a prompt; needed where the request has images."""
        if not request.prompt and self._quirks.start_token is not None:
            request = msgspec.structs.replace(request, prompt=(self._quirks.start_token,))
        fields = self._streaming() | self._sampling(request.sampling)
        if self._quirks.completion_shape == "openai":
            return _encoded(fields | _openai_completion(request, more_logprobs=self._quirks.more_top_logprobs))
        fields["response_fields"] = _NATIVE_FIELDS
        if request.suffix is not None:
            fields |= {"input_prefix": request.prompt, "input_suffix": request.suffix}
        else:
            fields["prompt"] = _native_prompt(request, media_marker)
        fields |= _native_format(request.format)
        if request.logprobs is not None:
            fields["n_probs"] = max(1, request.logprobs)
        return _encoded(fields)

    def embed(self, inputs: tuple[str | tuple[int, ...], ...], *, normalize: bool) -> bytes:
        fields: dict[str, Any] = {"input": inputs, "encoding_format": "base64"}
        if self._quirks.normalize_field is not None:
            on, off = self._quirks.normalize_values
            fields[self._quirks.normalize_field] = on if normalize else off
        return _encoded(self._named() | fields)

    def rerank(self, query: str, documents: tuple[str, ...]) -> bytes:
        return _encoded(self._named() | {"query": query, "documents": documents})

    def tokenize(self, text: str, *, add_special: bool) -> bytes:
        return _encoded({"content": text, "add_special": add_special, "parse_special": True})

    def detokenize(self, tokens: tuple[int, ...]) -> bytes:
        return _encoded({"tokens": tokens})

    def _named(self) -> dict[str, Any]:
        return {} if self._quirks.model is None else {"model": self._quirks.model}

    def _streaming(self) -> dict[str, Any]:
        fields = self._named() | {"stream": True}
        if self._quirks.prompt_cache_field is not None:
            fields[self._quirks.prompt_cache_field] = True
        if self._quirks.progress_field is not None:
            fields[self._quirks.progress_field] = True
        return fields

    def _prompt(self, request: ChatRequest) -> dict[str, Any]:
        """All that the chat template is given."""
        fields: dict[str, Any] = {
            "messages": [_message(message, self._quirks.thinking_field) for message in request.messages]
        }
        if request.tools:
            fields |= self._tools(request)
        if request.thinking is not None and self._can_think:
            if self._quirks.thinking_switch is not None:
                fields["chat_template_kwargs"] = {self._quirks.thinking_switch: request.thinking.enabled}
            if not request.thinking.enabled:
                effort = self._quirks.thinking_off
            else:
                wanted = request.thinking.effort
                effort = None if wanted is None else self._efforts.get(wanted, wanted)
            if effort is not None:
                fields["reasoning_effort"] = effort
        return fields

    def _tools(self, request: ChatRequest) -> dict[str, Any]:
        tools, choice = request.tools, request.tool_choice
        fields: dict[str, Any] = {}
        if isinstance(choice, NamedTool):
            # llama-server takes a named function for "auto": one tool, and it must be called, comes to the same.
            tools, choice = tuple(tool for tool in tools if tool.name == choice.name), "required"
        if choice is not None:
            fields["tool_choice"] = choice
        if request.parallel_tool_calls is not None:
            fields["parallel_tool_calls"] = request.parallel_tool_calls
        fields["tools"] = [_tool(tool) for tool in tools]
        return fields

    def _sampling(self, sampling: Sampling, *, limit_field: str | None = None) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for name in _PLAIN:
            if (value := getattr(sampling, name)) is not None:
                fields[self._renamed.get(name, name)] = value
        limit = self._quirks.unlimited_tokens if sampling.max_tokens is None else max(1, sampling.max_tokens)
        if limit is not None:
            fields[limit_field or self._renamed.get("max_tokens", "max_tokens")] = limit
        if (last := sampling.repeat_last_n) is not None:
            fields[self._renamed.get("repeat_last_n", "repeat_last_n")] = last if last >= 0 else self._context_tokens
        if sampling.seed is not None:
            fields["seed"] = sampling.seed % _SEEDS
        if stop := [text for text in sampling.stop if text]:  # llama-server ends everything at once for ""
            fields["stop"] = stop
        if sampling.logit_bias:
            pairs = sampling.logit_bias
            fields["logit_bias"] = {str(token): bias for token, bias in pairs} if self._quirks.has_bias_map else pairs
        return fields


def _encoded(fields: dict[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(fields)
    except UnicodeEncodeError:
        raise InvalidRequestError(
            "the text holds half of a character (a lone surrogate), which no model can read"
        ) from None


def _message(message: Message, thinking_field: str | None) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,  # templates know no developer
        "content": _content(message.content),
    }
    if message.thinking and thinking_field is not None:
        fields[thinking_field] = message.thinking
    if message.tool_calls:
        fields["tool_calls"] = [_tool_call(call, n) for n, call in enumerate(message.tool_calls)]
    if message.tool_call_id is not None:
        fields["tool_call_id"] = message.tool_call_id
    if message.tool_name is not None:
        fields["name"] = message.tool_name
    return fields


def _content(parts: tuple[Part, ...]) -> str | list[dict[str, Any]]:
    if all(isinstance(part, TextPart) for part in parts):
        return "".join(part.text for part in parts if isinstance(part, TextPart))
    return [_part(part) for part in parts]


def _part(part: Part) -> dict[str, Any]:
    if isinstance(part, ImagePart):
        return {"type": "image_url", "image_url": {"url": f"data:{part.media_type};base64,{_base64(part.data)}"}}
    if isinstance(part, AudioPart):
        kind = "mp3" if part.media_type in ("audio/mpeg", "audio/mp3") else "wav"
        return {"type": "input_audio", "input_audio": {"data": _base64(part.data), "format": kind}}
    return {"type": "text", "text": part.text}


def _tool_call(call: ToolCall, position: int) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments or "{}"}
    return {"type": "function", "id": call.id or f"call_{position}", "function": function}


def _tool(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    function["parameters"] = _NO_PARAMETERS if tool.parameters is None else _raw(tool.parameters, "tools")
    if tool.strict:
        function["strict"] = True
    return {"type": "function", "function": function}


def _chat_format(wanted: OutputFormat | None) -> dict[str, Any]:
    if isinstance(wanted, JsonObject):
        return {"response_format": {"type": "json_object"}}
    if isinstance(wanted, JsonSchema):
        schema = {"name": wanted.name or "answer", "schema": _raw(wanted.schema, "response_format")}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    return {} if wanted is None else {"grammar": wanted.text}


def _native_format(wanted: OutputFormat | None) -> dict[str, Any]:
    if isinstance(wanted, JsonObject):
        return {"json_schema": {"type": "object"}}
    if isinstance(wanted, JsonSchema):
        return {"json_schema": _raw(wanted.schema, "response_format")}
    return {} if wanted is None else {"grammar": wanted.text}


def _openai_completion(request: CompletionRequest, *, more_logprobs: int) -> dict[str, Any]:
    fields: dict[str, Any] = {"prompt": request.prompt, "stream_options": {"include_usage": True}}
    fields |= _chat_format(request.format)
    if request.suffix is not None:
        fields["suffix"] = request.suffix
    if request.logprobs is not None:
        fields["logprobs"] = request.logprobs + more_logprobs
    return fields


def _native_prompt(request: CompletionRequest, media_marker: str | None) -> Any:
    if not request.images:
        return request.prompt
    assert isinstance(request.prompt, str) and media_marker is not None  # noqa: S101 - refused before
    if media_marker in request.prompt:
        raise InvalidRequestError("the prompt holds the engine's own mark for images", param="prompt")
    prompt = _with_marks(request.prompt, len(request.images), media_marker)
    return {"prompt_string": prompt, "multimodal_data": [_base64(image.data) for image in request.images]}


def _with_marks(prompt: str, images: int, media_marker: str) -> str:
    """The engine's mark where the prompt has `[img-0]`, `[img-1]`, …: Ollama's words for an image's place, which keep
    their order; images without one come first."""
    at, unplaced = 0, ""
    for number in range(images):
        tag = f"[img-{number}]"
        found = prompt.find(tag, at)
        if found < 0:
            unplaced += media_marker
            continue
        prompt = prompt[:found] + media_marker + prompt[found + len(tag) :]
        at = found + len(media_marker)
    return unplaced + prompt


def _raw(text: str, param: str) -> msgspec.Raw:
    """JSON text as it is; checked, so that it can't end its field and begin another."""
    data = text.encode("utf-8", "surrogatepass")
    try:
        msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequestError(f"the JSON Schema can't be read: {error}", param=param) from None
    return msgspec.Raw(data)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
