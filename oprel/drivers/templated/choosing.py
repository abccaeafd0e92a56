"""Which models chat by their Go template, decided in one place for all drivers."""

from __future__ import annotations

import msgspec

from oprel.drivers.contract import Engine
from oprel.errors import TemplateError
from oprel.schema import Model, Plan

# What templates need is imported when a model has one: most have not, and starting shall be quick.

__all__ = ["check_template", "engine_for", "plan_for", "with_template"]

_WHY = "the Go template of its manifest, applied by Oprel"
_WHY_BOTH = f"{_WHY}; the file's own Jinja template has no more to offer"


def engine_for(model: Model, engine: Engine) -> Engine:
    """`engine` as `model` is asked through it: itself, unless conversations are put into the model's Go template. The
    same engine may serve other models, with other templates."""
    source = _source(model, engine.plan)
    if source is None or not engine.capabilities.complete:
        return engine
    from oprel.drivers.templated.engine import TemplatedEngine
    from oprel.templates.chat import ChatTemplate, chat_template

    template: ChatTemplate | TemplateError
    try:
        template = chat_template(source)
    except TemplateError as error:
        template = error
    return TemplatedEngine(engine, template, plan_for(model, engine.plan))


def plan_for(model: Model, plan: Plan) -> Plan:
    """`plan` with what the template makes of it."""
    if _source(model, plan) is None or plan.embedding:
        return plan
    reasons = tuple(reason for reason in plan.reasons if reason[0] != "template")
    why = _WHY if model.chat_template is None else _WHY_BOTH
    return msgspec.structs.replace(
        plan,
        chat=True,
        reasons=(*reasons, ("template", why)),
        fallbacks=tuple(plan_for(model, fallback) for fallback in plan.fallbacks),
    )


def with_template(engine: Engine, source: str) -> Engine:
    """`engine` with another Go template than its model's. Raises TemplateError."""
    from oprel.drivers.templated.engine import TemplatedEngine
    from oprel.templates.chat import chat_template

    inner = engine.inner if isinstance(engine, TemplatedEngine) else engine
    plan = msgspec.structs.replace(inner.plan, chat=True)
    return TemplatedEngine(inner, chat_template(source), plan, is_foreign=True)


def check_template(source: str) -> None:
    """Raises TemplateError for what isn't a Go template, before anything is loaded for it. Takes a quarter of a second
    at most; what was checked is at hand for a while."""
    from oprel.templates.chat import chat_template

    chat_template(source)


def _source(model: Model, plan: Plan) -> str | None:
    return model.template if model.chat_form == "go" and plan.remote is None else None
