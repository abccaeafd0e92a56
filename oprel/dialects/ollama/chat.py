"""POST /api/chat."""

from __future__ import annotations

import asyncio
from functools import partial

from oprel.dialects.bounds import SchemaBudget
from oprel.dialects.exchange import Answer
from oprel.dialects.ollama import admission, rules, translation
from oprel.dialects.ollama.conversation import opened, rendered
from oprel.dialects.ollama.durations import keep_alive
from oprel.dialects.ollama.errors import OllamaErrors, refusal
from oprel.dialects.ollama.generation import Job, Turn, performed
from oprel.dialects.ollama.lines import CHAT
from oprel.dialects.ollama.options import Chosen, chosen
from oprel.dialects.ollama.wire import LARGE_BYTES, read_off_loop
from oprel.dialects.ollama.wire import ChatRequest as WireRequest
from oprel.dialects.services import Services
from oprel.schema import AudioPart, ChatRequest, ImagePart, Message, Model, Thinking, with_opening

__all__ = ["chat"]


def chat(services: Services, body: bytes, errors: OllamaErrors, *, client: str = "") -> Answer:
    return performed(services, errors, partial(_prepared, services, body, client))


async def _prepared(services: Services, body: bytes, client: str) -> Job:
    asked, unknown = await read_off_loop(body, WireRequest)
    keep = keep_alive(asked.keep_alive)
    wanted = translation.wanted_thinking(asked.think)
    turn = Turn(CHAT, asked.model, asked.stream, hide_thinking=wanted is not None and not wanted.enabled)
    turn.is_thinking_asked = wanted is not None
    if len(body) > LARGE_BYTES:
        given = await asyncio.to_thread(translation.messages, asked.messages, turn.warnings)
    else:
        given = translation.messages(asked.messages, turn.warnings)
    admission.check_top_logprobs(asked.top_logprobs)
    if not asked.model:
        raise refusal("model_required")
    name, model = await admission.find(services, asked.model)
    if not given and keep == 0:
        return Job(turn, name, "unload")
    admission.check_completes(model, name=asked.model, what="chat")
    admission.require(model, _needs(asked, given), name=asked.model)
    thinking = translation.thinking(wanted, model, name=asked.model)
    options = chosen(asked.options)
    turn.asked = options.sampling
    load = admission.load_options(model, options)
    turn.warnings += admission.told(rules.CHAT, model, asked, options, unknown)
    if not given:
        return Job(turn, name, "load", load, keep, client)
    admission.check_chat_template(services, model, name=asked.model)
    translated = partial(_request, services, asked, model, with_opening(model, given), thinking, options)
    request = await asyncio.to_thread(translated) if len(body) > LARGE_BYTES else translated()
    turn.images = translation.count_images(request.messages)
    return Job(
        turn,
        name,
        "chat",
        load,
        keep,
        client,
        open=partial(opened, request=request, turn=turn, truncate=asked.truncate),
        render=partial(rendered, request=request, turn=turn) if asked.debug_render_only else None,
    )


def _needs(asked: WireRequest, given: tuple[Message, ...]) -> list[str]:
    parts = [part for message in given for part in message.content]
    needs = {
        "tools": bool(asked.tools),
        "vision": any(isinstance(part, ImagePart) for part in parts),
        "audio": any(isinstance(part, AudioPart) for part in parts),
    }
    return [need for need, is_needed in needs.items() if is_needed]


def _request(
    services: Services,
    asked: WireRequest,
    model: Model,
    messages: tuple[Message, ...],
    thinking: Thinking | None,
    options: Chosen,
) -> ChatRequest:
    budget = SchemaBudget()
    return ChatRequest(
        messages,
        admission.sampling(services, model, options.sampling),
        tools=translation.tools(asked.tools, budget),
        format=translation.output_format(asked.format, budget),
        thinking=thinking,
        logprobs=asked.top_logprobs if asked.logprobs else None,
    )
