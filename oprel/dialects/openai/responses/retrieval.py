"""What becomes of a kept response: it is read again, its input is listed, it is deleted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from oprel.dialects.exchange import Answer, Head
from oprel.dialects.headers import json_headers
from oprel.dialects.openai.responses.keeping import ResponseStore
from oprel.dialects.openai.responses.wire import Deleted, ItemList
from oprel.errors import InvalidRequestError, UnsupportedError

__all__ = ["cancel_response", "delete_response", "list_input_items", "retrieve_response"]

_DEFAULT_LIMIT = 20
_MOST_ITEMS = 100

Query = Mapping[str, Any]


async def retrieve_response(store: ResponseStore, response_id: str, query: Query) -> Answer:
    if str(query.get("stream", "false")).lower() not in ("false", "0"):
        raise UnsupportedError(
            "'stream' is not supported: a response that is kept is whole", capability="stream", param="stream"
        )
    kept = await store.get(response_id)
    body = bytes(kept.response)
    yield Head(200, json_headers(body))
    yield body


async def list_input_items(store: ResponseStore, response_id: str, query: Query) -> Answer:
    """The newest first, unless `order` is "asc"."""
    limit = _limit(query.get("limit"))
    order = query.get("order") or "desc"
    if order not in ("asc", "desc"):
        raise InvalidRequestError(f"'order' is {str(order)[:80]!r}; it must be 'asc' or 'desc'", param="order")
    items = (await store.get(response_id)).input
    if order == "desc":
        items = items[::-1]
    items = _after(items, query.get("after"))
    page = items[:limit]
    answer = ItemList(
        object="list",
        data=page,
        first_id=page[0]["id"] if page else None,
        last_id=page[-1]["id"] if page else None,
        has_more=len(items) > limit,
    )
    body = msgspec.json.encode(answer)
    yield Head(200, json_headers(body))
    yield body


async def delete_response(store: ResponseStore, response_id: str) -> Answer:
    await store.delete(response_id)
    body = msgspec.json.encode(Deleted(response_id, "response", True))
    yield Head(200, json_headers(body))
    yield body


async def cancel_response(store: ResponseStore, response_id: str) -> Answer:
    """Always refused: leaving is how a response is cancelled here."""
    await store.get(response_id)
    raise UnsupportedError(
        "only responses that are made in the background can be cancelled, and 'background' is not supported: close the "
        "connection instead",
        capability="background",
        param="background",
    )
    yield b""  # makes this a generator, which it has to be


def _limit(text: str | None) -> int:
    if text is None:
        return _DEFAULT_LIMIT
    if not (text.isascii() and text.isdigit() and len(text) < 5 and 1 <= int(text) <= _MOST_ITEMS):
        raise InvalidRequestError(
            f"'limit' is {text[:40]!r}; it must be a number from 1 to {_MOST_ITEMS}", param="limit"
        )
    return int(text)


def _after(items: list[dict[str, Any]], item_id: str | None) -> list[dict[str, Any]]:
    if item_id is None:
        return items
    for at, item in enumerate(items):
        if item["id"] == item_id:
            return items[at + 1 :]
    raise InvalidRequestError(f"'after' is {item_id[:80]!r}, which is not one of the items", param="after")
