"""Cassettes: what an engine was asked and what it answered, when, in a text file that people can read and diff.

JSON Lines. The first line says what this is; then a line for each model, with the plan and the capabilities that its
engine had; then one for each request, in the order in which they were asked:

    {"cassette":1,"driver":"llama_cpp","oprel":"1.0.0"}
    {"model":{"name":"smollm2:135m",…},"plan":{…},"capabilities":{…}}
    {"engine":"smollm2:135m","kind":"chat","request":{…},"answer":[[31.2,[{"type":"text","text":"Hi"}]],…]}

Times are milliseconds since the request. No key is in it (none reaches an engine), no path of the machine that it was
recorded on, and no picture: those are told by their SHA-256.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from oprel import errors
from oprel.errors import InvalidRequestError, OprelError
from oprel.schema import Capabilities, ChatRequest, CompletionRequest, EmbedRequest, Event, Model, Plan
from oprel.version import __version__

__all__ = [
    "FORMAT",
    "Cassette",
    "CassetteError",
    "Exchange",
    "Kind",
    "NotRecordedError",
    "RecordedModel",
    "asked",
    "error_of",
    "recorded_error",
    "scrubbed",
]

FORMAT = 1
Kind = Literal["chat", "complete", "embed", "tokenize", "detokenize", "render"]

# Two or more parts of an absolute path; its last part says enough.
_PATH = re.compile(r"(?<![\w.])(?:/[\w.@+~%-]+)+(/[\w.@+~%-]+)")
# Set by the server for all requests alike, and not by who asks.
_NOT_MATCHED = frozenset({"time_limit_s"})
_SHOWN_DIFFERENCES = 3
_SHOWN_CHARACTERS = 60


class CassetteError(OprelError):
    """The file isn't a cassette, or isn't one that this version reads."""


class NotRecordedError(InvalidRequestError):
    """What was asked isn't in the cassette."""


class Header(Struct, omit_defaults=True):
    cassette: int
    driver: str = ""
    oprel: str = ""


class RecordedModel(Struct):
    model: Model
    plan: Plan
    capabilities: Capabilities


class Exchange(Struct, omit_defaults=True):
    """`answer` is for streams: what came together, with its time in ms; `value` for all else. `error` is what was
    raised after that; `is_cut`: the reader left before the end. `took` is the time of `value` or `error`."""

    engine: str
    kind: Kind
    request: Any
    answer: list[tuple[float, tuple[Event, ...]]] | None = None
    value: Any = None
    error: dict[str, Any] | None = None
    took: float = 0.0
    is_cut: bool = False


class Cassette:
    """What is on one tape. `play` gives each recording of a request once, in order, and then the last one again."""

    def __init__(self, *, driver: str = "", name: str = "cassette") -> None:
        self.driver = driver
        self.name = name
        self.models: dict[str, RecordedModel] = {}
        self.exchanges: list[Exchange] = []
        self._played: dict[bytes, int] = {}

    def __repr__(self) -> str:
        return f"<Cassette {self.name}: {len(self.models)} models, {len(self.exchanges)} exchanges>"

    # -- the file

    @classmethod
    def load(cls, path: Path) -> Cassette:
        """Raises CassetteError with the line that is wrong."""
        try:
            lines = path.read_bytes().splitlines()
        except OSError as error:
            raise CassetteError(
                f"the cassette {path.name} can't be read ({error.strerror}): record it with --oprel-record"
            ) from error
        header = _decoded(lines[0] if lines else b"", Header, path, 1)
        if header.cassette != FORMAT:
            raise CassetteError(
                f"{path.name} is a cassette of format {header.cassette}, and this Oprel plays {FORMAT}: "
                "record it anew with --oprel-record, or use the Oprel that recorded it"
            )
        cassette = cls(driver=header.driver, name=path.name)
        for number, line in enumerate(lines[1:], 2):
            if line.startswith(b'{"model":'):
                recorded = _decoded(line, RecordedModel, path, number)
                cassette.models[recorded.model.name] = recorded
            elif line.strip():
                cassette.exchanges.append(_decoded(line, Exchange, path, number))
        return cassette

    def save(self, path: Path) -> None:
        header = Header(cassette=FORMAT, driver=self.driver, oprel=__version__)
        recorded = (header, *self.models.values(), *self.exchanges)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(msgspec.json.encode(item, order="deterministic") + b"\n" for item in recorded))

    # -- playing

    def play(self, engine: str, kind: Kind, request: Any) -> Exchange:
        """The recorded answer to this very request. Raises NotRecordedError, which names the nearest one there is."""
        wanted = _key(engine, kind, request)
        found = [exchange for exchange in self.exchanges if _key_of(exchange) == wanted]
        if not found:
            raise NotRecordedError(self._missing(engine, kind, request))
        number = self._played.get(wanted, 0)
        self._played[wanted] = number + 1
        return found[min(number, len(found) - 1)]

    def _missing(self, engine: str, kind: Kind, request: Any) -> str:
        text = f"the cassette {self.name} has no answer to this {kind} of {engine!r}"
        alike = [exchange for exchange in self.exchanges if (exchange.engine, exchange.kind) == (engine, kind)]
        differences = min((_differences(other.request, request) for other in alike), key=len, default=[])
        if differences:
            shown = "; ".join(differences[:_SHOWN_DIFFERENCES])
            text += f"; the nearest one that was recorded differs in {shown}"
        return f"{text}. Record it anew with --oprel-record"


# -- requests


def asked(request: ChatRequest | CompletionRequest | EmbedRequest | Mapping[str, Any]) -> Any:
    """A request as it stands in a cassette: what was given, without what says nothing."""
    return _slim(msgspec.to_builtins(request, builtin_types=(bytes,), order="deterministic"))


def _slim(value: Any) -> Any:
    """Without Nones and empty lists of fields; a picture is told by its hash."""
    if isinstance(value, dict):
        return {name: _slim(item) for name, item in value.items() if item is not None and item != [] and item != ()}
    if isinstance(value, list | tuple):
        return [_slim(item) for item in value]
    if isinstance(value, bytes):
        return {"sha256": hashlib.sha256(value).hexdigest(), "size": len(value)}
    return value


def _key_of(exchange: Exchange) -> bytes:
    return _key(exchange.engine, exchange.kind, exchange.request)


def _key(engine: str, kind: str, request: Any) -> bytes:
    return msgspec.json.encode([engine, kind, _matched(request)], order="sorted")


def _matched(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _matched(item) for name, item in value.items() if name not in _NOT_MATCHED}
    if isinstance(value, list):
        return [_matched(item) for item in value]
    return value


def _differences(recorded: Any, wanted: Any) -> list[str]:
    one, other = dict(_leaves(_matched(recorded))), dict(_leaves(_matched(wanted)))
    places = [place for place in one.keys() | other.keys() if one.get(place) != other.get(place)]
    places.sort(key=lambda place: (place not in one or place not in other, place))  # what changed tells most
    return [f"{place}: {_shown(one.get(place))} recorded, {_shown(other.get(place))} asked" for place in places]


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _leaves(item, f"{place}.{name}" if place else name)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _leaves(item, f"{place}[{number}]")
    else:
        yield place, value


def _shown(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


# -- errors


def recorded_error(error: OprelError) -> dict[str, Any]:
    facts = {name: value for name, value in vars(error).items() if isinstance(value, str | int | float | bool)}
    facts.pop("message", None)
    return {"type": type(error).__name__, "message": scrubbed(error.message), **facts}


def error_of(recorded: Mapping[str, Any]) -> OprelError:
    kind = getattr(errors, str(recorded.get("type")), OprelError)
    if not (isinstance(kind, type) and issubclass(kind, OprelError)):
        kind = OprelError
    message = str(recorded.get("message", ""))
    error: OprelError = kind.__new__(kind, message)
    facts = {
        "param": None,
        "driver": None,
        "model": None,
        "log_tail": (),
        "prompt_tokens": None,
        "context_tokens": None,
    }
    error.__dict__.update({**facts, **recorded, "message": message})
    return error


def scrubbed(text: str) -> str:
    """Without the folders of any path."""
    return _PATH.sub(r"…\1", text)


def _decoded(line: bytes, kind: Any, path: Path, number: int) -> Any:
    try:
        return msgspec.json.decode(line, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CassetteError(f"{path.name}, line {number}, isn't of a cassette: {error}") from None
