"""`/v1/rerank` and `/rerank`: which documents answer a query best."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from oprel.dialects.body import read
from oprel.dialects.delivery import unknown_fields
from oprel.dialects.exchange import Answer, Head
from oprel.dialects.headers import json_headers, oprel_headers
from oprel.dialects.loading import loading
from oprel.dialects.openai import rules
from oprel.dialects.openai.requests import keep_alive_s
from oprel.dialects.openai.wire import EmbeddingUsage, RankedDocument, RerankAnswer, RerankBody, RerankDocument
from oprel.errors import InvalidRequestError
from oprel.schema import Ranking, RerankRequest

if TYPE_CHECKING:
    from oprel.dialects.services import Services

__all__ = ["rerank"]

_MAX_DOCUMENTS = 2048


async def rerank(services: Services, raw: bytes, client: str) -> Answer:
    found = await read(raw, RerankBody)
    body = found.body
    rules.apply(rules.RERANK, body)
    asked = RerankRequest(body.query, _documents(body))
    loaded = loading(body.model, body.num_ctx, body.options)
    keep_alive = keep_alive_s(body.keep_alive)
    async with services.scheduler.lease(
        loaded.name, need="rerank", load=loaded.load, keep_alive=keep_alive, client=client
    ) as lease:
        content = msgspec.json.encode(_answer(body, asked, await lease.engine.rerank(asked)))
        yield Head(
            200, json_headers(content) + oprel_headers(lease, (*loaded.warnings, *unknown_fields(found.unknown)))
        )
        yield content


def _documents(body: RerankBody) -> tuple[str, ...]:
    count = len(body.documents)
    if not 1 <= count <= _MAX_DOCUMENTS:
        raise InvalidRequestError(
            f"'documents' has {count} entries; it must have 1 to {_MAX_DOCUMENTS}", param="documents"
        )
    return tuple(document if isinstance(document, str) else document.text for document in body.documents)


def _answer(body: RerankBody, asked: RerankRequest, made: Ranking) -> RerankAnswer:
    """The best first; of two that are equally good, the one that came first."""
    order = sorted(range(len(made.scores)), key=lambda index: -made.scores[index])[: body.top_n]
    results = [RankedDocument(index, made.scores[index]) for index in order]
    if body.return_documents:
        for result in results:
            result.document = RerankDocument(asked.documents[result.index])
    return RerankAnswer("list", body.model, results, EmbeddingUsage(made.prompt_tokens, made.prompt_tokens))
