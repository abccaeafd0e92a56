"""Messages, from OpenAI's form to ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from oprel.dialects.bounds import check_turns
from oprel.dialects.media import MAX_IMAGES, checked_audio, checked_image, decoded_base64
from oprel.dialects.openai.wire import (
    AudioContent,
    Content,
    FileContent,
    ImageContent,
    MessageBody,
    RefusalContent,
    TextContent,
    ToolCallBody,
)
from oprel.errors import InvalidRequestError, UnsupportedError
from oprel.schema import AudioPart, ImagePart, Message, Part, Role, TextPart, ToolCall

__all__ = ["check_images", "conversation", "image_of_url", "json_arguments"]

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
_AUDIO_TYPES = {"wav": "audio/wav", "mp3": "audio/mpeg"}


def conversation(bodies: Sequence[MessageBody]) -> tuple[Message, ...]:
    if not bodies:
        raise InvalidRequestError("'messages' is empty: send at least one message", param="messages")
    check_turns(len(bodies), param="messages")
    names: dict[str, str] = {}
    messages = tuple(_message(body, f"messages[{at}]", names) for at, body in enumerate(bodies))
    check_images(messages, param="messages")
    return messages


def check_images(messages: Sequence[Message], *, param: str) -> None:
    images = sum(isinstance(part, ImagePart) for message in messages for part in message.content)
    if images > MAX_IMAGES:
        raise InvalidRequestError(f"'{param}' holds {images} images; at most {MAX_IMAGES} are allowed", param=param)


def image_of_url(url: str, path: str) -> ImagePart:
    """The image in a data: URL; `path` is the field that has it."""
    head, comma, payload = url.partition(",")
    if not head[:5].lower() == "data:":
        raise InvalidRequestError(
            f"'{path}' must be a data: URL with the image in base64: images are not fetched from elsewhere", param=path
        )
    if not comma or not head.lower().endswith(";base64"):
        raise InvalidRequestError(f"'{path}' must be of the form data:image/png;base64,…", param=path)
    data = decoded_base64(payload, param=path)
    return ImagePart(data, checked_image(data, param=path))


def json_arguments(text: str, path: str) -> str:
    """Empty is what clients keep of a call without arguments. Engines fail on what isn't one JSON object."""
    if not text.strip():
        return "{}"
    try:
        msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequestError(
            f"'{path}' must be a string that holds one JSON object: {error}", param=path
        ) from error
    return text


def _message(body: MessageBody, path: str, names: dict[str, str]) -> Message:
    """`names` learns which call went to which tool, for the tools' answers that follow."""
    role = _ROLES.get(body.role)
    if role is None:
        raise InvalidRequestError(
            f"'{path}.role' is {body.role!r}; it must be one of {', '.join(_ROLES)}", param=f"{path}.role"
        )
    content = _content(body, path)
    if role == "assistant":
        return _assistant(body, content, path, names)
    if role == "tool":
        is_function = body.role == "function"
        tool_name = body.name if is_function else names.get(body.tool_call_id or "")
        return Message("tool", content, tool_call_id=body.tool_call_id, tool_name=tool_name)
    return Message(role, content)


def _assistant(body: MessageBody, content: tuple[Part, ...], path: str, names: dict[str, str]) -> Message:
    if body.audio is not None:
        raise UnsupportedError(
            f"'{path}.audio' is not supported: earlier spoken answers are not kept",
            capability="audio",
            param=f"{path}.audio",
        )
    calls = tuple(_calls(body, path))
    names.update((call.id, call.name) for call in calls if call.id)
    return Message("assistant", content, thinking=body.reasoning_content or body.reasoning or None, tool_calls=calls)


def _content(body: MessageBody, path: str) -> tuple[Part, ...]:
    path = f"{path}.content"
    if body.content is None:
        if body.role == "assistant":
            return (TextPart(body.refusal),) if body.refusal else ()
        if body.role == "function":
            return ()
        raise InvalidRequestError(f"'{path}' is required for a message of role {body.role!r}", param=path)
    if isinstance(body.content, str):
        return (TextPart(body.content),) if body.content else ()
    if not body.content:
        raise InvalidRequestError(f"'{path}' is an empty list: send a string or at least one part", param=path)
    check_turns(len(body.content), param=path)
    return tuple(_part(part, body.role, f"{path}[{at}]") for at, part in enumerate(body.content))


def _part(part: Content, role: str, path: str) -> Part:
    if role != "user" and not isinstance(part, TextContent | RefusalContent):
        raise InvalidRequestError(f"'{path}' must be text in a message of role {role!r}", param=path)
    match part:
        case TextContent(text=text):
            return TextPart(text)
        case RefusalContent(refusal=refusal):
            return TextPart(refusal)
        case ImageContent():
            return _image(part, f"{path}.image_url")
        case AudioContent():
            return _audio(part, f"{path}.input_audio")
        case FileContent():
            raise UnsupportedError(f"'{path}': files are not supported: send their text", capability="file", param=path)


def _image(part: ImageContent, path: str) -> ImagePart:
    is_bare = isinstance(part.image_url, str)
    url = part.image_url if isinstance(part.image_url, str) else part.image_url.url
    return image_of_url(url, path if is_bare else f"{path}.url")


def _audio(part: AudioContent, path: str) -> AudioPart:
    sound = part.input_audio
    media_type = _AUDIO_TYPES.get(sound.format)
    if media_type is None:
        raise InvalidRequestError(
            f"'{path}.format' is {sound.format!r}; it must be 'wav' or 'mp3'", param=f"{path}.format"
        )
    data = decoded_base64(sound.data, param=f"{path}.data")
    checked_audio(data, param=f"{path}.data")
    return AudioPart(data, media_type)


def _calls(body: MessageBody, path: str) -> Iterator[ToolCall]:
    for at, call in enumerate(body.tool_calls or ()):
        yield _call(call, f"{path}.tool_calls[{at}]")
    if body.function_call is not None:
        arguments = json_arguments(body.function_call.arguments, f"{path}.function_call.arguments")
        yield ToolCall(body.function_call.name, arguments)


def _call(call: ToolCallBody, path: str) -> ToolCall:
    if call.function is None:
        if call.type not in (None, "function"):
            raise UnsupportedError(
                f"'{path}.type' is {call.type!r}; only calls of functions are supported",
                capability="tools",
                param=f"{path}.type",
            )
        raise InvalidRequestError(f"'{path}.function' is required", param=f"{path}.function")
    arguments = json_arguments(call.function.arguments, f"{path}.function.arguments")
    return ToolCall(call.function.name, arguments, id=call.id)
