"""Chat for models that have a Go template, on any engine that completes text: prompts made here, answers read here."""

from oprel.drivers.templated.choosing import check_template, engine_for, plan_for, with_template

__all__ = ["check_template", "engine_for", "plan_for", "with_template"]
