"""Models that other servers have, as entries of the catalog: those that the settings name, or those that they list."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from oprel.errors import ConfigError, InvalidNameError
from oprel.schema import Model, RemoteModel
from oprel.store.names import ModelName, as_name_part
from oprel.store.remote_listing import MAX_LISTING_BYTES, ListedModel, read_listing

if TYPE_CHECKING:
    from oprel.config import Remote

__all__ = ["RemoteShelf", "ask_listing"]

_log = logging.getLogger("oprel.store")

_FRESH_S = 30.0
_RETRY_S = 5.0
_LONGEST_RETRY_S = 60.0
_ASK_LIMIT_S = 3.0
_FAMILY = "remote"
# Ollama's words for what `[remote.NAME]` says in those of schema.Capabilities.
_WORDS = {
    "chat": "completion", "complete": "completion", "embed": "embedding", "tools": "tools", "vision": "vision",
    "audio": "audio", "thinking": "thinking", "infill": "insert",
}  # fmt: skip
_DRIVER = "openai"

Ask = Callable[["Remote"], Sequence[ListedModel]]
"""What a remote lists now. Blocks; raises ConfigError, OSError or ValueError with half a sentence."""


class RemoteShelf:
    """Keeps `oprel.store.Shelf`. Names mean the first remote that has them, in the order of the settings.

    A remote with `models` is never asked. Any other is asked for its list when it is first looked at, and again when
    that is old and something isn't in it, or all is listed; what it listed before stands while it can't be asked.
    """

    def __init__(
        self, remotes: Sequence[Remote], *, ask: Ask | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._sections = [
            _Told(remote, ask or ask_listing, clock) if remote.models is None else _Named(remote) for remote in remotes
        ]

    def find(self, name: str) -> Model | None:
        try:
            key = ModelName.parse(name).key
        except InvalidNameError:
            return None
        for section in self._sections:
            if (model := section.find(key)) is not None:
                return model
        return None

    def problems(self) -> tuple[str, ...]:
        """Why a model may be missing, a clause for each remote that couldn't be asked."""
        return tuple(section.problem for section in self._sections if section.problem is not None)

    # Below the others, since its name would hide the type.
    def list(self, *, described: bool = True) -> tuple[Model, ...]:
        """They are known by their servers' answers, or not at all."""
        found: dict[str, Model] = {}
        for section in self._sections:
            for model in section.models():
                found.setdefault(model.name.lower(), model)
        return tuple(found.values())


class _Named:
    """The models of a remote that the settings name."""

    problem: str | None = None

    def __init__(self, remote: Remote) -> None:
        self._models: dict[tuple[str, ...], Model] = {}
        for local, identifier in remote.models or ():
            try:
                name = ModelName.parse(local) if local else _local_name(identifier)
            except InvalidNameError as error:
                raise ConfigError(f"remote.{remote.name}.models: {error}") from None
            self._models.setdefault(name.key, _model(remote, name, ListedModel(identifier)))

    def find(self, key: tuple[str, ...]) -> Model | None:
        return self._models.get(key)

    def models(self) -> tuple[Model, ...]:
        return tuple(self._models.values())


class _Told:
    """The models of a remote as it lists them itself. Safe to use from several threads; one of them asks at a time."""

    def __init__(self, remote: Remote, ask: Ask, clock: Callable[[], float]) -> None:
        self.problem: str | None = None
        self._remote = remote
        self._ask = ask
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[tuple[str, ...], Model] = {}
        self._due = clock()
        self._retry_s = _RETRY_S

    def find(self, key: tuple[str, ...]) -> Model | None:
        """What is known is taken as it is: only what isn't known is worth a wait."""
        return self._known.get(key) or self._refreshed().get(key)

    def models(self) -> tuple[Model, ...]:
        return tuple(self._refreshed().values())

    def _refreshed(self) -> dict[tuple[str, ...], Model]:
        """Who finds another thread asking takes what is known, and only waits where nothing is."""
        if not self._lock.acquire(blocking=not self._known):
            return self._known
        try:
            if self._clock() >= self._due:
                self._refresh()
            return self._known
        finally:
            self._lock.release()

    def _refresh(self) -> None:
        remote = self._remote
        try:
            listed = self._ask(remote)
        except (ConfigError, OSError, ValueError) as error:
            problem = f"the remote {remote.name!r} can't be asked what it has: {error}"
            if problem != self.problem:
                _log.warning("%s", problem)
            self.problem = problem
            self._due = self._clock() + self._retry_s
            self._retry_s = min(_LONGEST_RETRY_S, 2 * self._retry_s)
            return
        self._retry_s = _RETRY_S
        known: dict[tuple[str, ...], Model] = {}
        for entry in listed:
            name = _local_name(entry.id)
            known.setdefault(name.key, _model(remote, name, entry))
        self._known, self.problem = known, None
        self._due = self._clock() + _FRESH_S


def ask_listing(remote: Remote) -> tuple[ListedModel, ...]:
    """Asks one replica after the other. Blocks for some seconds at most; nothing is followed to another place."""
    import httpx  # only who has such a remote needs it

    from oprel.net import tls_context

    key = remote.read_key()
    headers = {"Accept-Encoding": "identity", **({} if key is None else {"Authorization": f"Bearer {key}"})}
    verify = tls_context(verify=remote.verify, ca_file=remote.ca_file)
    problem = ""
    with httpx.Client(verify=verify, timeout=_ASK_LIMIT_S, headers=headers, trust_env=False) as client:
        for url in remote.urls:
            try:
                with client.stream("GET", f"{url}/models") as answer:
                    if answer.status_code == 200:
                        return read_listing(_body(answer))
                    problem = f"it answers {answer.status_code} to /models"
            except httpx.TimeoutException:
                problem = f"it doesn't answer within {_ASK_LIMIT_S:g} s"
            except httpx.HTTPError as error:
                problem = _clause(error)
            except ValueError as error:
                problem = f"its list of models can't be used: {error}"
    raise ValueError(problem)


def _body(answer: object) -> bytes:
    pieces: list[bytes] = []
    size = 0
    deadline = time.monotonic() + _ASK_LIMIT_S
    for piece in answer.iter_raw():  # type: ignore[attr-defined]  # httpx isn't imported up here
        size += len(piece)
        if size > MAX_LISTING_BYTES:
            raise ValueError(f"it is longer than {MAX_LISTING_BYTES >> 20} MiB")
        if time.monotonic() > deadline:
            raise ValueError(f"it doesn't end within {_ASK_LIMIT_S:g} s")
        pieces.append(piece)
    return b"".join(pieces)


def _clause(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return "its certificate isn't trusted" if "CERTIFICATE_VERIFY_FAILED" in text else f"no connection ({text})"


def _local_name(identifier: str) -> ModelName:
    """The remote's own id where that is a name here; else its last part, as far as a name may hold it."""
    try:
        return ModelName.parse(identifier)
    except InvalidNameError:
        return ModelName.parse(as_name_part(identifier.rpartition("/")[2]))


def _model(remote: Remote, name: ModelName, told: ListedModel) -> Model:
    # The remote's name is part of it: two may lead to one place with different keys, and must not share an engine.
    made_of = "\n".join((remote.name, *sorted(remote.urls), told.id))
    capabilities = told.capabilities
    if remote.capabilities is not None:
        capabilities = frozenset(_WORDS[word] for word in remote.capabilities if word in _WORDS)
    return Model(
        name=str(name),
        digest=hashlib.sha256(made_of.encode("utf-8", "replace")).hexdigest(),
        format="remote",
        files=(),
        size_bytes=0,
        modified_at=told.created or remote.configured_at,
        architecture=_FAMILY,
        families=(_FAMILY,),
        context_tokens=remote.context_tokens or told.context_tokens,
        capabilities=capabilities,
        driver=_DRIVER,
        remote=RemoteModel(remote.name, told.id),
    )
