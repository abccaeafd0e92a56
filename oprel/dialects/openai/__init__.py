"""OpenAI's dialect: chat completions, completions, embeddings, models."""

from oprel.dialects.openai.errors import OpenAIErrors
from oprel.dialects.openai.routes import router

__all__ = ["OpenAIErrors", "router"]
