"""`/v1/messages` and `/v1/messages/count_tokens`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from oprel.dialects.anthropic import rules
from oprel.dialects.anthropic.answers import MessageStream, label, message_answer
from oprel.dialects.anthropic.errors import id_header
from oprel.dialects.anthropic.requests import Asked, counted_request, effort_warnings, fitted, message_request
from oprel.dialects.anthropic.wire import CountAnswer, CountBody, MessagesBody
from oprel.dialects.body import off_loop, read
from oprel.dialects.delivery import muted, streamed, unknown_fields, waiting, whole
from oprel.dialects.exchange import Answer, Head, Waiting
from oprel.dialects.headers import json_headers, oprel_headers
from oprel.dialects.keep_alive import keep_alive_s
from oprel.dialects.rules import fields_of_sampling
from oprel.dialects.settling import settled
from oprel.drivers import EventStream
from oprel.errors import UnsupportedError
from oprel.scheduler.fanout import Choices
from oprel.schema import ChatRequest, CompletionRequest, ImagePart

if TYPE_CHECKING:
    from oprel.dialects.services import Services
    from oprel.scheduler import Lease

__all__ = ["count_tokens", "messages"]

# Above a model's own parameters: what Anthropic's clients count on.
_DIALECT = {"temperature": 1.0}
_FIELDS = fields_of_sampling(rules.MESSAGES)
_LACKS = {"thinking": "doesn't think: leave 'thinking' out, or send {'type': 'adaptive'}"}


async def messages(services: Services, raw: bytes, client: str) -> Answer:
    found = await read(raw, MessagesBody)
    body = found.body
    asked = await off_loop(raw, partial(message_request, body))
    if body.stream:
        yield _waiting(services.settings.ping_interval)
    async with _generating(services, asked, body=body, client=client) as (lease, stream):
        warnings = (
            *unknown_fields((*found.unknown, *asked.unknown)),
            *asked.warnings,
            *effort_warnings(asked, lease.engine.capabilities),
        )
        named = label(body.model, lease.plan, max_tokens=body.max_tokens, shows_thinking=asked.shows_thinking)
        if body.stream:
            answer = streamed(stream, MessageStream(named), lease, warnings)
        else:
            answer = whole(stream, partial(message_answer, label=named), lease, warnings)
        async with aclosing(answer):
            async for item in answer:
                yield _with_id(item) if isinstance(item, Head) else item


async def count_tokens(services: Services, raw: bytes, client: str) -> Answer:
    """By the engine's own template and tokenizer: what a message would count as its prompt."""
    found = await read(raw, CountBody)
    body = found.body
    asked = await off_loop(raw, partial(counted_request, body))
    keep_alive = keep_alive_s(body.keep_alive)
    async with services.scheduler.lease(
        asked.loading.name, need="chat", load=asked.loading.load, keep_alive=keep_alive, client=client
    ) as lease:
        request = _prepared(asked, lease, services)
        _check_countable(request, lease, model=asked.loading.name)
        tokens = await lease.engine.tokenize(await lease.engine.render(request), add_special=True)
        content = msgspec.json.encode(CountAnswer(len(tokens)))
        warnings = (*unknown_fields((*found.unknown, *asked.unknown)), *asked.warnings)
        yield _with_id(Head(200, json_headers(content) + oprel_headers(lease, warnings)))
        yield content


@asynccontextmanager
async def _generating(
    services: Services, asked: Asked, *, body: MessagesBody, client: str
) -> AsyncGenerator[tuple[Lease, EventStream], None]:
    def source() -> AbstractAsyncContextManager[Lease]:
        return services.scheduler.lease(
            asked.loading.name, need="chat", load=asked.loading.load, keep_alive=keep_alive, client=client
        )

    def prepare(request: ChatRequest | CompletionRequest, lease: Lease) -> ChatRequest:
        return _prepared(asked, lease, services)

    keep_alive = keep_alive_s(body.keep_alive)
    async with Choices(source, (asked.request,), prepare=prepare) as choices:
        stream = choices.events()
        if body.max_tokens == 0:
            stream = muted(stream)
        async with aclosing(stream):
            yield choices.lease, stream


def _prepared(asked: Asked, lease: Lease, services: Services) -> ChatRequest:
    capabilities, driver, model = lease.engine.capabilities, lease.plan.driver, asked.loading.name
    return settled(
        fitted(asked, capabilities, model=model, driver=driver),
        name=model,
        model=lease.model,
        driver=driver,
        capabilities=capabilities,
        time_limit_s=services.settings.request_time_limit,
        dialect=_DIALECT,
        lacks=_LACKS,
        fields=_FIELDS,
    )


def _check_countable(request: ChatRequest, lease: Lease, *, model: str) -> None:
    driver = lease.plan.driver
    if not lease.engine.capabilities.tokenize:
        raise UnsupportedError(
            f"tokens can't be counted beforehand by the driver {driver!r}",
            capability="tokenize",
            model=model,
            driver=driver,
        )
    if any(isinstance(part, ImagePart) for message in request.messages for part in message.content):
        raise UnsupportedError(
            "the tokens of images can't be counted beforehand: leave the images out",
            capability="tokenize",
            model=model,
            driver=driver,
            param="messages",
        )


def _waiting(every_s: float) -> Waiting:
    told = waiting(every_s)
    return Waiting(_with_id(told.head), told.every_s)


def _with_id(head: Head) -> Head:
    return Head(head.status, head.headers + id_header())
