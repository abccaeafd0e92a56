"""What a client gets back: the Ollama dialect's objects, by attribute or by key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "ChatResponse",
    "EmbedResponse",
    "GenerateResponse",
    "ListResponse",
    "Message",
    "ModelDetails",
    "ModelInfo",
    "ProcessResponse",
    "ProgressResponse",
    "RunningModel",
    "ShowResponse",
    "StatusResponse",
    "ToolCall",
]


class _Response(BaseModel):
    """`response["message"]["content"]` is `response.message.content`; a field that the server didn't send is not `in`
    the response. What this version doesn't know is kept."""

    model_config = ConfigDict(extra="allow", populate_by_name=True, protected_namespaces=())

    def __getitem__(self, key: str) -> Any:
        if key not in type(self).model_fields and key not in (self.model_extra or {}):
            raise KeyError(key)
        return getattr(self, key)

    def __contains__(self, key: object) -> bool:
        return key in self.model_fields_set

    def get(self, key: str, default: Any = None) -> Any:
        return getattr(self, key) if key in self else default


class ToolCall(_Response):
    class Function(_Response):
        name: str
        arguments: Mapping[str, Any] = {}

    function: Function


class Message(_Response):
    """One turn of a conversation; also what `chat` takes."""

    role: str
    content: str | None = None
    thinking: str | None = None
    images: Sequence[str] | None = None
    tool_calls: Sequence[ToolCall] | None = None
    tool_name: str | None = None


class _Timed(_Response):
    """Durations in nanoseconds. All but `done` come with the last part of a stream."""

    model: str | None = None
    created_at: datetime | None = None
    done: bool = False
    done_reason: str | None = None
    total_duration: int | None = None
    load_duration: int | None = None
    prompt_eval_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None
    logprobs: Sequence[Any] | None = None


class ChatResponse(_Timed):
    message: Message


class GenerateResponse(_Timed):
    response: str = ""
    thinking: str | None = None
    context: Sequence[int] | None = None


class EmbedResponse(_Response):
    """One vector for each input, in order."""

    model: str | None = None
    embeddings: list[list[float]]
    total_duration: int | None = None
    load_duration: int | None = None
    prompt_eval_count: int | None = None


class ModelDetails(_Response):
    parent_model: str | None = None
    format: str | None = None
    family: str | None = None
    families: Sequence[str] | None = None
    parameter_size: str | None = None
    quantization_level: str | None = None
    context_length: int | None = None
    embedding_length: int | None = None


class ModelInfo(_Response):
    """A model in the store; `size` in bytes."""

    name: str = ""
    model: str = ""
    modified_at: datetime | None = None
    size: int = 0
    digest: str = ""
    details: ModelDetails = Field(default_factory=ModelDetails)
    capabilities: Sequence[str] | None = None
    oprel: dict[str, Any] | None = None


class ListResponse(_Response):
    models: list[ModelInfo]


class ShowResponse(_Response):
    modelfile: str | None = None
    parameters: str | None = None
    template: str | None = None
    system: str | None = None
    license: str | None = None
    details: ModelDetails = Field(default_factory=ModelDetails)
    model_info: Mapping[str, Any] | None = None
    capabilities: Sequence[str] | None = None
    modified_at: datetime | None = None
    oprel: Mapping[str, Any] | None = None


class RunningModel(_Response):
    """A model in memory; sizes in bytes. `oprel` tells engine, driver, device, slots and queue."""

    name: str = ""
    model: str = ""
    size: int = 0
    size_vram: int = 0
    digest: str = ""
    details: ModelDetails = Field(default_factory=ModelDetails)
    expires_at: datetime | None = None
    context_length: int | None = None
    oprel: Mapping[str, Any] | None = None


class ProcessResponse(_Response):
    models: list[RunningModel]


class StatusResponse(_Response):
    status: str | None = None


class ProgressResponse(StatusResponse):
    """Of a pull: `completed` of `total` bytes of the file with this digest; `oprel` may have a `note` for people."""

    digest: str | None = None
    total: int | None = None
    completed: int | None = None
    oprel: Mapping[str, Any] | None = None
