"""The options that a model may carry as its own (PARAMETER in a Modelfile, `parameters` of a create request): their
types, and what is refused when a model is made rather than ignored when it runs."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Literal

from oprel.errors import InvalidRequestError

__all__ = ["DEPRECATED", "PARAMETERS", "checked_parameters", "is_deprecated", "parameter_of_text"]

Kind = Literal["int", "float", "bool", "strings", "name"]

PARAMETERS: Mapping[str, Kind] = {
    "num_ctx": "int",
    "num_batch": "int",
    "num_gpu": "int",
    "main_gpu": "int",
    "use_mmap": "bool",
    "num_thread": "int",
    "draft_num_predict": "int",
    "num_keep": "int",
    "seed": "int",
    "num_predict": "int",
    "top_k": "int",
    "top_p": "float",
    "min_p": "float",
    "typical_p": "float",
    "repeat_last_n": "int",
    "temperature": "float",
    "repeat_penalty": "float",
    "presence_penalty": "float",
    "frequency_penalty": "float",
    "stop": "strings",
    "driver": "name",  # Oprel's own: which driver the model runs on, "auto" for any
}
DEPRECATED = frozenset(
    {
        "penalize_newline", "low_vram", "f16_kv", "logits_all", "vocab_only", "use_mlock", "mirostat", "mirostat_tau",
        "mirostat_eta",
    }
)  # fmt: skip
# Names that old models carry: kept where a request brings them, without effect, as Ollama keeps them.
_LEGACY = DEPRECATED | {"numa", "num_gqa", "tfs_z", "embedding_only"}

# What an engine can be given. Whole numbers below the least mean "as if it weren't given", as documented.
_RANGES: Mapping[str, tuple[float, float]] = {
    "temperature": (0, 100),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "typical_p": (0, 1),
    "repeat_penalty": (0, 100),
    "presence_penalty": (-100, 100),
    "frequency_penalty": (-100, 100),
    "repeat_last_n": (-1, 65_536),
    "num_ctx": (4, 2**31 - 1),
    "top_k": (0, 2**31 - 1),
    "seed": (-(2**31), 2**63 - 1),
}
_INT_RANGE = (-(2**31), 2**31 - 1)
_MAX_STOPS = 64
_MAX_STOP_BYTES = 4096
_WORDS: Mapping[Kind, str] = {
    "int": "integer",
    "float": "float32",
    "bool": "boolean",
    "strings": "array",
    "name": "string",
}

_INT = re.compile(r"[+-]?[0-9]{1,19}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_FLOAT = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
# The spellings that Go's ParseBool takes.
_BOOLS = {
    **dict.fromkeys(("1", "t", "T", "true", "TRUE", "True"), True),
    **dict.fromkeys(("0", "f", "F", "false", "FALSE", "False"), False),
}


def is_deprecated(name: str) -> bool:
    return name in DEPRECATED


def parameter_of_text(name: str, text: str) -> Any:
    """The typed value of a Modelfile's `PARAMETER name text`; a list of one string for `stop`. Raises
    InvalidRequestError."""
    kind = PARAMETERS.get(name)
    match kind:
        case None:
            raise InvalidRequestError(f"unknown parameter '{name}'", param=name)
        case "int" if _INT.fullmatch(text):
            return int(text)
        case "float" if len(text) <= 64 and _FLOAT.fullmatch(text):
            return float(text)
        case "bool" if text in _BOOLS:
            return _BOOLS[text]
        case "strings":
            return [text]
        case "name" if _NAME.fullmatch(text):
            return text
    raise InvalidRequestError(f"invalid {kind} value [{text}]", param=name)


def checked_parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    """`given`, sorted by name, with every value of its type and within what an engine can be given; null is left out.
    Raises InvalidRequestError."""
    checked: dict[str, Any] = {}
    for name in sorted(given):
        value = given[name]
        if value is None:
            continue
        if name in PARAMETERS:
            checked[name] = _checked(name, PARAMETERS[name], value)
        elif name in _LEGACY:
            checked[name] = value
        else:
            raise InvalidRequestError(f"unknown parameter '{name[:80]}'", param=name[:80])
    return checked


def _checked(name: str, kind: Kind, value: Any) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    match kind:
        case "bool" if isinstance(value, bool):
            return value
        case "name" if isinstance(value, str) and _NAME.fullmatch(value):
            return value
        case "strings":
            return _stops(name, [value] if isinstance(value, str) else value)
        case "int" if is_number:
            return _within(name, int(value), *_RANGES.get(name, _INT_RANGE))
        case "float" if is_number:
            return _within(name, value, *_RANGES[name])
    raise InvalidRequestError(f'option "{name}" must be of type {_WORDS[kind]}', param=name)


def _stops(name: str, value: Any) -> list[str]:
    if not isinstance(value, list | tuple):
        raise InvalidRequestError(f'option "{name}" must be of type array', param=name)
    if not all(isinstance(item, str) for item in value):
        raise InvalidRequestError(f'option "{name}" must be of an array of strings', param=name)
    if len(value) > _MAX_STOPS or any(len(item.encode("utf-8", "replace")) > _MAX_STOP_BYTES for item in value):
        raise InvalidRequestError(
            f'option "{name}" may have {_MAX_STOPS} texts of {_MAX_STOP_BYTES} bytes at most', param=name
        )
    return list(value)


def _within(name: str, value: Any, least: float, most: float) -> Any:
    if not least <= value <= most:
        raise InvalidRequestError(f'option "{name}" must be from {least:g} to {most:g}, not {value!r}', param=name)
    return value
