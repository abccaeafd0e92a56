"""What becomes of each field of a request, and of each option: honoured, emulated, refused, or ignored and told.

The published document's fields are all here (a test compares), and what Ollama's own server reads beside them. Options
are fields too, named `options.NAME`; their rows are made of `OPTIONS`. A field that is in no table is unknown: ignored,
and named in `X-Oprel-Warning`, as those are that the engine has no use for.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from oprel.dialects.ollama.options import DEFAULTS, OPTIONS, Option
from oprel.dialects.rules import Endpoint, Rule

__all__ = ["CHAT", "EMBED", "EMBEDDINGS", "ENDPOINTS", "GENERATE", "UNSAMPLED", "effectless"]

UNSAMPLED = "embeddings aren't sampled"


def _row(name: str, option: Option, *, samples: bool) -> Rule:
    """`samples`: the endpoint makes text, so that options of sampling mean something."""
    field = f"options.{name}"
    if option.goes_to is None:
        return Rule(field, "ignored", note=option.note)
    if option.in_load:
        return Rule(field, note=option.note)
    if not samples:
        return Rule(field, "ignored", note=UNSAMPLED)
    default = f"default {DEFAULTS[name]:g}" if name in DEFAULTS else ""
    note = "; ".join(part for part in (default, option.note) if part)
    return Rule(field, note=note, needs=option.goes_to, lacking="ignored")


_SAMPLED = tuple(_row(name, option, samples=True) for name, option in OPTIONS.items())
_UNSAMPLED = tuple(_row(name, option, samples=False) for name, option in OPTIONS.items())

_MODEL = (
    Rule("model", note="a name or an alias; `:local` behind it is dropped"),
    Rule("keep_alive", note="seconds, or a duration such as `10m`; negative: for ever, as far as may be; 0: unload"),
    Rule("options", note="by their names, below; a wrong type is an error"),
)
_GENERATION = (
    *_MODEL,
    *_SAMPLED,
    Rule("stream", note="default true"),
    Rule("format", note="`json`, or a JSON Schema within bounds", needs="json_schema"),
    Rule("think", note="true, false or a level; models that can think do, unless told not to", needs="thinking"),
    Rule("logprobs", needs="logprobs"),
    Rule("top_logprobs", low=0, high=20, note="with `logprobs: true`", needs="logprobs"),
    Rule("shift", "ignored", harmless=(False,), note="the context isn't shifted: an answer that reaches its end ends"),
    Rule("_debug_render_only", note="the prompt is shown instead of answered", needs="tokenize"),
)

GENERATE = (
    *_GENERATION,
    Rule("prompt", note="empty: the model is loaded"),
    Rule("suffix", note="needs a model that can insert", needs="infill"),
    Rule("images", note="in base64; needs a model that sees", needs="vision"),
    Rule("system", note="in place of the model's own"),
    Rule("template", "emulated", note="a Go template, in place of the model's", needs="complete"),
    Rule("context", "emulated", note="of an earlier answer: the prompt goes on from there", needs="tokenize"),
    Rule("raw", note="the prompt goes to the model as it is", needs="complete"),
    Rule("truncate", "emulated", note="default true: without it a prompt that is too long is an error"),
)

CHAT = (
    *_GENERATION,
    Rule("messages", note="empty: the model is loaded"),
    Rule("tools", note="functions; needs a model whose template knows tools", needs="tools"),
    Rule(
        "truncate",
        "emulated",
        note="default true: the oldest turns leave first where all is too long, and it is told",
        needs="tokenize",
        lacking="ignored",
    ),
)

EMBED = (
    *_MODEL,
    *_UNSAMPLED,
    Rule("input", note="text, or a list of texts; empty: the model is loaded"),
    Rule(
        "truncate",
        "emulated",
        note="default true: a text that is too long is cut; false: an error",
        needs="tokenize",
        lacking="ignored",
    ),
    Rule("dimensions", "emulated", note="cut to the first so many, and to unit length again"),
)

EMBEDDINGS = (
    *_MODEL,
    *_UNSAMPLED,
    Rule("prompt", note="empty: the model is loaded"),
)

# Where a model can be asked, for its record.
ENDPOINTS = (
    Endpoint("/api/generate", GENERATE, ("chat", "complete")),
    Endpoint("/api/chat", CHAT, ("chat",)),
    Endpoint("/api/embed", EMBED, ("embed",)),
    Endpoint("/api/embeddings", EMBEDDINGS, ("embed",)),
)


def effectless(rules: Iterable[Rule], asked: Struct, options: Iterable[str]) -> list[str]:
    """Of the fields and `options` that were sent, those that nothing is done with, by their names in the tables."""
    ignored = {rule.field: rule for rule in rules if rule.treatment == "ignored"}
    sent = [f"options.{name}" for name in options]
    fields = asked.__struct_encode_fields__, asked.__struct_fields__
    sent += [name for name, own in zip(*fields, strict=True) if _is_sent(ignored.get(name), getattr(asked, own))]
    return [name for name in sent if name in ignored]


def _is_sent(rule: Rule | None, value: object) -> bool:
    return rule is not None and value is not None and value not in rule.harmless
