"""What every inference endpoint asks before an engine is asked: which model, and can it do what is wanted."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import msgspec
from msgspec import Struct

from oprel.dialects.ollama.errors import Refusal, refusal
from oprel.dialects.ollama.names import local_name, qualified
from oprel.dialects.ollama.options import DEFAULTS, Chosen
from oprel.dialects.ollama.rules import effectless
from oprel.dialects.rules import Rule
from oprel.dialects.services import Services
from oprel.errors import ModelDamagedError
from oprel.schema import LoadOptions, Model, Sampling, events
from oprel.schema.sampling import filled, from_model

__all__ = [
    "can_chat",
    "check_chat_template",
    "check_completes",
    "check_embeds",
    "check_prompt_template",
    "check_top_logprobs",
    "find",
    "load_options",
    "require",
    "sampling",
    "told",
]

_MAX_LISTED = 8


async def find(
    services: Services, raw: str, *, cloud_row: str = "cloud_model", patterns: bool = True
) -> tuple[str, Model]:
    """The name to ask the scheduler for, and the model. A damaged model is found too."""
    name = local_name(raw, cloud_row=cloud_row)
    return name, await asyncio.to_thread(services.catalog.find, name, patterns=patterns)


def require(model: Model, needs: Iterable[str], *, name: str) -> None:
    """Refuses a model that lacks any of `needs`; the text names it in full, one line for each. A model of which
    nothing is known (a remote one) is left to its engine."""
    if model.capabilities and (lacking := [need for need in needs if need not in model.capabilities]):
        raise refusal("lacks", names="\n".join(f"{qualified(name)} does not support {need}" for need in lacking))


def check_completes(model: Model, *, name: str, what: str) -> None:
    """Refuses a damaged model, and one that makes no text."""
    check_undamaged(model)
    if model.capabilities and "completion" not in model.capabilities:
        raise refusal("not_for", name=name, what=what)


def check_embeds(model: Model) -> None:
    check_undamaged(model)
    if model.capabilities and not model.is_embedding:
        raise refusal("not_for_embedding")


def check_undamaged(model: Model) -> None:
    """Before anything else is said of a model that can't be loaded: what a damaged file can do isn't known."""
    if model.damage is not None:
        raise ModelDamagedError(f"{model.name!r} can't be loaded: {model.damage}", model=model.name)


def can_chat(services: Services, model: Model) -> bool:
    """Only of a GGUF file is it known before it is loaded; other engines tell, once they are there."""
    has_template = model.chat_form is not None or services.settings.chat_template is not None
    return has_template or model.format != "gguf"


def check_chat_template(services: Services, model: Model, *, name: str) -> None:
    if not can_chat(services, model):
        raise _no_template(model, name)


def check_prompt_template(services: Services, model: Model, *, name: str) -> None:
    """A model without any template gets its prompt as it is; one that has code in a template's place is refused."""
    if not can_chat(services, model) and model.renderer:
        raise _no_template(model, name)


def _no_template(model: Model, name: str) -> Refusal:
    if model.renderer:
        return refusal("renderer", name=name, renderer=model.renderer)
    return refusal("no_chat_template", name=name)


def check_top_logprobs(wanted: int) -> None:
    if not 0 <= wanted <= 20:
        raise refusal("top_logprobs")


def sampling(services: Services, model: Model, asked: Sampling) -> Sampling:
    """`asked` with its gaps filled, and a limit of time where there is none of tokens."""
    whole = filled(asked, dialect={}, model=from_model(model), defaults=DEFAULTS)
    if whole.max_tokens is not None:
        return whole
    return filled(whole, dialect={}, model={}, defaults={"time_limit_s": services.settings.request_time_limit})


def load_options(model: Model, asked: Chosen) -> LoadOptions:
    """The request's options; the scheduler fills in the model's own. A context longer than the model was trained for
    is cut to that."""
    load = asked.load
    if load.context_tokens is None or model.context_tokens is None:
        return load
    return msgspec.structs.replace(load, context_tokens=min(load.context_tokens, model.context_tokens))


def told(
    rules: Iterable[Rule], model: Model, asked: Struct, options: Chosen, unknown_fields: Iterable[str]
) -> list[events.Warning]:
    """What was sent that nobody knows, or that the endpoint's `rules` have no use for; and a context that is less."""
    return [*_ignored(rules, asked, options, unknown_fields), *_reduced(model, options)]


def _ignored(
    rules: Iterable[Rule], asked: Struct, options: Chosen, unknown_fields: Iterable[str]
) -> list[events.Warning]:
    unknown = (f"options.{name}" for name in options.unknown)
    names = [*effectless(rules, asked, options.given), *unknown, *unknown_fields]
    shown = ", ".join(names[:_MAX_LISTED]) + (", …" if len(names) > _MAX_LISTED else "")
    return [events.Warning("parameter_ignored", f"without effect here: {shown}")] if names else []


def _reduced(model: Model, options: Chosen) -> list[events.Warning]:
    asked, trained = options.asked_context, model.context_tokens
    if asked is None or trained is None or asked <= trained:
        return []
    text = f"a context of {asked} tokens was asked for, and the model was trained for {trained}"
    return [events.Warning("context_reduced", text)]
