"""`/v1/embeddings`."""

from __future__ import annotations

import base64
import math
import sys
from array import array
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from oprel.dialects.body import off_loop, read
from oprel.dialects.delivery import unknown_fields
from oprel.dialects.exchange import Answer, Head
from oprel.dialects.headers import json_headers, oprel_headers
from oprel.dialects.loading import loading
from oprel.dialects.openai.requests import embed_request, keep_alive_s
from oprel.dialects.openai.wire import EmbeddingAnswer, EmbeddingBody, EmbeddingItem, EmbeddingUsage
from oprel.errors import InvalidRequestError
from oprel.schema import Embeddings

if TYPE_CHECKING:
    from oprel.dialects.services import Services

__all__ = ["embeddings"]

Vector = tuple[float, ...]


async def embeddings(services: Services, raw: bytes, client: str) -> Answer:
    found = await read(raw, EmbeddingBody)
    body = found.body
    asked = await off_loop(raw, partial(embed_request, body))
    keep_alive = keep_alive_s(body.keep_alive)
    loaded = loading(body.model, body.num_ctx, body.options)
    async with services.scheduler.lease(
        loaded.name, need="embed", load=loaded.load, keep_alive=keep_alive, client=client
    ) as lease:
        made = await lease.engine.embed(asked)
        content = msgspec.json.encode(_answer(made, body))
        yield Head(
            200, json_headers(content) + oprel_headers(lease, (*loaded.warnings, *unknown_fields(found.unknown)))
        )
        yield content


def _answer(made: Embeddings, body: EmbeddingBody) -> EmbeddingAnswer:
    vectors = made.vectors
    if body.dimensions is not None:
        vectors = tuple(_cut(vector, body.dimensions) for vector in vectors)
    is_base64 = body.encoding_format == "base64"
    return EmbeddingAnswer(
        object="list",
        data=[
            EmbeddingItem("embedding", index, _base64(vector) if is_base64 else vector)
            for index, vector in enumerate(vectors)
        ],
        model=body.model,
        usage=EmbeddingUsage(made.prompt_tokens, made.prompt_tokens),
    )


def _cut(vector: Vector, dimensions: int) -> Vector:
    """The first so many values, at unit length again."""
    if dimensions > len(vector):
        raise InvalidRequestError(
            f"'dimensions' is {dimensions}; this model's embeddings have {len(vector)}", param="dimensions"
        )
    head = vector[:dimensions]
    length = math.sqrt(math.fsum(value * value for value in head))
    return tuple(value / length for value in head) if length else head


def _base64(vector: Vector) -> str:
    """Little-endian 32-bit floats."""
    values = array("f", vector)
    if sys.byteorder == "big":
        values.byteswap()
    return base64.b64encode(values.tobytes()).decode("ascii")
