"""An engine inside Oprel's own process: no child, no socket; each text is worked on in a thread."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from oprel.drivers import ContextLengthError, Engine, EngineFailedError, Health, InvalidRequestError
from oprel.schema import Capabilities, Embeddings, EmbedRequest, Plan

if TYPE_CHECKING:
    from oprel_driver_numpy_bert.bert import Bert
    from oprel_driver_numpy_bert.words import WordPieces

__all__ = ["NumpyBertEngine"]


class NumpyBertEngine(Engine):
    """Owns the weights until it is stopped."""

    def __init__(self, plan: Plan, bert: Bert, words: WordPieces) -> None:
        self.plan = plan
        self.capabilities = Capabilities(embed=True, tokenize=True, context_tokens=plan.context_tokens)
        self._bert: Bert | None = bert
        self._words = words
        self._ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def embed(self, request: EmbedRequest) -> Embeddings:
        rows = [self._row(text) for text in request.inputs]
        # One after the other: whoever cancels, or stops the engine, waits for one text at the most.
        vectors = [await asyncio.to_thread(self._alive().vector, row, normalize=request.normalize) for row in rows]
        self._alive()
        return Embeddings(tuple(vectors), prompt_tokens=sum(map(len, rows)))

    async def tokenize(self, text: str, *, add_special: bool = False) -> tuple[int, ...]:
        self._alive()
        return tuple(self._words.row(text) if add_special else self._words.tokens(text))

    async def detokenize(self, tokens: tuple[int, ...]) -> str:
        self._alive()
        return self._words.text(tokens)

    async def health(self) -> Health:
        return Health("dead", self._ended.result()) if self._ended.done() else Health("ready")

    async def wait_dead(self) -> str:
        # The shield: one who stops waiting must not take the answer from the others.
        return await asyncio.shield(self._ended)

    async def stop(self) -> None:
        self._bert = None  # the weights go when the last thread is done with them
        if not self._ended.done():
            self._ended.set_result("it was stopped")

    def memory_bytes(self) -> int | None:
        return self._bert.size_bytes if self._bert is not None else 0

    def _alive(self) -> Bert:
        if self._bert is None:
            raise EngineFailedError(f"the engine of {self.plan.model!r} was stopped", driver=self.plan.driver)
        return self._bert

    def _row(self, text: str | tuple[int, ...]) -> list[int]:
        """The tokens of one text with the marks around it. Raises what says that it can't be embedded."""
        row = self._words.row(text) if isinstance(text, str) else list(text)
        if not all(0 <= token < self._words.size for token in row):
            raise InvalidRequestError(f"token ids go from 0 to {self._words.size - 1} here", param="input")
        if len(row) > self.plan.context_tokens:
            raise ContextLengthError(
                f"the text has {len(row)} tokens and {self.plan.model!r} takes {self.plan.context_tokens}: shorten it",
                prompt_tokens=len(row),
                context_tokens=self.plan.context_tokens,
            )
        if not row:
            raise InvalidRequestError("there is nothing to embed: a text has no tokens", param="input")
        return row
