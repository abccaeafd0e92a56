"""System texts and messages, from Anthropic's form to ours.

Anthropic has two roles and puts the answers of tools among a user's blocks; here each is a message of its own. Turns
of one role that follow one another become one turn, as Anthropic's documents say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from oprel.dialects.anthropic.blocks import BlockReader, Shown
from oprel.dialects.anthropic.wire import (
    MessageBody,
    RedactedThinkingBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from oprel.dialects.bounds import check_turns
from oprel.dialects.media import MAX_IMAGES
from oprel.errors import InvalidRequestError
from oprel.schema import ImagePart, Message, TextPart, ToolCall

__all__ = ["conversation", "is_prefilled"]

_BETWEEN = "\n\n"  # texts that were apart: blocks of a system prompt, turns of one role


def conversation(
    system: str | list[dict[str, Any]] | None, bodies: Sequence[MessageBody], reader: BlockReader
) -> tuple[Message, ...]:
    if not bodies:
        raise InvalidRequestError("'messages' is empty: send at least one message", param="messages")
    check_turns(len(bodies), param="messages")
    messages = list(_system(system, "system", reader)) if system else []
    names: dict[str, str] = {}
    for at, body in enumerate(bodies):
        for message in _turn(body, f"messages[{at}]", reader, names):
            _join(messages, message)
    _check(messages)
    return tuple(messages)


def is_prefilled(messages: Sequence[Message]) -> bool:
    """Whether the answer is to go on from where the last message ends."""
    return messages[-1].role == "assistant"


def _turn(body: MessageBody, path: str, reader: BlockReader, names: dict[str, str]) -> Iterator[Message]:
    """`names` learns which call went to which tool, for the results that follow."""
    match body.role:
        case "user":
            return _user(body, f"{path}.content", reader, names)
        case "assistant":
            return _assistant(body, f"{path}.content", reader, names)
        case "system":
            return _system(body.content, f"{path}.content", reader)
        case _:
            raise InvalidRequestError(
                f"'{path}.role' is {body.role[:80]!r}; it must be 'user', 'assistant' or 'system'",
                param=f"{path}.role",
            )


def _system(content: str | list[dict[str, Any]], path: str, reader: BlockReader) -> Iterator[Message]:
    if text := _BETWEEN.join(text for text in reader.texts(content, path) if text):
        yield Message("system", (TextPart(text),))


def _user(body: MessageBody, path: str, reader: BlockReader, names: dict[str, str]) -> Iterator[Message]:
    """Results first, in their order, then all else; templates want texts in messages of tools, so that a result's
    images go with what follows it."""
    shown: list[Shown] = []
    for where, block in reader.blocks(body.content, path):
        if isinstance(block, ToolResultBlock):
            message, images = _result(block, where, reader, names)
            yield message
            shown += images
        else:
            shown += reader.shown(block, where)
    if shown or not body.content:
        yield Message("user", tuple(shown))


def _result(
    block: ToolResultBlock, path: str, reader: BlockReader, names: dict[str, str]
) -> tuple[Message, list[Shown]]:
    if block.tool_use_id not in names:
        raise InvalidRequestError(
            f"'{path}.tool_use_id' is {block.tool_use_id[:80]!r}; no 'tool_use' block before it has this id",
            param=f"{path}.tool_use_id",
        )
    texts = ["Error: "] if block.is_error else []
    images: list[Shown] = []
    for where, inner in reader.blocks(block.content or "", f"{path}.content"):
        for part in reader.shown(inner, where):
            if isinstance(part, TextPart):
                texts.append(part.text)
            else:
                images.append(part)
    content = (TextPart("".join(texts)),)
    return Message("tool", content, tool_call_id=block.tool_use_id, tool_name=names[block.tool_use_id]), images


def _assistant(body: MessageBody, path: str, reader: BlockReader, names: dict[str, str]) -> Iterator[Message]:
    content: list[Shown] = []
    thinking: list[str] = []
    calls: list[ToolCall] = []
    for where, block in reader.blocks(body.content, path):
        match block:
            case ThinkingBlock(thinking=text):
                thinking.append(text)
            case RedactedThinkingBlock():
                pass
            case ToolUseBlock():
                names[block.id] = block.name
                calls.append(ToolCall(block.name, msgspec.json.encode(block.input).decode(), id=block.id))
            case _:
                content += reader.shown(block, where)
    yield Message("assistant", tuple(content), thinking="".join(thinking) or None, tool_calls=tuple(calls))


def _join(messages: list[Message], message: Message) -> None:
    """Appends it, or makes it part of the turn before it."""
    last = messages[-1] if messages else None
    if last is None or last.role != message.role or message.role not in ("user", "assistant") or last.tool_calls:
        messages.append(message)
        return
    between = (TextPart(_BETWEEN),) if last.content and message.content else ()
    messages[-1] = msgspec.structs.replace(
        last,
        content=last.content + between + message.content,
        thinking=_BETWEEN.join(text for text in (last.thinking, message.thinking) if text) or None,
        tool_calls=message.tool_calls,
    )


def _check(messages: Sequence[Message]) -> None:
    images = sum(isinstance(part, ImagePart) for message in messages for part in message.content)
    if images > MAX_IMAGES:
        raise InvalidRequestError(
            f"'messages' holds {images} images; at most {MAX_IMAGES} are allowed", param="messages"
        )
    if not any(message.role != "system" for message in messages):
        raise InvalidRequestError("'messages' holds no turn of a user or an assistant", param="messages")
    last = messages[-1]
    if last.role != "assistant":
        return
    if last.tool_calls:
        raise InvalidRequestError(
            "'messages' ends with a 'tool_use' block: send its 'tool_result' in a turn of the user's", param="messages"
        )
    if not last.text:
        raise InvalidRequestError("the assistant's last turn is empty: leave it out, or begin it", param="messages")
