"""OpenAI's dialect: chat completions, completions, embeddings, models."""

from oprel.dialects.openai.errors import OpenAIErrors
from oprel.dialects.openai.routes import router
from oprel.dialects.openai.rules import ENDPOINTS

__all__ = ["ENDPOINTS", "OpenAIErrors", "router"]
