"""What a conversation is made of."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

__all__ = ["AudioPart", "ImagePart", "Message", "Part", "Role", "TextPart", "Tool", "ToolCall"]

Role = Literal["system", "developer", "user", "assistant", "tool"]


class TextPart(Struct, frozen=True, tag="text"):
    text: str


class ImagePart(Struct, frozen=True, tag="image"):
    """`data` is the encoded file (PNG, JPEG, WebP), not base64."""

    data: bytes
    media_type: str = "image/png"


class AudioPart(Struct, frozen=True, tag="audio"):
    data: bytes
    media_type: str = "audio/wav"


Part = TextPart | ImagePart | AudioPart


class ToolCall(Struct, frozen=True):
    """`arguments` is JSON text of one object, as the model wrote it."""

    name: str
    arguments: str
    id: str | None = None


class Message(Struct, frozen=True):
    """`content` may be empty beside tool calls. `tool_call_id` and `tool_name` say what a "tool" message answers."""

    role: Role
    content: tuple[Part, ...] = ()
    thinking: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    tool_name: str | None = None

    @property
    def text(self) -> str:
        """The text parts, joined without a separator."""
        return "".join(part.text for part in self.content if isinstance(part, TextPart))


class Tool(Struct, frozen=True):
    """`parameters` is a JSON Schema as JSON text; None: the function takes nothing."""

    name: str
    description: str | None = None
    parameters: str | None = None
    strict: bool = False
