"""POST /api/create: a model of another one, or of uploaded files, with what the request says of it.

Nothing here is a path of this machine: files are named by the digests that they were uploaded under.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Any

from oprel.dialects.exchange import Answer, Head
from oprel.dialects.ollama.errors import refusal
from oprel.dialects.ollama.gojson import dumps
from oprel.dialects.ollama.listing import OLLAMA_VERSION
from oprel.dialects.ollama.names import local_name
from oprel.dialects.ollama.pull import Status
from oprel.dialects.ollama.wire import CreateRequest, read
from oprel.dialects.services import Services
from oprel.drivers.llama_cpp.quantize import LlamaQuantize
from oprel.errors import InvalidNameError, InvalidRequestError, SourceError, TemplateError
from oprel.schema import ChatRequest, Message, Sampling, TextPart
from oprel.sources import PullProgress
from oprel.sources.creator import Creator
from oprel.store import ModelName
from oprel.store.modelfile import check_version
from oprel.store.recipes import QUANTIZATIONS, GivenMessage, Recipe, checked_files, checked_info
from oprel.templates.chat import chat_template

__all__ = ["create"]

_STREAM = Head(200, ((b"content-type", b"application/x-ndjson"),))


async def create(services: Services, body: bytes) -> Answer:
    asked, _ = read(body, CreateRequest)
    recipe = await asyncio.to_thread(_recipe, asked)
    pull = partial(services.puller.pull, insecure=False)
    quantize = LlamaQuantize.find(services.settings.llama_server) if recipe.quantize else None
    answer = _streamed if asked.stream else _last
    async with aclosing(answer(Creator(services.catalog, pull, quantize=quantize).create(recipe))) as items:
        async for item in items:
            yield item


async def _streamed(steps: AsyncGenerator[PullProgress, None]) -> Answer:
    begun = False
    async with aclosing(steps):
        async for step in steps:
            if not begun:
                yield _STREAM
                begun = True
            yield _line(step) + b"\n"


async def _last(steps: AsyncGenerator[PullProgress, None]) -> Answer:
    last: PullProgress | None = None
    async with aclosing(steps):
        async for step in steps:
            last = step
    if last is None:
        raise SourceError("nothing was made: try again")
    body = _line(last)
    yield Head(200, ((b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))))
    yield body


def _line(step: PullProgress) -> bytes:
    return dumps(Status(step.status, step.digest or "", step.total or 0, step.completed or 0))


def _recipe(asked: CreateRequest) -> Recipe:
    """Refuses what can't be honoured, in Ollama's order."""
    name = ModelName.parse(local_name(asked.model or asked.name))
    _check_supported(asked)
    _check_template(asked.template)
    files, adapters = checked_files(asked.files), checked_files(asked.adapters)
    base = local_name(asked.from_) if asked.from_ else ""
    if base:
        _check_name(base)
    return Recipe(
        name=name,
        base=base,
        files=files,
        adapters=adapters,
        template=asked.template,
        system=asked.system,
        licenses=_licenses(asked.license),
        parameters=asked.parameters,
        messages=tuple(GivenMessage(message.role, message.content) for message in asked.messages),
        renderer=asked.renderer,
        parser=asked.parser,
        requires=_requires(asked.requires),
        quantize=_quantization(asked.quantize or asked.quantization),
        info=checked_info(asked.info),
    )


def _check_template(text: str) -> None:
    """It must parse, and have an answer to one plain question: what fails with that never works."""
    if not text:
        return
    try:
        chat_template(text).conversation(ChatRequest((Message("user", (TextPart("Hello"),)),), Sampling()))
    except TemplateError as problem:
        raise refusal("template", problem=problem.message) from problem


def _check_supported(asked: CreateRequest) -> None:
    if asked.remote_host:
        raise refusal("remote_host")
    if asked.draft_quantize and not asked.draft_files:
        raise refusal("draft_quantize")
    if asked.draft_files:
        raise refusal("draft")
    if any(message.images or message.tool_calls for message in asked.messages):
        raise InvalidRequestError("the messages of a model are text: leave out images and tool calls", param="messages")


def _check_name(base: str) -> None:
    try:
        ModelName.parse(base.removeprefix("pypi:"))
    except InvalidNameError:
        if not base.startswith("pypi:"):
            raise


def _licenses(given: Any) -> tuple[str, ...]:
    if given is None or given == "":
        return ()
    if isinstance(given, str):
        return (given,)
    if isinstance(given, list) and all(isinstance(item, str) for item in given):
        return tuple(item for item in given if item)
    raise InvalidRequestError("license must be a string or a list of strings", param="license")


def _requires(given: str) -> str:
    if not given:
        return ""
    version = check_version(given)
    if _numbers(version) > _numbers(OLLAMA_VERSION):
        raise refusal("requires", version=version, kept=OLLAMA_VERSION)
    return version


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.partition("+")[0].partition("-")[0].split("."))


def _quantization(given: str) -> str:
    kind = given.upper()
    if kind and kind not in QUANTIZATIONS:
        raise refusal("quantization_type", kind=kind[:80])
    return kind
