"""POST /api/generate: a prompt on its own, in the model's template, raw, or after an earlier `context`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Literal

from oprel.dialects.bounds import SchemaBudget
from oprel.dialects.exchange import Answer
from oprel.dialects.ollama import admission, rules, translation
from oprel.dialects.ollama.conversation import opened
from oprel.dialects.ollama.durations import keep_alive
from oprel.dialects.ollama.errors import OllamaErrors, refusal
from oprel.dialects.ollama.generation import Begun, Job, Turn, begun, performed
from oprel.dialects.ollama.honouring import honoured, thinking_if_able
from oprel.dialects.ollama.lines import GENERATE
from oprel.dialects.ollama.media import attachments, with_text
from oprel.dialects.ollama.options import chosen
from oprel.dialects.ollama.wire import LARGE_BYTES, read_off_loop
from oprel.dialects.ollama.wire import GenerateRequest as WireRequest
from oprel.dialects.services import Services
from oprel.drivers import Engine
from oprel.drivers.templated import check_template, with_template
from oprel.schema import (
    AudioPart,
    ChatRequest,
    CompletionRequest,
    ImagePart,
    Message,
    Model,
    OutputFormat,
    Sampling,
    Thinking,
)

__all__ = ["generate"]

Media = tuple[ImagePart | AudioPart, ...]


def generate(services: Services, body: bytes, errors: OllamaErrors, *, client: str = "") -> Answer:
    return performed(services, errors, partial(_prepared, services, body, client))


async def _prepared(services: Services, body: bytes, client: str) -> Job:
    asked, unknown = await read_off_loop(body, WireRequest)
    keep = keep_alive(asked.keep_alive)
    wanted = translation.wanted_thinking(asked.think)
    turn = Turn(GENERATE, asked.model, asked.stream, hide_thinking=wanted is not None and not wanted.enabled)
    turn.is_thinking_asked = wanted is not None
    large = len(body) > LARGE_BYTES
    media = await asyncio.to_thread(attachments, asked.images) if large else attachments(asked.images)
    admission.check_top_logprobs(asked.top_logprobs)
    if not asked.model:
        raise refusal("no_such_model", name="")
    name, model = await admission.find(services, asked.model)
    if not asked.prompt and keep == 0:
        return Job(turn, name, "unload")
    _check(asked, model, media)
    thinking = translation.thinking(wanted, model, name=asked.model)
    options = chosen(asked.options)
    turn.asked = options.sampling
    load = admission.load_options(model, options)
    turn.warnings += admission.told(rules.GENERATE, model, asked, options, unknown)
    if not asked.prompt:
        return Job(turn, name, "load", load, keep, client)
    if asked.template:
        await asyncio.to_thread(check_template, asked.template)
    elif not asked.raw:
        admission.check_prompt_template(services, model, name=asked.model)
    turn.images = len(media)
    prompt = _Prompt(
        turn,
        asked,
        model,
        media,
        sampling=admission.sampling(services, model, options.sampling),
        format=translation.output_format(asked.format, SchemaBudget()),
        thinking=thinking if wanted is not None or not asked.template else None,
        has_template=not asked.raw and (bool(asked.template) or admission.can_chat(services, model)),
    )
    return Job(
        turn,
        name,
        prompt.need,
        load,
        keep,
        client,
        open=prompt.open,
        render=prompt.rendered if asked.debug_render_only else None,
    )


def _check(asked: WireRequest, model: Model, media: Media) -> None:
    if asked.raw and (asked.template or asked.system or asked.context):
        raise refusal("raw_with_template")
    admission.check_completes(model, name=asked.model, what="generate")
    needs = {
        "insert": bool(asked.suffix),
        "vision": any(isinstance(part, ImagePart) for part in media),
        "audio": any(isinstance(part, AudioPart) for part in media),
    }
    admission.require(model, (need for need, is_needed in needs.items() if is_needed), name=asked.model)


class _Prompt:
    """The prompt of one request, in the form that the engine gets: a conversation of one question where the model
    has a template and nothing stands before it, else text that goes to the model as it is."""

    def __init__(
        self,
        turn: Turn,
        asked: WireRequest,
        model: Model,
        media: Media,
        *,
        sampling: Sampling,
        format: OutputFormat | None,
        thinking: Thinking | None,
        has_template: bool,
    ) -> None:
        self._turn = turn
        self._asked = asked
        self._model = model
        self._media = media
        self._sampling = sampling
        self._format = format
        self._thinking = thinking
        self._logprobs = asked.top_logprobs if asked.logprobs else None
        # With a suffix the engine puts the prompt between the model's own infill tokens: no template.
        self._has_template = has_template and not asked.suffix

    @property
    def need(self) -> Literal["chat", "complete"]:
        return "chat" if self._is_chat and not self._asked.template else "complete"

    @property
    def _is_chat(self) -> bool:
        return self._has_template and not self._asked.context

    async def open(self, engine: Engine) -> Begun:
        engine = self._templated(engine)
        if self._is_chat:
            request = self._conversation(engine)
            if engine.capabilities.tokenize:
                self._turn.context_of = partial(self._context_of_chat, engine, request)
            return await opened(engine, request=request, turn=self._turn, truncate=self._asked.truncate)
        if any(isinstance(part, AudioPart) for part in self._media):
            raise refusal("audio_in_prompt")
        text = await self._text(engine)
        if not self._asked.raw and engine.capabilities.tokenize:
            self._turn.context_of = partial(_context, engine, text)
        completion = CompletionRequest(
            text,
            self._sampling,
            suffix=self._asked.suffix or None,
            images=tuple(part for part in self._media if isinstance(part, ImagePart)),
            format=self._format,
            logprobs=self._logprobs,
        )
        return await begun(engine.complete(honoured(engine, completion, self._turn.asked, self._turn.warnings)))

    async def rendered(self, engine: Engine) -> str:
        """The whole text that the model is given."""
        return await self._text(self._templated(engine))

    def _templated(self, engine: Engine) -> Engine:
        """Any engine that completes text can be asked in the template of the request."""
        return with_template(engine, self._asked.template) if self._asked.template else engine

    async def _text(self, engine: Engine) -> str:
        text = await engine.render(self._conversation(engine)) if self._has_template else self._asked.prompt
        if not self._asked.context:
            return text
        return await engine.detokenize(tuple(self._asked.context)) + text

    def _conversation(self, engine: Engine) -> ChatRequest:
        system = self._asked.system or self._model.system
        before = () if self._asked.context else self._model.messages
        request = ChatRequest(
            (
                *((translation.system_message(system),) if system else ()),
                *before,
                Message("user", with_text(self._asked.prompt, self._media)),
            ),
            self._sampling,
            format=self._format,
            thinking=self._thinking,
            logprobs=self._logprobs,
        )
        return thinking_if_able(engine, request, is_asked=self._turn.is_thinking_asked)

    async def _context_of_chat(self, engine: Engine, request: ChatRequest, generated: str) -> Sequence[int]:
        return await _context(engine, await engine.render(request), generated)


async def _context(engine: Engine, prompt: str, generated: str) -> Sequence[int]:
    """What a client sends back to go on from here."""
    return await engine.tokenize(prompt + generated)
