"""What a request asks for, held against what the engine declares: refused by name before the engine is asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn

import msgspec

from oprel.drivers.upstream.quirks import Quirks
from oprel.errors import InvalidRequestError, UnsupportedError
from oprel.schema import (
    AudioPart,
    Capabilities,
    ChatRequest,
    CompletionRequest,
    EmbedRequest,
    Grammar,
    ImagePart,
    JsonObject,
    JsonSchema,
    NamedTool,
    RerankRequest,
    Sampling,
)

__all__ = ["Refusals"]

# This side ends a generation by the clock, whatever the engine can.
_OURS = frozenset({"time_limit_s"})


class Refusals:
    """For one engine. Each method returns, or raises UnsupportedError with the capability that is missing."""

    def __init__(self, capabilities: Capabilities, quirks: Quirks, *, driver: str, model: str) -> None:
        self._capabilities = capabilities
        self._quirks = quirks
        self._driver = driver
        self._model = model

    def chat(self, request: ChatRequest) -> None:
        self._require("chat", "can't chat")
        self._sampling(request.sampling)
        parts = [part for message in request.messages for part in message.content]
        if any(isinstance(part, ImagePart) for part in parts):
            self._require("vision", "takes no images", param="messages")
        if any(isinstance(part, AudioPart) for part in parts):
            self._require("audio", "takes no audio", param="messages")
        if request.tools and not self._capabilities.can_call(request.tool_choice):
            self._require("tools", "has no tools: its chat template doesn't know them", param="tools")
        self._tool_choice(request)
        if request.thinking is not None and request.thinking.enabled:
            self._require("thinking", "doesn't think", param="thinking")
        self._format(request.format)
        self._logprobs(request.logprobs)
        if request.logprobs is not None and request.tools and not self._quirks.has_logprobs_with_tools:
            self._refuse("logprobs", "can't tell logprobs of an answer that may call tools", param="logprobs")

    def complete(self, request: CompletionRequest) -> None:
        self._require("complete", "can't complete text")
        self._sampling(request.sampling)
        if request.suffix is not None:
            self._require("infill", "can't fill in the middle of a text", param="suffix")
            if self._quirks.infill_path is None or not isinstance(request.prompt, str):
                self._refuse("infill", "fills in between two texts only", param="suffix")
        if request.images:
            self._require("vision", "takes no images", param="images")
            if self._quirks.completion_shape != "native" or not isinstance(request.prompt, str):
                self._refuse("vision", "takes no images beside a raw prompt of tokens", param="images")
        self._format(request.format)
        self._logprobs(request.logprobs)

    def embed(self, request: EmbedRequest) -> None:
        self._require("embed", "makes no embeddings")
        if not request.inputs:
            raise InvalidRequestError("there is nothing to embed: the input is empty", param="input")
        if not request.normalize and self._quirks.normalize_field is None:
            self._refuse("normalize", "makes embeddings of unit length only", param="normalize")

    def rerank(self, request: RerankRequest, path: str | None) -> str:
        """The path, if there is one."""
        self._require("rerank", "doesn't rank documents")
        if path is None:
            self._refuse("rerank", "doesn't rank documents")
        if not request.documents:
            raise InvalidRequestError("there is nothing to rank: there are no documents", param="documents")
        return path

    def tokenize(self, path: str | None) -> str:
        """The path, if there is one."""
        self._require("tokenize", "doesn't show its tokens")
        if path is None:
            self._refuse("tokenize", "doesn't show its tokens")
        return path

    def _sampling(self, sampling: Sampling) -> None:
        for name in _given(sampling):
            if name not in self._capabilities.sampling and name not in _OURS:
                self._refuse(name, f"can't honour the parameter {name}", param=name)

    def _tool_choice(self, request: ChatRequest) -> None:
        choice = request.tool_choice
        if isinstance(choice, NamedTool) and choice.name not in _names(request):
            known = ", ".join(sorted(_names(request))) or "none"
            raise InvalidRequestError(
                f"tool_choice names {choice.name!r}, which isn't among the tools ({known})", param="tool_choice"
            )
        if choice == "required" and not request.tools:
            raise InvalidRequestError("tool_choice is 'required', but there are no tools", param="tool_choice")

    def _format(self, wanted: JsonObject | JsonSchema | Grammar | None) -> None:
        if isinstance(wanted, Grammar):
            self._require("grammar", "can't follow a grammar", param="grammar")
        elif wanted is not None:
            self._require("json_schema", "can't be held to JSON", param="response_format")

    def _logprobs(self, logprobs: int | None) -> None:
        if logprobs is not None:
            self._require("logprobs", "doesn't tell logprobs", param="logprobs")

    def _require(self, capability: str, otherwise: str, *, param: str | None = None) -> None:
        if not getattr(self._capabilities, capability):
            self._refuse(capability, otherwise, param=param)

    def _refuse(self, capability: str, otherwise: str, *, param: str | None = None) -> NoReturn:
        raise UnsupportedError(
            f"{self._model} on {self._driver} {otherwise}",
            capability=capability,
            model=self._model,
            driver=self._driver,
            param=param,
        )


def _given(sampling: Sampling) -> Iterator[str]:
    for name, value in zip(sampling.__struct_fields__, msgspec.structs.astuple(sampling), strict=True):
        if value is not None and value != ():
            yield name


def _names(request: ChatRequest) -> set[str]:
    return {tool.name for tool in request.tools}
