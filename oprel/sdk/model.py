"""One model as an object: through the server, or with the engine under this process."""

from __future__ import annotations

from collections.abc import Generator
from types import TracebackType
from typing import Any, Literal, Protocol, overload

from oprel.config import Settings, load_settings
from oprel.errors import InsufficientMemoryError, InvalidRequestError, ModelNotFoundError
from oprel.sdk.background import ensure_server
from oprel.sdk.client import Client
from oprel.sdk.options import Config
from oprel.store import is_low_quality, with_quantization

__all__ = ["Model"]

DEFAULT_MAX_TOKENS = 512

Messages = list[dict[str, str]]


class _Way(Protocol):
    """How a model is reached: by a server, or in this process."""

    def load(self) -> None: ...

    def unload(self) -> None: ...

    def chat(self, messages: Messages, *, max_tokens: int, temperature: float | None) -> Generator[str, None, None]: ...

    def close(self) -> None: ...


class Model:
    """Loaded when it is first used, or by `load`, or by `with`. `use_server=False`: the engine is a child of this
    process and goes when it goes. A model that isn't in the store is pulled.

    `max_memory_mb` refuses (MemoryError) a model that takes more; `quantization` chooses among a repository's files;
    Q2 and below only with `allow_low_quality`.
    """

    def __init__(
        self,
        model_id: str,
        quantization: str | None = None,
        max_memory_mb: int | None = None,
        use_server: bool = True,
        allow_low_quality: bool = False,
        *,
        config: Config | None = None,
        settings: Settings | None = None,
    ) -> None:
        config = config or Config()
        quantization = quantization or config.quantization
        if quantization and is_low_quality(quantization) and not allow_low_quality:
            raise InvalidRequestError(
                f"{quantization} loses much of the model: choose Q3 or better, or say allow_low_quality=True",
                param="quantization",
            )
        self.model_id = with_quantization(model_id, quantization)
        self._allow_low_quality = allow_low_quality
        self._settings = settings or load_settings()
        self._max_memory_mb = max_memory_mb if max_memory_mb is not None else config.max_memory_mb
        self._config = config
        self._use_server = use_server
        self._way: _Way | None = None
        self._conversations: dict[str, Messages] = {}

    def __enter__(self) -> Model:
        self.load()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.unload()

    def __repr__(self) -> str:
        return f"<Model {self.model_id}, {'by the server' if self._use_server else 'in this process'}>"

    def load(self) -> None:
        """Returns when the model is ready; pulls it first where it is missing."""
        self._ready().load()

    def unload(self) -> None:
        """Frees what the model holds; the next use loads it again."""
        if self._way is not None:
            self._way.unload()
            self._way.close()
            self._way = None

    @overload
    def generate(
        self,
        prompt: str,
        max_tokens: int | None = None,
        temperature: float | None = None,
        stream: Literal[False] = False,
        conversation_id: str | None = None,
        system_prompt: str | None = None,
    ) -> str: ...
    @overload
    def generate(
        self,
        prompt: str,
        max_tokens: int | None = None,
        temperature: float | None = None,
        *,
        stream: Literal[True],
        conversation_id: str | None = None,
        system_prompt: str | None = None,
    ) -> Generator[str, None, None]: ...
    def generate(
        self,
        prompt: str,
        max_tokens: int | None = None,
        temperature: float | None = None,
        stream: bool = False,
        conversation_id: str | None = None,
        system_prompt: str | None = None,
    ) -> str | Generator[str, None, None]:
        """The answer, or its pieces as they come. `conversation_id`: what was said under it before comes first, and
        this turn is remembered when its answer is complete. None for numbers: the model's own, else 512 and 0.7."""
        pieces = self._turn(prompt, max_tokens, temperature, conversation_id, system_prompt)
        return pieces if stream else "".join(pieces)

    def _turn(
        self,
        prompt: str,
        max_tokens: int | None,
        temperature: float | None,
        conversation_id: str | None,
        system_prompt: str | None,
    ) -> Generator[str, None, None]:
        said = self._conversations.get(conversation_id, []) if conversation_id is not None else []
        messages = [*said, {"role": "user", "content": prompt}]
        if system_prompt is not None:
            messages = [{"role": "system", "content": system_prompt}, *(m for m in messages if m["role"] != "system")]
        answer: list[str] = []
        for piece in self._ready().chat(messages, max_tokens=max_tokens or DEFAULT_MAX_TOKENS, temperature=temperature):
            answer.append(piece)
            yield piece
        if conversation_id is not None:
            self._conversations[conversation_id] = [*messages, {"role": "assistant", "content": "".join(answer)}]

    def forget(self, conversation_id: str) -> None:
        """Drops what was said under this id."""
        self._conversations.pop(conversation_id, None)

    def _ready(self) -> _Way:
        if self._way is None:
            self._way = self._by_server() if self._use_server else self._in_process()
        return self._way

    def _by_server(self) -> _Way:
        return _ByServer(
            self.model_id, self._settings, self._config, self._max_memory_mb, allow_low_quality=self._allow_low_quality
        )

    def _in_process(self) -> _Way:
        from oprel.sdk.direct import InProcess
        from oprel.sources import PullWish

        settings = self._settings
        if self._max_memory_mb is not None:
            settings = settings.model_copy(update={"memory_limit_bytes": self._max_memory_mb * 1024 * 1024})
        limit = None if self._max_memory_mb is None else self._max_memory_mb * 1024 * 1024
        wish = PullWish(allow_low_quality=self._allow_low_quality, max_memory_bytes=limit)
        return InProcess(self.model_id, settings, self._config, wish=wish)


class _ByServer:
    """The server is started when it isn't there."""

    def __init__(
        self, model: str, settings: Settings, config: Config, max_memory_mb: int | None, *, allow_low_quality: bool
    ) -> None:
        self._model = model
        self._options = config.as_options()
        self._allow_low_quality = allow_low_quality
        self._max_memory_mb = max_memory_mb
        self._max_bytes = None if max_memory_mb is None else max_memory_mb * 1024 * 1024
        key = settings.api_keys[0] if settings.api_keys else None
        self._client = Client(ensure_server(settings), api_key=key)

    def load(self) -> None:
        options = self._options or None
        try:
            self._client.generate(self._model, options=options)
        except ModelNotFoundError:
            self._client.pull(self._model, allow_low_quality=self._allow_low_quality, max_memory_mb=self._max_memory_mb)
            self._client.generate(self._model, options=options)
        self._refuse_too_large()

    def unload(self) -> None:
        self._client.generate(self._model, keep_alive=0)

    def chat(self, messages: Messages, *, max_tokens: int, temperature: float | None) -> Generator[str, None, None]:
        self.load()
        options: dict[str, Any] = {**self._options, "num_predict": max_tokens}
        if temperature is not None:
            options["temperature"] = temperature
        for part in self._client.chat(self._model, messages, stream=True, options=options):
            if part.message.content:
                yield part.message.content

    def close(self) -> None:
        self._client.close()

    def _refuse_too_large(self) -> None:
        if self._max_bytes is None:
            return
        for running in self._client.ps().models:
            if _same_name(running.name, self._model) and running.size > self._max_bytes:
                self.unload()
                raise InsufficientMemoryError(
                    f"{self._model} takes {running.size >> 20} MiB, more than max_memory_mb={self._max_bytes >> 20}"
                    ": choose a smaller model, or less context (Config(ctx_size=…))",
                    needed_bytes=running.size,
                    available_bytes=self._max_bytes,
                )


def _same_name(shown: str, asked: str) -> bool:
    return shown == asked or shown == f"{asked}:latest"
