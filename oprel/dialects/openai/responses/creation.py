"""`POST /v1/responses`."""

from __future__ import annotations

import time
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET, Struct

from oprel.dialects.body import off_loop, read
from oprel.dialects.delivery import SSE, beginning, check_finished, late, unknown_fields, waiting, warnings_of
from oprel.dialects.exchange import Answer, Head
from oprel.dialects.headers import Told, json_headers, oprel_headers
from oprel.dialects.openai.generation import Generating, generating
from oprel.dialects.openai.requests import keep_alive_s
from oprel.dialects.openai.responses.errors import ResponseErrors, problem
from oprel.dialects.openai.responses.items import as_items, referenced, type_of
from oprel.dialects.openai.responses.keeping import Ids, Kept, ResponseStore
from oprel.dialects.openai.responses.output import Output, Writer
from oprel.dialects.openai.responses.requests import Asked, asked, check
from oprel.dialects.openai.responses.wire import (
    Incomplete,
    InputDetails,
    OutputDetails,
    ResponseAnswer,
    ResponseBody,
    ResponseUsage,
)
from oprel.drivers import EventStream
from oprel.errors import EngineFailedError, OprelError, StoreError
from oprel.schema import Finish, events

if TYPE_CHECKING:
    from oprel.dialects.services import Services

__all__ = ["create_response"]

_encode = msgspec.json.Encoder().encode
_ITEM_PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}

RawItem = dict[str, Any]


class _Turn(Struct):
    """One request on its way: what was asked, what was answered so far, and where it is kept (None: nowhere)."""

    body: ResponseBody
    ids: Ids
    items: list[RawItem]
    answer: ResponseAnswer
    output: Output
    writer: Writer | None
    store: ResponseStore | None


async def create_response(
    services: Services, store: ResponseStore, errors: ResponseErrors, raw: bytes, client: str
) -> Answer:
    found = await read(raw, ResponseBody)
    body = found.body
    check(body)
    history = await _history(body, store)
    items = await _resolved(as_items(body.input), store)
    wanted = await off_loop(raw, partial(asked, body, history, items))
    warnings = (*unknown_fields((*found.unknown, *wanted.unknown)), *wanted.warnings)
    turn = _turn(body, wanted, items, store if body.store in (None, True) else None)

    def settled(request: Generating) -> None:
        turn.answer.temperature, turn.answer.top_p = request.sampling.temperature, request.sampling.top_p

    if turn.writer is not None:
        errors.streaming(turn.writer, turn.answer)
        yield waiting(services.settings.ping_interval)
    keep_alive = keep_alive_s(body.keep_alive)
    async with generating(
        services, (wanted.request,), loading=wanted.loading, keep_alive=keep_alive, client=client, on_settled=settled
    ) as (lease, stream):
        answer = _streamed if turn.writer is not None else _whole
        async with aclosing(answer(turn, stream, lease, warnings)) as given:
            async for item in given:
                yield item


async def _history(body: ResponseBody, store: ResponseStore) -> list[RawItem]:
    if body.previous_response_id is None:
        return []
    return await store.history(body.previous_response_id, param="previous_response_id")


async def _resolved(items: list[RawItem], store: ResponseStore) -> list[RawItem]:
    """With the items that references stand for."""
    found: list[RawItem] = []
    for at, raw in enumerate(items):
        path = f"input[{at}]"
        if type_of(raw, path) == "item_reference":
            found.append(await store.item(referenced(raw, path), param=f"{path}.id"))
        else:
            found.append(raw)
    return found


def _turn(body: ResponseBody, wanted: Asked, items: list[RawItem], store: ResponseStore | None) -> _Turn:
    ids = Ids()
    writer = Writer() if body.stream else None
    output = Output(ids, writer, has_summary=wanted.has_summary, has_opaque=wanted.has_opaque)
    return _Turn(body, ids, items, _answer(body, ids), output, writer, store)


def _answer(body: ResponseBody, ids: Ids) -> ResponseAnswer:
    """As it is before anything of it is there."""
    reasoning, text = body.reasoning, body.text
    form = text.format if text is not None else None
    return ResponseAnswer(
        id=ids.response,
        object="response",
        created_at=int(time.time()),
        status="in_progress",
        completed_at=None,
        error=None,
        incomplete_details=None,
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        model=body.model,
        output=[],
        parallel_tool_calls=body.parallel_tool_calls is not False,
        previous_response_id=body.previous_response_id,
        reasoning={
            "effort": reasoning.effort if reasoning else None,
            "summary": (reasoning.summary or reasoning.generate_summary) if reasoning else None,
        },
        temperature=body.temperature,
        text={"format": _told_format(form), "verbosity": "medium"},
        tool_choice=_told_choice(body),
        tools=[_told_tool(tool) for tool in body.tools or ()],
        top_logprobs=body.top_logprobs or 0,
        top_p=body.top_p,
        truncation=body.truncation or "disabled",
        metadata=body.metadata or {},
        user=UNSET if body.user is None else body.user,
        safety_identifier=UNSET if body.safety_identifier is None else body.safety_identifier,
        prompt_cache_key=UNSET if body.prompt_cache_key is None else body.prompt_cache_key,
    )


def _told_format(form: Any) -> dict[str, Any]:
    if form is None or form.type != "json_schema":
        return {"type": "text" if form is None else form.type}
    told = {"type": "json_schema", "name": form.name or "answer", "schema": form.schema, "strict": bool(form.strict)}
    return told if form.description is None else {**told, "description": form.description}


def _told_choice(body: ResponseBody) -> Any:
    if body.tool_choice is None or isinstance(body.tool_choice, str):
        return body.tool_choice or "auto"
    told = msgspec.to_builtins(body.tool_choice)
    return {name: value for name, value in told.items() if value is not None}


def _told_tool(raw: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "function",
        "name": raw["name"],
        "description": raw.get("description"),
        "parameters": raw.get("parameters"),
        "strict": bool(raw.get("strict")),
    }


async def _whole(turn: _Turn, stream: EventStream, told: Told, warnings: tuple[events.Warning, ...]) -> Answer:
    since = time.monotonic()
    held = await beginning(stream)
    first_s = time.monotonic() - since
    met = list(warnings_of(held))
    turn.output.add(held)
    async for batch in stream:
        met += warnings_of(batch)
        turn.output.add(batch)
    if turn.output.finish is None:
        raise EngineFailedError("the engine's answer broke off before its end: ask again", driver=told.plan.driver)
    _complete(turn, turn.output.finish)
    body = _encode(turn.answer)
    await _keep(turn)
    yield Head(200, json_headers(body) + oprel_headers(told, (*warnings, *met), first_s=first_s))
    yield body


async def _streamed(turn: _Turn, stream: EventStream, told: Told, warnings: tuple[events.Warning, ...]) -> Answer:
    """The response is kept before its last event is sent: who has read that can go on from it."""
    writer, output = turn.writer, turn.output
    assert writer is not None  # noqa: S101 - it is why this was chosen
    since = time.monotonic()
    held = await beginning(stream)
    first_s = time.monotonic() - since
    yield Head(200, SSE + oprel_headers(told, (*warnings, *warnings_of(held)), first_s=first_s))
    writer.add("response.created", response=turn.answer)
    writer.add("response.in_progress", response=turn.answer)
    output.add(held)
    last = held
    try:
        if output.finish is None:
            yield writer.taken()
            async for last in stream:
                output.add(last)
                if output.finish is None and (chunk := writer.taken()):
                    yield chunk
        check_finished(last, told)
        finish = output.finish
        assert finish is not None  # noqa: S101 - just checked
        _complete(turn, finish)
        await _keep(turn)
    except OprelError as error:
        await _fail(turn, error)
        raise
    writer.add(f"response.{turn.answer.status}", response=turn.answer)
    yield (b"" if last is held else late(last)) + writer.taken()


def _complete(turn: _Turn, finish: Finish) -> None:
    reason, usage, answer = finish.reasons[0], finish.usage, turn.answer
    is_whole = reason in ("stop", "tool_calls")
    turn.output.close(is_whole=is_whole)
    answer.output = turn.output.items
    answer.status = "completed" if is_whole else "incomplete"
    if is_whole:
        answer.completed_at = int(time.time())
    else:
        answer.incomplete_details = Incomplete("content_filter" if reason == "content_filter" else "max_output_tokens")
    answer.usage = ResponseUsage(
        input_tokens=usage.prompt,
        input_tokens_details=InputDetails(usage.cached),
        output_tokens=usage.completion,
        output_tokens_details=OutputDetails(UNSET if usage.reasoning is None else usage.reasoning),
        total_tokens=usage.prompt + usage.completion,
    )


async def _fail(turn: _Turn, error: OprelError) -> None:
    """Its id is known to the client, who may ask what became of it."""
    if turn.output.finish is None:
        turn.output.close(is_whole=False)
    turn.answer.output = turn.output.items
    turn.answer.status, turn.answer.error = "failed", problem(error)
    if not isinstance(error, StoreError):
        await _keep(turn)


async def _keep(turn: _Turn) -> None:
    if turn.store is None:
        return
    kept = Kept(
        response=msgspec.Raw(_encode(turn.answer)),
        input=[_with_id(item, turn.ids) for item in turn.items],
        previous=turn.body.previous_response_id,
    )
    await turn.store.put(turn.ids.response, kept)


def _with_id(item: RawItem, ids: Ids) -> RawItem:
    if item.get("id"):
        return item
    kind = type_of(item, "input")
    told = {**item, "type": kind, "id": ids.item(_ITEM_PREFIXES[kind])}
    if kind == "message" and isinstance(told.get("content"), str):
        part = "output_text" if told.get("role") == "assistant" else "input_text"
        told["content"] = [{"type": part, "text": told["content"]}]
    return told
