"""Embeddings, and scores of documents, as engines answer them."""

from __future__ import annotations

import base64
import binascii
import math
import sys
from array import array

import msgspec

from oprel.drivers.upstream.failures import garbage, quoted
from oprel.drivers.upstream.wire import EmbeddingsAnswer, RanksAnswer

__all__ = ["read_scores", "read_vectors"]

_ANSWER = msgspec.json.Decoder(EmbeddingsAnswer)
_RANKS = msgspec.json.Decoder(RanksAnswer)


def read_vectors(body: bytes, *, count: int, driver: str) -> tuple[list[tuple[float, ...]], int]:
    """`count` vectors in the order of the inputs, and the tokens of the prompt."""
    try:
        answer = _ANSWER.decode(body)
        rows = sorted(answer.data, key=lambda row: row.index)
        vectors = [_vector(row.embedding) for row in rows]
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        raise garbage(driver, quoted(body), f"not embeddings: {error}") from None
    if [row.index for row in rows] != list(range(count)):
        raise garbage(driver, f"{len(rows)} vectors for {count} inputs", "not one embedding for each input")
    if len({len(vector) for vector in vectors}) != 1 or not vectors[0]:
        raise garbage(driver, "vectors of several lengths, or of none", "not embeddings of one model")
    return vectors, answer.usage.prompt_tokens if answer.usage is not None else 0


def read_scores(body: bytes, *, count: int, driver: str) -> tuple[list[float], int]:
    """`count` scores in the order of the documents, and the tokens of the prompts."""
    try:
        answer = _RANKS.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise garbage(driver, quoted(body), f"not a ranking: {error}") from None
    rows = sorted(answer.results, key=lambda row: row.index)
    if [row.index for row in rows] != list(range(count)):
        raise garbage(driver, f"{len(rows)} scores for {count} documents", "not one score for each document")
    if not all(math.isfinite(row.relevance_score) for row in rows):
        raise garbage(driver, "a score that is no number", "not a ranking")
    return [row.relevance_score for row in rows], answer.usage.prompt_tokens if answer.usage is not None else 0


def _vector(embedding: str | tuple[float, ...]) -> tuple[float, ...]:
    if isinstance(embedding, tuple):
        return embedding
    try:
        values = array("f", base64.b64decode(embedding, validate=True))
    except binascii.Error as error:
        raise ValueError(f"bad base64: {error}") from None
    if sys.byteorder == "big":
        values.byteswap()
    return tuple(values)
