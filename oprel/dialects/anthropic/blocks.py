"""Content blocks, one by one, from Anthropic's form to parts of a message."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

from msgspec import Struct

from oprel.dialects.anthropic.rules import BLOCKS, REFUSED_BLOCKS
from oprel.dialects.anthropic.wire import (
    DocumentBlock,
    ImageBlock,
    RedactedThinkingBlock,
    SearchResultBlock,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from oprel.dialects.body import converted
from oprel.dialects.bounds import check_turns
from oprel.dialects.media import checked_image, decoded_base64
from oprel.errors import InvalidRequestError, UnsupportedError
from oprel.schema import ImagePart, TextPart

__all__ = ["Block", "BlockReader", "Shown"]

Block = (
    TextBlock
    | ImageBlock
    | ThinkingBlock
    | RedactedThinkingBlock
    | ToolUseBlock
    | ToolResultBlock
    | DocumentBlock
    | SearchResultBlock
)
Shown = TextPart | ImagePart
"""What a model is shown of a block."""

T = TypeVar("T", bound=Struct)

_KINDS: dict[str, type[Any]] = {
    "text": TextBlock,
    "image": ImageBlock,
    "thinking": ThinkingBlock,
    "redacted_thinking": RedactedThinkingBlock,
    "tool_use": ToolUseBlock,
    "tool_result": ToolResultBlock,
    "document": DocumentBlock,
    "search_result": SearchResultBlock,
}
_SHOWN = ("text", "image", "document", "search_result")
_KNOWN = ", ".join(f"'{rule.field}'" for rule in BLOCKS if rule.treatment != "refused")


class BlockReader:
    """For one request; `unknown` collects the paths of fields that nobody knows."""

    def __init__(self) -> None:
        self.unknown: list[str] = []

    def blocks(self, content: str | list[dict[str, Any]], path: str) -> Iterator[tuple[str, Block]]:
        """Each with its path; text alone is one block. An empty text is none."""
        if isinstance(content, str):
            if content:
                yield path, TextBlock(content)
            return
        check_turns(len(content), param=path)
        for at, raw in enumerate(content):
            where = f"{path}[{at}]"
            block: Block = self.read(raw, _kind(raw, where), where)
            yield where, block

    def read(self, raw: dict[str, Any], kind: type[T], path: str) -> T:
        found = converted(raw, kind, path=path, types=_KNOWN)
        self.unknown += found.unknown
        return found.body

    def texts(self, content: str | list[dict[str, Any]], path: str) -> Iterator[str]:
        """Of content that may hold nothing but text."""
        for where, block in self.blocks(content, path):
            if not isinstance(block, TextBlock):
                raise InvalidRequestError(f"'{where}.type' is {block.type!r}; it must be 'text' here", param=where)
            yield block.text

    def shown(self, block: Block, path: str) -> Iterator[Shown]:
        """Raises for a block that is no content to be shown."""
        match block:
            case TextBlock(text=text):
                yield TextPart(text)
            case ImageBlock():
                yield _image(block, path)
            case DocumentBlock():
                yield TextPart(self._document(block, path))
            case SearchResultBlock():
                body = "".join(self.texts(block.content, f"{path}.content"))
                yield TextPart(f"{block.title}\n{block.source}\n\n{body}\n")
            case _:
                known = ", ".join(f"'{name}'" for name in _SHOWN)
                raise InvalidRequestError(
                    f"'{path}.type' is {block.type!r}; here it must be one of {known}", param=f"{path}.type"
                )

    def _document(self, block: DocumentBlock, path: str) -> str:
        source = f"{path}.source"
        match block.source:
            case {"type": "text", "data": str(data)}:
                body = data
            case {"type": "content", "content": str() | list() as content}:
                body = "".join(self.texts(_objects(content, f"{source}.content"), f"{source}.content"))
            case {"type": str(kind)} if kind not in ("text", "content"):
                raise UnsupportedError(
                    f"'{source}.type' is {kind!r}, which is not supported: send the document's text "
                    "(type 'text'), for nothing is fetched and no files are kept",
                    capability="document",
                    param=source,
                )
            case _:
                raise InvalidRequestError(f"'{source}' must be {{'type': 'text', 'data': …}}", param=source)
        above = "".join(f"{line}\n" for line in (block.title, block.context) if line)
        return f"{above}\n{body}\n" if above else body


def _kind(raw: dict[str, Any], path: str) -> type[Any]:
    name = raw.get("type")
    if name is None:
        raise InvalidRequestError(f"'{path}.type' is required", param=f"{path}.type")
    if not isinstance(name, str):
        raise InvalidRequestError(f"'{path}.type' must be a string", param=f"{path}.type")
    if name in REFUSED_BLOCKS:
        raise UnsupportedError(
            f"'{path}.type' is {name!r}, which is not supported: {REFUSED_BLOCKS[name]}",
            capability=name,
            param=f"{path}.type",
        )
    if name not in _KINDS:
        raise InvalidRequestError(
            f"'{path}.type' is {name[:80]!r}, which isn't known; these are: {_KNOWN}", param=f"{path}.type"
        )
    return _KINDS[name]


def _objects(content: str | list[Any], path: str) -> str | list[dict[str, Any]]:
    if isinstance(content, list) and not all(isinstance(entry, dict) for entry in content):
        raise InvalidRequestError(f"'{path}' must hold objects", param=path)
    return content


def _image(block: ImageBlock, path: str) -> ImagePart:
    source = f"{path}.source"
    match block.source:
        case {"type": "base64", "data": str(text)}:
            data = decoded_base64(text, param=f"{source}.data")
            return ImagePart(data, checked_image(data, param=f"{source}.data"))
        case {"type": "url" | "file" as kind}:
            raise UnsupportedError(
                f"'{source}.type' is {kind!r}, which is not supported: send the image in base64, for nothing is "
                "fetched and no files are kept",
                capability="image",
                param=source,
            )
        case _:
            raise InvalidRequestError(
                f"'{source}' must be {{'type': 'base64', 'media_type': …, 'data': …}}", param=source
            )
