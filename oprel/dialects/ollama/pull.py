"""POST /api/pull and /api/push: progress as it comes, or only the last word."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from msgspec import Struct

from oprel.dialects.exchange import Answer, Head
from oprel.dialects.ollama.errors import OllamaErrors, refusal
from oprel.dialects.ollama.gojson import dumps
from oprel.dialects.ollama.names import local_name
from oprel.dialects.ollama.wire import PullOptions, PullRequest, PushRequest, read
from oprel.dialects.services import Services
from oprel.errors import InvalidNameError, InvalidRequestError, OprelError, SourceError
from oprel.sources import PullProgress, PullWish, names_a_host

__all__ = ["pull", "push"]

_STREAM = Head(200, ((b"content-type", b"application/x-ndjson"),))

Progress = Callable[[], AsyncGenerator[PullProgress, None]]


class Note(Struct, frozen=True):
    """For people: what was chosen, and why."""

    note: str


class Status(Struct, frozen=True, omit_defaults=True):
    status: str
    digest: str = ""
    total: int = 0
    completed: int = 0
    oprel: Note | None = None


async def pull(services: Services, body: bytes, errors: OllamaErrors, *, is_page: bool = False) -> Answer:
    """`is_page`: a web page asked. Its user didn't necessarily, so it may not choose a host to fetch from."""
    asked, _ = read(body, PullRequest)
    raw = asked.model or asked.name
    if not raw.strip():
        raise refusal("invalid_model_name")
    name = local_name(raw)
    wish = _wish(asked.oprel)
    if is_page and (asked.insecure or names_a_host(name)):
        raise refusal("page_reaches_out")

    def begin() -> AsyncGenerator[PullProgress, None]:
        return services.puller.pull(name, insecure=asked.insecure, wish=wish)

    async with aclosing(_told(begin, name, errors, is_streamed=asked.stream)) as items:
        async for item in items:
            yield item


async def push(services: Services, body: bytes, errors: OllamaErrors, *, is_page: bool = False) -> Answer:
    """No page may have a model sent anywhere."""
    asked, _ = read(body, PushRequest)
    raw = asked.model or asked.name
    if not raw.strip():
        raise refusal("model_required")
    if is_page:
        raise refusal("page_reaches_out")
    name = local_name(raw)
    async with aclosing(
        _told(lambda: services.puller.push(name, insecure=asked.insecure), name, errors, is_streamed=asked.stream)
    ) as items:
        async for item in items:
            yield item


def _wish(asked: PullOptions) -> PullWish:
    if asked.max_memory_mb < 0:
        raise InvalidRequestError("oprel.max_memory_mb must not be negative.", param="oprel.max_memory_mb")
    limit = asked.max_memory_mb * 1024 * 1024 if asked.max_memory_mb else None
    return PullWish(allow_low_quality=asked.allow_low_quality, max_memory_bytes=limit)


def _told(progress: Progress, name: str, errors: OllamaErrors, *, is_streamed: bool) -> Answer:
    return _streamed(progress, errors) if is_streamed else _last(progress, name)


async def _streamed(begin: Progress, errors: OllamaErrors) -> Answer:
    """Clients expect 200 and a line with the error, even where nothing else could be said before it."""
    begun = False
    async with aclosing(begin()) as progress:
        try:
            async for step in progress:
                if not begun:
                    yield _STREAM
                    begun = True
                yield _line(step) + b"\n"
        except InvalidNameError:
            raise
        except OprelError as error:
            if begun:
                raise
            yield _STREAM
            yield errors.chunk(error)


async def _last(begin: Progress, name: str) -> Answer:
    last: PullProgress | None = None
    async with aclosing(begin()) as progress:
        async for step in progress:
            last = step
    if last is None:
        raise SourceError(f"nothing was done for {name!r}: try again")
    body = _line(last)
    yield Head(200, ((b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))))
    yield body


def _line(step: PullProgress) -> bytes:
    note = None if step.note is None else Note(step.note)
    return dumps(Status(step.status, step.digest or "", step.total or 0, step.completed or 0, note))
