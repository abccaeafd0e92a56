"""POST /api/embed, and its predecessor /api/embeddings."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable, Sequence
from operator import mul

from oprel.dialects.bounds import check_turns
from oprel.dialects.exchange import Answer
from oprel.dialects.headers import oprel_headers
from oprel.dialects.ollama import admission, rules
from oprel.dialects.ollama.durations import keep_alive
from oprel.dialects.ollama.errors import OllamaErrors, refusal
from oprel.dialects.ollama.generation import whole
from oprel.dialects.ollama.gojson import dumps
from oprel.dialects.ollama.options import Chosen, chosen
from oprel.dialects.ollama.wire import EmbeddingRequest, EmbedRequest, read_off_loop
from oprel.dialects.services import Services
from oprel.drivers import Engine
from oprel.errors import UnsupportedError
from oprel.schema import Embeddings, events
from oprel.schema import EmbedRequest as EngineRequest

__all__ = ["embed", "embeddings"]

Vector = Sequence[float]
Input = str | tuple[int, ...]

# Tokens that a tokenizer may put around a text, and the space that some put before it.
_SPARE_TOKENS = 4
# Vectors of more numbers than this are worked on in a thread.
_MANY_NUMBERS = 50_000


async def embed(services: Services, body: bytes, errors: OllamaErrors, *, client: str = "") -> Answer:
    started = time.monotonic_ns()
    asked, unknown = await read_off_loop(body, EmbedRequest)
    keep = keep_alive(asked.keep_alive)
    texts = _inputs(asked.input)
    if not asked.model:
        raise refusal("no_such_model", name="")
    name, model = await admission.find(services, asked.model)
    options = chosen(asked.options)
    admission.check_embeds(model)
    async with services.scheduler.lease(
        name,
        need="embed" if texts else "load",
        load=admission.load_options(model, options),
        keep_alive=keep,
        client=client,
    ) as lease:
        assigned = time.monotonic_ns()
        warnings = admission.told(rules.EMBED, model, asked, options, unknown)
        opening = b'{"model":' + dumps(asked.model) + b',"embeddings":['
        if not texts:
            head, answer = whole(opening + b"]}", oprel_headers(lease, warnings))
            yield head
            yield answer
            return
        inputs = await _within_context(lease.engine, texts, options, truncate=asked.truncate)
        warnings += _cut_warnings(texts, inputs)
        made = await lease.engine.embed(EngineRequest(inputs, normalize=True))
        written = await _off_loop(made.vectors, asked.dimensions)
        head, answer = whole(
            opening
            + written
            + b'],"total_duration":%d,"load_duration":%d' % (time.monotonic_ns() - started, max(1, assigned - started))
            + (b',"prompt_eval_count":%d}' % made.prompt_tokens if made.prompt_tokens else b"}"),
            oprel_headers(lease, warnings),
        )
        yield head
        yield answer


async def embeddings(services: Services, body: bytes, errors: OllamaErrors, *, client: str = "") -> Answer:
    asked, unknown = await read_off_loop(body, EmbeddingRequest)
    keep = keep_alive(asked.keep_alive)
    if not asked.model:
        raise refusal("model_required")
    name, model = await admission.find(services, asked.model)
    options = chosen(asked.options)
    admission.check_embeds(model)
    async with services.scheduler.lease(
        name,
        need="embed" if asked.prompt else "load",
        load=admission.load_options(model, options),
        keep_alive=keep,
        client=client,
    ) as lease:
        vector: Vector = ()
        warnings = admission.told(rules.EMBEDDINGS, model, asked, options, unknown)
        if asked.prompt:
            made = await _raw(lease.engine, asked.prompt, warnings)
            (vector,) = made.vectors
            _check_numbers(vector)
        headers = oprel_headers(lease, warnings)
        head, answer = whole(dumps({"embedding": vector}), headers)
        yield head
        yield answer


async def _raw(engine: Engine, prompt: str, warnings: list[events.Warning]) -> Embeddings:
    """As the model makes it, which isn't of unit length; of unit length where the engine makes no other."""
    try:
        return await engine.embed(EngineRequest((prompt,), normalize=False))
    except UnsupportedError as error:
        if error.capability != "normalize":
            raise
    text = f"the driver {engine.plan.driver!r} makes embeddings of unit length only"
    warnings.append(events.Warning("normalized", text))
    return await engine.embed(EngineRequest((prompt,), normalize=True))


def _inputs(given: object) -> tuple[str, ...]:
    """Empty when there is nothing to embed: the model is only loaded then."""
    match given:
        case None | "":
            return ()
        case str():
            return (given,)
        case list() if all(isinstance(item, str) for item in given):
            check_turns(len(given), param="input")
            return tuple(given)
    raise refusal("invalid_input")


async def _within_context(
    engine: Engine, texts: tuple[str, ...], options: Chosen, *, truncate: bool
) -> tuple[Input, ...]:
    limit = engine.plan.context_tokens
    if options.asked_context is not None:
        limit = min(limit, options.asked_context)
    if not engine.capabilities.tokenize:
        return texts
    return tuple([await _cut(engine, text, limit, truncate=truncate) for text in texts])


def _cut_warnings(texts: Sequence[Input], inputs: Sequence[Input]) -> list[events.Warning]:
    cut = sum(text is not made for text, made in zip(texts, inputs, strict=True))
    text = f"longer than the context, and cut to it: {cut} of {len(texts)} texts"
    return [events.Warning("prompt_truncated", text)] if cut else []


async def _cut(engine: Engine, text: str, limit: int, *, truncate: bool) -> Input:
    """`text`, or the tokens of as much of it as fits between the tokenizer's own marks."""
    if len(text.encode("utf-8", "replace")) + _SPARE_TOKENS <= limit:
        return text  # no token is shorter than a byte
    marked = await engine.tokenize(text, add_special=True)
    bare = await engine.tokenize(text)
    before, after = _marks(marked, bare)
    room = limit - len(before) - len(after)
    if len(bare) <= room:
        return text
    if not truncate:
        raise refusal("input_too_long")
    if room <= 0:
        raise refusal("nothing_left")
    return (*before, *bare[:room], *after)


def _marks(marked: tuple[int, ...], bare: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the tokenizer puts before and after a text."""
    extra = len(marked) - len(bare)
    for before in range(extra + 1):
        if marked[before : before + len(bare)] == bare:
            return marked[:before], marked[before + len(bare) :]
    return (), ()


async def _off_loop(vectors: Sequence[Vector], dimensions: int) -> bytes:
    if sum(map(len, vectors)) > _MANY_NUMBERS:
        return await asyncio.to_thread(_written, vectors, dimensions)
    return _written(vectors, dimensions)


def _written(vectors: Iterable[Vector], dimensions: int) -> bytes:
    return b",".join(_float32_text(_fitting(vector, dimensions)) for vector in vectors)


def _fitting(vector: Vector, dimensions: int) -> Vector:
    _check_numbers(vector)
    if not 0 < dimensions < len(vector):
        return vector
    cut = vector[:dimensions]
    length = math.sqrt(sum(map(mul, cut, cut)))
    return [value / length for value in cut] if length else cut


def _check_numbers(vector: Vector) -> None:
    if not math.isfinite(sum(vector)):  # one NaN or infinity spoils the sum
        raise refusal("not_a_number")


def _float32_text(vector: Vector) -> bytes:
    """Nine digits say a float32 exactly; a double's seventeen would only be noise."""
    return (b"[" + b",".join((b"%.9g",) * len(vector)) + b"]") % tuple(vector)
