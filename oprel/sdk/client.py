"""The client for programs that wait: a server's Ollama dialect as methods."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar, overload

import httpx
from pydantic import BaseModel

from oprel.errors import ModelNotFoundError
from oprel.sdk import blobs, calls
from oprel.sdk.calls import Call, MessageLike
from oprel.sdk.failures import no_answer, raise_for, stream_error
from oprel.sdk.options import Config
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

__all__ = ["Client"]

R = TypeVar("R", bound=BaseModel)
Options = Mapping[str, Any] | Config | None
KeepAlive = float | str | None

# Answers take as long as they take: a model may be loaded first, and the server bounds what runs away.
_TIMEOUT = httpx.Timeout(None, connect=10.0)


class Client:
    """`host`: host, host:port or URL; None: as the settings say. Not given further, `options`, `keep_alive`, `think`,
    `format` and `tools` are Ollama's. Failures are `oprel.OprelError`s. Use it in a `with`, or `close` it."""

    def __init__(
        self,
        host: str | None = None,
        *,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: httpx.Timeout | float | None = _TIMEOUT,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.base_url = calls.base_url(host)
        self._http = httpx.Client(
            base_url=self.base_url,
            headers=calls.request_headers(api_key, headers),
            timeout=timeout,
            transport=transport,
            trust_env=False,  # a proxy has no business between a program and its own machine
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Client of {self.base_url}>"

    def close(self) -> None:
        self._http.close()

    @overload
    def chat(
        self, model: str, messages: Sequence[MessageLike] | None = None, stream: Literal[False] = False, **more: Any
    ) -> ChatResponse: ...
    @overload
    def chat(
        self, model: str, messages: Sequence[MessageLike] | None = None, *, stream: Literal[True], **more: Any
    ) -> Iterator[ChatResponse]: ...
    def chat(
        self, model: str, messages: Sequence[MessageLike] | None = None, stream: bool = False, **more: Any
    ) -> ChatResponse | Iterator[ChatResponse]:
        """`more`: tools, think, format, options, keep_alive, logprobs, top_logprobs. No messages: load the model."""
        call = calls.chat(model, messages, stream=stream, **more)
        return self._stream(call) if stream else self._send(call)

    @overload
    def generate(
        self, model: str, prompt: str | None = None, stream: Literal[False] = False, **more: Any
    ) -> GenerateResponse: ...
    @overload
    def generate(
        self, model: str, prompt: str | None = None, *, stream: Literal[True], **more: Any
    ) -> Iterator[GenerateResponse]: ...
    def generate(
        self, model: str, prompt: str | None = None, stream: bool = False, **more: Any
    ) -> GenerateResponse | Iterator[GenerateResponse]:
        """`more`: suffix, system, template, raw, context, images, format, options, keep_alive, think. No prompt: load
        the model, or unload it with `keep_alive=0`."""
        call = calls.generate(model, prompt, stream=stream, **more)
        return self._stream(call) if stream else self._send(call)

    def embed(self, model: str, input: str | Sequence[str], **more: Any) -> EmbedResponse:
        """`more`: truncate, dimensions, options, keep_alive."""
        return self._send(calls.embed(model, input, **more))

    def list(self) -> ListResponse:
        return self._send(calls.tags())

    def ps(self) -> ProcessResponse:
        return self._send(calls.processes())

    def show(self, model: str, *, verbose: bool = False) -> ShowResponse:
        return self._send(calls.show(model, verbose=verbose))

    @overload
    def pull(
        self,
        model: str,
        *,
        insecure: bool = False,
        stream: Literal[False] = False,
        allow_low_quality: bool = False,
        max_memory_mb: int | None = None,
    ) -> None: ...
    @overload
    def pull(
        self,
        model: str,
        *,
        insecure: bool = False,
        stream: Literal[True],
        allow_low_quality: bool = False,
        max_memory_mb: int | None = None,
    ) -> Iterator[ProgressResponse]: ...
    def pull(
        self,
        model: str,
        *,
        insecure: bool = False,
        stream: bool = False,
        allow_low_quality: bool = False,
        max_memory_mb: int | None = None,
    ) -> Iterator[ProgressResponse] | None:
        """Returns when the model is in the store; with `stream`, yields how far it has got. The last two are for
        models of the hub: whether Q2 and below may be taken, and what the model may take when it is loaded."""
        call = calls.pull(
            model, insecure=insecure, stream=True, allow_low_quality=allow_low_quality, max_memory_mb=max_memory_mb
        )
        return self._progress(call, stream=stream)

    def push(self, model: str, *, insecure: bool = False, stream: bool = False) -> Iterator[ProgressResponse] | None:
        return self._progress(calls.push(model, insecure=insecure, stream=True), stream=stream)

    def create_blob(self, path: str | Path) -> str:
        """Uploads a file, unless the server has it; its digest, for `create`'s `files` and `adapters`."""
        file = blobs.file_at(path)
        digest = blobs.digest_of(file)
        if not self.has_blob(digest):
            self._ask("POST", f"/api/blobs/{digest}", content=blobs.read_blocks(file), headers=blobs.headers_of(file))
        return digest

    def has_blob(self, digest: str) -> bool:
        try:
            self._ask("HEAD", f"/api/blobs/{digest}")
        except ModelNotFoundError:
            return False
        return True

    def create(self, model: str, *, stream: bool = False, **more: Any) -> Iterator[ProgressResponse] | None:
        """`more`: from_, files, adapters, template, license, system, parameters, messages, quantize."""
        return self._progress(calls.create(model, stream=True, **more), stream=stream)

    def copy(self, source: str, destination: str) -> StatusResponse:
        return self._send(calls.copy(source, destination))

    def delete(self, model: str) -> StatusResponse:
        return self._send(calls.delete(model))

    def is_there(self) -> bool:
        """Whether an Oprel server answers at this address."""
        return self.server_version() is not None

    def server_version(self) -> str | None:
        """The version of the Oprel server at this address; None where something else or nothing answers."""
        try:
            answer = self._http.get("/health", timeout=5.0)
            health = answer.json()
        except (httpx.HTTPError, ValueError):
            return None
        return str(health.get("version")) if isinstance(health, dict) and health.get("server") == "oprel" else None

    def shutdown(self) -> None:
        """Asks the server to end; running requests may finish first."""
        try:
            raise_for(self._http.post("/oprel/shutdown"))
        except httpx.TransportError as error:
            raise no_answer(error, self.base_url) from error

    def _send(self, call: Call[R]) -> R:
        try:
            response = self._http.request(call.method, call.path, json=call.body or None)
        except httpx.TransportError as error:
            raise no_answer(error, self.base_url) from error
        raise_for(response, model=call.model)
        return call.answer.model_validate_json(response.content or b'{"status": "success"}')

    def _ask(self, method: str, path: str, **more: Any) -> None:
        try:
            response = self._http.request(method, path, **more)
        except httpx.TransportError as error:
            raise no_answer(error, self.base_url) from error
        raise_for(response)

    def _stream(self, call: Call[R]) -> Iterator[R]:
        try:
            with self._http.stream(call.method, call.path, json=call.body) as response:
                if not response.is_success:
                    response.read()
                    raise_for(response, model=call.model)
                for line in response.iter_lines():
                    yield read_line(call, line)
        except httpx.TransportError as error:
            raise no_answer(error, self.base_url) from error

    def _progress(self, call: Call[R], *, stream: bool) -> Iterator[R] | None:
        parts = self._stream(call)
        if stream:
            return parts
        for _ in parts:
            pass
        return None


def read_line(call: Call[R], line: str) -> R:
    """One line of a stream; raises what an error line says."""
    if line.startswith('{"error"') and (error := json.loads(line).get("error")):
        raise stream_error(str(error), path=call.path, model=call.model)
    return call.answer.model_validate_json(line)
