"""How the model is loaded for a request: Oprel's own fields beside OpenAI's and Anthropic's, and the suffix of a
model's name.

`num_ctx`, `keep_alive` and `options` mean what they mean in Ollama's API. Programs that can set nothing but the name of
a model write the context behind it: `smollm2:135m@ctx=32k`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from oprel.dialects.bounds import checked_stops
from oprel.errors import InvalidRequestError
from oprel.schema import LoadOptions, Sampling, events
from oprel.schema.sampling import LOAD_OPTIONS, SAMPLING_OPTIONS

__all__ = ["Loading", "loading"]

_SUFFIX = re.compile(r"(?P<name>.+)@ctx=(?P<count>[0-9]{1,9})(?P<unit>[kK]?)", re.DOTALL)
_LEAST_CONTEXT = 4
_MOST_CONTEXT = 2**31 - 1
# A negative number of these is "not given" to Ollama's clients.
_UNSET_BELOW_0 = frozenset({"num_predict", "seed", "num_gpu", "num_batch", "num_thread"})
_WORDS = {int: "an integer", float: "a number", bool: "a boolean"}


class Loading(Struct, frozen=True):
    """`name` is the model's, without a suffix; `sampling` are the fields of `Sampling` that `options` sets, for those
    that the request doesn't set itself; `warnings` name the options that nobody knows."""

    name: str
    load: LoadOptions
    sampling: Mapping[str, Any]
    warnings: tuple[events.Warning, ...]

    def completed(self, asked: Sampling) -> Sampling:
        gaps = {name: value for name, value in self.sampling.items() if getattr(asked, name) in (None, ())}
        return msgspec.structs.replace(asked, **gaps) if gaps else asked


def loading(model: str, num_ctx: int | None, options: Mapping[str, Any] | None) -> Loading:
    """The context may be told in three places; where they differ, nobody could say which is meant."""
    name, told = _split(model)
    fields: dict[str, Any] = {}
    sampling: dict[str, Any] = {}
    unknown: list[str] = []
    for option, value in (options or {}).items():
        if value is None:
            continue
        if option in LOAD_OPTIONS:
            fields |= _read(option, value, LOAD_OPTIONS[option])
        elif option in SAMPLING_OPTIONS:
            sampling |= _read(option, value, SAMPLING_OPTIONS[option])
        elif option == "stop":
            sampling["stop"] = _stops(value)
        else:
            unknown.append(option)
    contexts = {"model": told, "num_ctx": num_ctx, "options.num_ctx": fields.get("context_tokens")}
    if (context := _agreed(contexts)) is not None:
        fields["context_tokens"] = context
    warnings = tuple(events.Warning("unknown_field", f"'options.{o}' is not known and was ignored") for o in unknown)
    return Loading(name, LoadOptions(**fields), sampling, warnings)


def _split(model: str) -> tuple[str, int | None]:
    found = _SUFFIX.fullmatch(model)
    if found is None:
        return model, None
    return found["name"], int(found["count"]) * (1024 if found["unit"] else 1)


def _agreed(contexts: Mapping[str, int | None]) -> int | None:
    given = {field: value for field, value in contexts.items() if value is not None}
    for field, value in given.items():
        if not _LEAST_CONTEXT <= value <= _MOST_CONTEXT:
            raise InvalidRequestError(
                f"'{field}' asks for a context of {value} tokens; it must be between {_LEAST_CONTEXT} and "
                f"{_MOST_CONTEXT}",
                param=field,
            )
    if len(set(given.values())) > 1:
        told = ", ".join(f"{value} in '{field}'" for field, value in given.items())
        raise InvalidRequestError(f"the context is told more than once, and differently: {told}", param=list(given)[-1])
    return next(iter(given.values()), None)


def _read(name: str, value: Any, row: tuple[str, type, float, float]) -> dict[str, Any]:
    field, kind, low, high = row
    is_right = isinstance(value, bool) if kind is bool else _is_number(value) and (kind is float or value == int(value))
    if not is_right:
        raise InvalidRequestError(f"'options.{name}' must be {_WORDS[kind]}", param=f"options.{name}")
    if value < 0 and name in _UNSET_BELOW_0:
        return {}
    if not low <= value <= high:
        raise InvalidRequestError(
            f"'options.{name}' is {value}; it must be between {low} and {high}", param=f"options.{name}"
        )
    return {field: kind(value)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise InvalidRequestError("'options.stop' must be a string or an array of strings", param="options.stop")
    return checked_stops(stops, param="options.stop")
