"""Which sampling values a request ends up with: one pure function, so that every dialect fills in the same way."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from oprel.schema.models import Model
from oprel.schema.requests import Sampling

__all__ = ["LOAD_OPTIONS", "SAMPLING_OPTIONS", "filled", "from_model", "load_from_model"]

_INT_MAX = 2**31 - 1

# Ollama's option names, which manifests use: our field, its type, and the range within which a value is taken.
SAMPLING_OPTIONS: dict[str, tuple[str, type, float, float]] = {
    "num_predict": ("max_tokens", int, 0, _INT_MAX),
    "temperature": ("temperature", float, 0, 100),
    "top_p": ("top_p", float, 0, 1),
    "top_k": ("top_k", int, 0, _INT_MAX),
    "min_p": ("min_p", float, 0, 1),
    "typical_p": ("typical_p", float, 0, 1),
    "repeat_penalty": ("repeat_penalty", float, 0, 100),
    "repeat_last_n": ("repeat_last_n", int, -1, 65_536),  # engines reserve memory for so many tokens
    "presence_penalty": ("presence_penalty", float, -100, 100),
    "frequency_penalty": ("frequency_penalty", float, -100, 100),
    "seed": ("seed", int, 0, 2**63 - 1),
}
LOAD_OPTIONS: dict[str, tuple[str, type, float, float]] = {
    "num_ctx": ("context_tokens", int, 4, _INT_MAX),
    "num_batch": ("batch_tokens", int, 1, _INT_MAX),
    "num_gpu": ("gpu_layers", int, 0, _INT_MAX),
    "main_gpu": ("main_gpu", int, 0, _INT_MAX),
    "num_thread": ("threads", int, 1, _INT_MAX),
    "use_mmap": ("mmap", bool, 0, 1),
}


def from_model(model: Model) -> dict[str, Any]:
    """The model's own parameters (its manifest's params layer) as fields of Sampling. What isn't of its type or
    within its range is left out: whoever made the model isn't here to be told."""
    fields = _read(model, SAMPLING_OPTIONS)
    stops = dict(model.parameters).get("stop")
    if isinstance(stops, str):
        stops = (stops,)
    if isinstance(stops, list | tuple) and (kept := tuple(stop for stop in stops if isinstance(stop, str) and stop)):
        fields["stop"] = kept
    return fields


def load_from_model(model: Model) -> dict[str, Any]:
    """The model's own parameters as fields of LoadOptions; its context is at most what it was trained for."""
    fields = _read(model, LOAD_OPTIONS)
    if "context_tokens" in fields and model.context_tokens is not None:
        fields["context_tokens"] = min(fields["context_tokens"], model.context_tokens)
    return fields


def _read(model: Model, table: Mapping[str, tuple[str, type, float, float]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in model.parameters:
        if name not in table:
            continue
        field, kind, least, most = table[name]
        if isinstance(value, bool) != (kind is bool) or not isinstance(value, int | float):
            continue
        if math.isfinite(value) and least <= value <= most:
            fields[field] = kind(value)
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
