"""Anthropic's dialect: messages, the counting of their tokens, models."""

from oprel.dialects.anthropic.errors import ERRORS, AnthropicErrors
from oprel.dialects.anthropic.routes import router
from oprel.dialects.anthropic.rules import ENDPOINTS

__all__ = ["ENDPOINTS", "ERRORS", "AnthropicErrors", "router"]
