"""Ollama's dialect: `/api`, kept to the byte where clients look."""

from oprel.dialects.ollama.routes import router

__all__ = ["router"]
