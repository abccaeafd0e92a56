"""A parsed Go template, ready to be rendered any number of times."""

from __future__ import annotations

from collections.abc import Mapping

from oprel.errors import TemplateError
from oprel.templates.functions import FUNCTIONS
from oprel.templates.interpreter import Limits, run
from oprel.templates.nodes import Block, names_in
from oprel.templates.parser import MAX_TEMPLATE_BYTES, parse_source
from oprel.templates.values import Value

__all__ = ["MAX_TEMPLATE_BYTES", "Template", "parse"]


class Template:
    """Immutable, and safe to render from several threads. `names` are all names of fields in it, as they are written:
    `.Function.Name` gives two; `defined` are the templates that it defines itself."""

    __slots__ = ("defined", "names", "root", "source")

    def __init__(self, source: str, root: Block, defined: Mapping[str, Block]) -> None:
        self.source = source
        self.root = root
        self.defined = dict(defined)
        self.names = frozenset(name for block in (root, *self.defined.values()) for name in names_in(block))

    def __repr__(self) -> str:
        return f"<Template of {len(self.source)} characters>"

    def uses(self, name: str) -> bool:
        """Whether the name of a field stands anywhere in it, in any case: as Ollama looks for variables."""
        return name.lower() in (each.lower() for each in self.names)

    def render(self, data: Value, *, limits: Limits | None = None) -> str:
        """Raises TemplateError, worded as Go words it, where the template can't be applied to `data` or goes beyond a
        bound."""
        return run(self.root, self.defined, data, limits or Limits())


def parse(source: str) -> Template:
    """Raises TemplateError, worded as Go words it, with the line: for what isn't a template, for a function that there
    isn't, and for one that is too long or too deep."""
    try:
        root, defined = parse_source(source, functions=FUNCTIONS.keys())
    except RecursionError:
        raise TemplateError("template: it is nested too deep") from None
    return Template(source, root, defined)
