"""`/tokenize` and `/detokenize`: a text as the model reads it, in the forms of llama-server and of vLLM."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from oprel.dialects.body import off_loop, read
from oprel.dialects.delivery import unknown_fields
from oprel.dialects.exchange import Answer, Head
from oprel.dialects.headers import json_headers, oprel_headers
from oprel.dialects.loading import loading
from oprel.dialects.openai import rules
from oprel.dialects.openai.messages import conversation
from oprel.dialects.openai.requests import keep_alive_s
from oprel.dialects.openai.wire import DetokenizeBody, TokenizeBody, TokensAnswer, TokenText
from oprel.errors import InvalidRequestError, UnsupportedError
from oprel.schema import ChatRequest

if TYPE_CHECKING:
    from oprel.dialects.services import Services
    from oprel.scheduler import Lease

__all__ = ["detokenize", "tokenize"]

_MAX_TOKEN_ID = 2**31 - 1


async def tokenize(services: Services, raw: bytes, client: str) -> Answer:
    """`max_model_len` is the context of one request."""
    found = await read(raw, TokenizeBody)
    body = found.body
    rules.apply(rules.TOKENIZE, body)
    texts = [text for text in (body.content, body.prompt) if text is not None]
    if len(texts) + (body.messages is not None) != 1:
        raise InvalidRequestError("send one of 'content', 'prompt' and 'messages'", param="content")
    request = None
    if body.messages is not None:
        request = ChatRequest(await off_loop(raw, partial(conversation, body.messages)))
    has_special = bool(body.add_special if body.add_special is not None else body.add_special_tokens)
    async with _lease(services, body, client, need="load" if request is None else "chat") as lease:
        _check(lease, body.model)
        text = texts[0] if request is None else await lease.engine.render(request)
        tokens = await lease.engine.tokenize(text, add_special=has_special)
        content = msgspec.json.encode(TokensAnswer(tokens, len(tokens), lease.plan.context_tokens))
        yield Head(200, json_headers(content) + oprel_headers(lease, unknown_fields(found.unknown)))
        yield content


async def detokenize(services: Services, raw: bytes, client: str) -> Answer:
    """The text under both of its names."""
    found = await read(raw, DetokenizeBody)
    body = found.body
    rules.apply(rules.DETOKENIZE, body)
    if not all(0 <= token <= _MAX_TOKEN_ID for token in body.tokens):
        raise InvalidRequestError(f"'tokens' holds a token id outside 0 to {_MAX_TOKEN_ID}", param="tokens")
    async with _lease(services, body, client, need="load") as lease:
        _check(lease, body.model)
        text = await lease.engine.detokenize(tuple(body.tokens)) if body.tokens else ""
        content = msgspec.json.encode(TokenText(text, text))
        yield Head(200, json_headers(content) + oprel_headers(lease, unknown_fields(found.unknown)))
        yield content


def _lease(
    services: Services, body: TokenizeBody | DetokenizeBody, client: str, *, need: str
) -> AbstractAsyncContextManager[Lease]:
    loaded = loading(body.model, None, None)
    keep_alive = keep_alive_s(body.keep_alive)
    return services.scheduler.lease(loaded.name, need=need, load=loaded.load, keep_alive=keep_alive, client=client)


def _check(lease: Lease, name: str) -> None:
    if not lease.engine.capabilities.tokenize:
        raise UnsupportedError(
            f"the model {name!r} doesn't show its tokens (driver {lease.plan.driver!r})",
            capability="tokenize",
            model=name,
            driver=lease.plan.driver,
        )
