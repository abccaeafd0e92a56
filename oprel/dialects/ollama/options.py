"""`options`: every documented name, its type, and where it goes. A name that isn't here is ignored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from msgspec import Struct

from oprel.dialects.bounds import checked_stops
from oprel.dialects.ollama.errors import refusal
from oprel.schema import LoadOptions, Sampling

__all__ = ["DEFAULTS", "OPTIONS", "Chosen", "Option", "chosen"]

_LARGEST = 2**31 - 1
_LARGEST_FLOAT = 1e6  # engines count in float32, where larger numbers soon are infinite

Kind = Literal["integer", "float32", "boolean", "array"]


class Option(Struct, frozen=True):
    """`goes_to` is a field of `Sampling` (`in_load` False) or of `LoadOptions`; None: known and without effect.
    A value below `least` means "not given" for options whose documents say so, else it becomes `least`; one above
    `most` becomes `most`. `note` says, for one who reads the documentation, what there is to know."""

    kind: Kind
    goes_to: str | None = None
    in_load: bool = False
    least: int | None = None
    most: int = _LARGEST
    below_is_unset: bool = False
    note: str = ""


_PLANNED = "not given: planned"

OPTIONS: Mapping[str, Option] = {
    "num_ctx": Option(
        "integer",
        "context_tokens",
        in_load=True,
        least=4,
        note="tokens of context for a request, cut to what the model was trained for; less than is loaded reloads "
        "nothing; not given: planned from memory",
    ),
    "num_batch": Option("integer", "batch_tokens", in_load=True, least=1, below_is_unset=True, note=_PLANNED),
    "num_gpu": Option(
        "integer",
        "gpu_layers",
        in_load=True,
        least=0,
        below_is_unset=True,
        note="layers on the GPU; 0: none",
    ),
    "main_gpu": Option("integer", "main_gpu", in_load=True, least=0, below_is_unset=True, note=_PLANNED),
    "use_mmap": Option("boolean", "mmap", in_load=True, note=_PLANNED),
    "num_thread": Option("integer", "threads", in_load=True, least=1, below_is_unset=True, note=_PLANNED),
    "num_predict": Option(
        "integer",
        "max_tokens",
        least=0,
        below_is_unset=True,
        note="not given: what is left of the context, and a limit of time",
    ),
    "temperature": Option("float32", "temperature"),
    "top_k": Option("integer", "top_k"),
    "top_p": Option("float32", "top_p"),
    "min_p": Option("float32", "min_p"),
    "typical_p": Option("float32", "typical_p"),
    "repeat_penalty": Option("float32", "repeat_penalty"),
    # Engines reserve memory for so many tokens.
    "repeat_last_n": Option("integer", "repeat_last_n", most=65_536, note="at most 65,536"),
    "presence_penalty": Option("float32", "presence_penalty"),
    "frequency_penalty": Option("float32", "frequency_penalty"),
    "seed": Option(
        "integer", "seed", least=0, most=2**63 - 1, below_is_unset=True, note="not given: another one each time"
    ),
    "stop": Option("array", "stop", note="an array, or a single string; up to 16"),
    "draft_num_predict": Option("integer", note="no engine here drafts"),
    "num_keep": Option("integer", note="no engine here shifts its context"),
}

# Old names that clients still send, of any type: ignored without a word, as Ollama does.
LEGACY = frozenset(
    {
        "numa", "low_vram", "f16_kv", "logits_all", "vocab_only", "use_mlock", "embedding_only", "tfs_z", "mirostat",
        "mirostat_tau", "mirostat_eta", "penalize_newline", "num_gqa",
    }
)  # fmt: skip

DEFAULTS: Mapping[str, Any] = {
    "temperature": 0.8,
    "top_k": 40,
    "top_p": 0.9,
    "min_p": 0.0,
    "typical_p": 1.0,
    "repeat_penalty": 1.0,
    "repeat_last_n": 64,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


class Chosen(Struct, frozen=True):
    """`asked_context` is `num_ctx` as the client wrote it; `given` are the known names that have a value,
    `unknown` those that nobody knows, in order."""

    sampling: Sampling
    load: LoadOptions
    asked_context: int | None = None
    given: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


def chosen(options: Mapping[str, object]) -> Chosen:
    """What a request's options come to, before any default."""
    sampling: dict[str, Any] = {}
    load: dict[str, Any] = {}
    given: list[str] = []
    unknown: list[str] = []
    asked_context: int | None = None
    for name, value in options.items():
        option = OPTIONS.get(name)
        if option is None:
            unknown += [] if name in LEGACY else [name]
            continue
        if value is None:
            continue
        read = _typed(name, option, value)
        given.append(name)
        if option.goes_to is None:
            continue
        if name == "num_ctx":
            asked_context = read
        limited = _limited(option, read)
        if limited is not None:
            (load if option.in_load else sampling)[option.goes_to] = limited
    return Chosen(Sampling(**sampling), LoadOptions(**load), asked_context, tuple(given), tuple(unknown))


def _typed(name: str, option: Option, value: object) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    match option.kind:
        case "integer" if is_number:
            return int(value)  # type: ignore[call-overload]  # a float is cut to its whole part
        case "float32" if is_number:
            return float(value)  # type: ignore[arg-type]
        case "boolean" if isinstance(value, bool):
            return value
        case "array" if isinstance(value, str):  # the published document allows a single string
            return checked_stops(value, param="options.stop")
        case "array" if isinstance(value, list):
            if not all(isinstance(item, str) for item in value):
                raise refusal("option_strings", name=name)
            return checked_stops(value, param="options.stop")
    raise refusal("option_type", name=name, type=option.kind)


def _limited(option: Option, value: Any) -> Any:
    if option.kind == "float32":
        return max(-_LARGEST_FLOAT, min(value, _LARGEST_FLOAT))
    if option.kind != "integer":
        return value
    if option.least is not None and value < option.least:
        return None if option.below_is_unset else option.least
    return max(-option.most, min(value, option.most))
