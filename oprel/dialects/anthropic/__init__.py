"""Anthropic's dialect: messages, the counting of their tokens, models."""

from oprel.dialects.anthropic.errors import ERRORS, AnthropicErrors
from oprel.dialects.anthropic.routes import router

__all__ = ["ERRORS", "AnthropicErrors", "router"]
