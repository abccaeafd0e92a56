"""Ollama's dialect: `/api`, kept to the byte where clients look."""

from oprel.dialects.ollama.routes import router
from oprel.dialects.ollama.rules import ENDPOINTS

__all__ = ["ENDPOINTS", "router"]
