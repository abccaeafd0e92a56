"""The words for quantizations as they stand in names: which lose much, and how one is added to a model's name."""

from __future__ import annotations

import re

from oprel.errors import InvalidRequestError
from oprel.store.names import DEFAULT_HOST, DEFAULT_NAMESPACE, DEFAULT_TAG, ModelName
from oprel.store.references import PackageReference, parse_reference

__all__ = ["QUANTIZED_TAG", "is_low_quality", "with_quantization"]

AUTO = "auto"
QUANTIZED_TAG = re.compile(
    r"(?:(?P<size>.+)-)?(?P<quantization>(?:ud-)?(?:i?q\d+|tq\d+|f16|f32|bf16|fp16|mxfp4|nvfp4)(?:_[a-z0-9]+)*)",
    re.IGNORECASE,
)
"""A tag that ends with a quantization: `8b-instruct-q4_K_M`."""

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,78}")
_LOW = ("q1", "q2", "iq1", "iq2", "tq1", "tq2")


def is_low_quality(quantization: str) -> bool:
    """Two bits for each weight, or fewer."""
    return quantization.lower().removeprefix("ud-").startswith(_LOW)


def with_quantization(name: str, quantization: str | None) -> str:
    """`name` with the quantization in its tag; unchanged for None and `auto`. Raises InvalidRequestError where the name
    says another, or can't say any, and InvalidNameError."""
    if quantization is None or quantization.lower() == AUTO:
        return name
    if not _WORD.fullmatch(quantization):
        raise InvalidRequestError(f"{quantization[:80]!r} isn't a quantization: Q4_K_M is one.", param="quantization")
    if isinstance(parse_reference(name), PackageReference):
        raise InvalidRequestError(
            f"{name[:100]!r} is one file, in the quantization that it has: leave out {quantization!r}.",
            param="quantization",
        )
    parsed = ModelName.parse(name)
    stem, colon, tag = name.strip().rpartition(":")
    if not colon or "/" in tag:
        return f"{name.strip()}:{quantization}"
    if tag.lower() == DEFAULT_TAG:
        return f"{stem}:{quantization}"
    if tag.lower() == quantization.lower() or tag.lower().endswith(f"-{quantization.lower()}"):
        return name
    is_short = parsed.host == DEFAULT_HOST and parsed.namespace == DEFAULT_NAMESPACE
    if is_short and not QUANTIZED_TAG.fullmatch(tag):  # the size of an alias: qwen2.5:3b
        return f"{name.strip()}-{quantization}"
    raise InvalidRequestError(
        f"{name!r} names {tag!r} already: leave out {quantization!r}, or the tag.", param="quantization"
    )
