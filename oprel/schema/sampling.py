"""Which sampling values a request ends up with: one pure function, so that every dialect fills in the same way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from oprel.schema.models import Model
from oprel.schema.requests import Sampling

__all__ = ["filled", "from_model"]

# Ollama's option names, which manifests use, to ours.
_OPTION_NAMES = {
    "num_predict": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "repeat_penalty": "repeat_penalty",
    "repeat_last_n": "repeat_last_n",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "seed": "seed",
    "stop": "stop",
}


def from_model(model: Model) -> dict[str, Any]:
    """The model's own parameters (its manifest's params layer) as fields of Sampling; a negative `num_predict` or
    `seed` means "not given" there."""
    fields: dict[str, Any] = {}
    for name, value in model.parameters:
        field = _OPTION_NAMES.get(name)
        if field is None:
            continue
        if field in ("max_tokens", "seed") and isinstance(value, int) and value < 0:
            continue
        if field == "stop":
            value = (value,) if isinstance(value, str) else tuple(value)  # type: ignore[arg-type]
            value = tuple(stop for stop in value if stop)
        fields[field] = value
    return fields


def filled(
    request: Sampling,
    *,
    dialect: Mapping[str, Any],
    model: Mapping[str, Any],
    defaults: Mapping[str, Any],
) -> Sampling:
    """`request` with its gaps filled: the request's own values first, then `dialect` (what the dialect's documents
    put above a model's parameters: OpenAI's temperature 1 and top_p 1), then `model`, then `defaults`."""
    gaps = {
        name: value for name, value in {**defaults, **model, **dialect}.items() if getattr(request, name) in (None, ())
    }
    return msgspec.structs.replace(request, **gaps) if gaps else request
