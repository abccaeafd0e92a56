"""Go's text templates, as models from Ollama's library have them: an interpreter of our own over plain data.

`parse` is all that a checker needs: what it takes can be rendered, within bounds of steps, size and depth.
"""

from oprel.errors import TemplateError
from oprel.templates.functions import FUNCTIONS
from oprel.templates.interpreter import Limits
from oprel.templates.template import MAX_TEMPLATE_BYTES, Template, parse
from oprel.templates.values import JsonList, JsonMap, Record

__all__ = [
    "FUNCTIONS",
    "MAX_TEMPLATE_BYTES",
    "JsonList",
    "JsonMap",
    "Limits",
    "Record",
    "Template",
    "TemplateError",
    "parse",
]
