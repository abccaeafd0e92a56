"""The client for programs that don't wait: `Client`'s methods, to be awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar, overload

import httpx
from pydantic import BaseModel

from oprel.errors import ModelNotFoundError
from oprel.sdk import blobs, calls
from oprel.sdk.calls import Call, MessageLike
from oprel.sdk.client import _TIMEOUT, read_line
from oprel.sdk.failures import no_answer, raise_for
from oprel.sdk.responses import (
    ChatResponse,
    EmbedResponse,
    GenerateResponse,
    ListResponse,
    ProcessResponse,
    ProgressResponse,
    ShowResponse,
    StatusResponse,
)

__all__ = ["AsyncClient"]

R = TypeVar("R", bound=BaseModel)


class AsyncClient:
    """As `Client`; `async with`, or `await close()`. A stream is an async iterator that is awaited for first:
    `async for part in await client.chat(…, stream=True)`."""

    def __init__(
        self,
        host: str | None = None,
        *,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: httpx.Timeout | float | None = _TIMEOUT,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.base_url = calls.base_url(host)
        self._http = httpx.AsyncClient(
            base_url=self.base_url,
            headers=calls.request_headers(api_key, headers),
            timeout=timeout,
            transport=transport,
            trust_env=False,
        )

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<AsyncClient of {self.base_url}>"

    async def close(self) -> None:
        await self._http.aclose()

    @overload
    async def chat(
        self, model: str, messages: Sequence[MessageLike] | None = None, stream: Literal[False] = False, **more: Any
    ) -> ChatResponse: ...
    @overload
    async def chat(
        self, model: str, messages: Sequence[MessageLike] | None = None, *, stream: Literal[True], **more: Any
    ) -> AsyncIterator[ChatResponse]: ...
    async def chat(
        self, model: str, messages: Sequence[MessageLike] | None = None, stream: bool = False, **more: Any
    ) -> ChatResponse | AsyncIterator[ChatResponse]:
        call = calls.chat(model, messages, stream=stream, **more)
        return self._stream(call) if stream else await self._send(call)

    @overload
    async def generate(
        self, model: str, prompt: str | None = None, stream: Literal[False] = False, **more: Any
    ) -> GenerateResponse: ...
    @overload
    async def generate(
        self, model: str, prompt: str | None = None, *, stream: Literal[True], **more: Any
    ) -> AsyncIterator[GenerateResponse]: ...
    async def generate(
        self, model: str, prompt: str | None = None, stream: bool = False, **more: Any
    ) -> GenerateResponse | AsyncIterator[GenerateResponse]:
        call = calls.generate(model, prompt, stream=stream, **more)
        return self._stream(call) if stream else await self._send(call)

    async def embed(self, model: str, input: str | Sequence[str], **more: Any) -> EmbedResponse:
        return await self._send(calls.embed(model, input, **more))

    async def list(self) -> ListResponse:
        return await self._send(calls.tags())

    async def ps(self) -> ProcessResponse:
        return await self._send(calls.processes())

    async def show(self, model: str, *, verbose: bool = False) -> ShowResponse:
        return await self._send(calls.show(model, verbose=verbose))

    @overload
    async def pull(
        self,
        model: str,
        *,
        insecure: bool = False,
        stream: Literal[False] = False,
        allow_low_quality: bool = False,
        max_memory_mb: int | None = None,
    ) -> None: ...
    @overload
    async def pull(
        self,
        model: str,
        *,
        insecure: bool = False,
        stream: Literal[True],
        allow_low_quality: bool = False,
        max_memory_mb: int | None = None,
    ) -> AsyncIterator[ProgressResponse]: ...
    async def pull(
        self,
        model: str,
        *,
        insecure: bool = False,
        stream: bool = False,
        allow_low_quality: bool = False,
        max_memory_mb: int | None = None,
    ) -> AsyncIterator[ProgressResponse] | None:
        call = calls.pull(
            model, insecure=insecure, stream=True, allow_low_quality=allow_low_quality, max_memory_mb=max_memory_mb
        )
        return await self._progress(call, stream=stream)

    async def push(
        self, model: str, *, insecure: bool = False, stream: bool = False
    ) -> AsyncIterator[ProgressResponse] | None:
        return await self._progress(calls.push(model, insecure=insecure, stream=True), stream=stream)

    async def create_blob(self, path: str | Path) -> str:
        """As `Client.create_blob`."""
        file = blobs.file_at(path)
        digest = await asyncio.to_thread(blobs.digest_of, file)
        if not await self.has_blob(digest):
            headers = await asyncio.to_thread(blobs.headers_of, file)
            await self._ask("POST", f"/api/blobs/{digest}", content=blobs.read_blocks_async(file), headers=headers)
        return digest

    async def has_blob(self, digest: str) -> bool:
        try:
            await self._ask("HEAD", f"/api/blobs/{digest}")
        except ModelNotFoundError:
            return False
        return True

    async def create(self, model: str, *, stream: bool = False, **more: Any) -> AsyncIterator[ProgressResponse] | None:
        return await self._progress(calls.create(model, stream=True, **more), stream=stream)

    async def copy(self, source: str, destination: str) -> StatusResponse:
        return await self._send(calls.copy(source, destination))

    async def delete(self, model: str) -> StatusResponse:
        return await self._send(calls.delete(model))

    async def _send(self, call: Call[R]) -> R:
        try:
            response = await self._http.request(call.method, call.path, json=call.body or None)
        except httpx.TransportError as error:
            raise no_answer(error, self.base_url) from error
        raise_for(response, model=call.model)
        return call.answer.model_validate_json(response.content or b'{"status": "success"}')

    async def _ask(self, method: str, path: str, **more: Any) -> None:
        try:
            response = await self._http.request(method, path, **more)
        except httpx.TransportError as error:
            raise no_answer(error, self.base_url) from error
        raise_for(response)

    async def _stream(self, call: Call[R]) -> AsyncIterator[R]:
        try:
            async with self._http.stream(call.method, call.path, json=call.body) as response:
                if not response.is_success:
                    await response.aread()
                    raise_for(response, model=call.model)
                async for line in response.aiter_lines():
                    yield read_line(call, line)
        except httpx.TransportError as error:
            raise no_answer(error, self.base_url) from error

    async def _progress(self, call: Call[R], *, stream: bool) -> AsyncIterator[R] | None:
        parts = self._stream(call)
        if stream:
            return parts
        async for _ in parts:
            pass
        return None
