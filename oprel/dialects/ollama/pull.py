"""POST /api/pull: progress as it comes, or only the last word."""

from __future__ import annotations

from contextlib import aclosing

from msgspec import Struct

from oprel.dialects.exchange import Answer, Head
from oprel.dialects.ollama.errors import OllamaErrors, refusal
from oprel.dialects.ollama.gojson import dumps
from oprel.dialects.ollama.names import local_name
from oprel.dialects.ollama.wire import PullRequest, read
from oprel.dialects.services import Services
from oprel.errors import InvalidNameError, OprelError, SourceError
from oprel.sources import PullProgress

__all__ = ["pull"]

_STREAM = Head(200, ((b"content-type", b"application/x-ndjson"),))


class Status(Struct, frozen=True, omit_defaults=True):
    status: str
    digest: str = ""
    total: int = 0
    completed: int = 0


async def pull(services: Services, body: bytes, errors: OllamaErrors) -> Answer:
    asked, _ = read(body, PullRequest)
    raw = asked.model or asked.name
    if not raw.strip():
        raise refusal("invalid_model_name")
    name = local_name(raw)
    answer = _streamed if asked.stream else _last
    async with aclosing(answer(services, name, errors, insecure=asked.insecure)) as items:
        async for item in items:
            yield item


async def _streamed(services: Services, name: str, errors: OllamaErrors, *, insecure: bool) -> Answer:
    """Clients expect 200 and a line with the error, even where nothing else could be said before it."""
    begun = False
    async with aclosing(services.puller.pull(name, insecure=insecure)) as progress:
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


async def _last(services: Services, name: str, errors: OllamaErrors, *, insecure: bool) -> Answer:
    last: PullProgress | None = None
    async with aclosing(services.puller.pull(name, insecure=insecure)) as progress:
        async for step in progress:
            last = step
    if last is None:
        raise SourceError(f"nothing was pulled for {name!r}: try again")
    body = _line(last)
    yield Head(200, ((b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))))
    yield body


def _line(step: PullProgress) -> bytes:
    return dumps(Status(step.status, step.digest or "", step.total or 0, step.completed or 0))
