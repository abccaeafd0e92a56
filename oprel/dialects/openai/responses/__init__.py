"""`/v1/responses`: answers as items, kept so that a conversation can go on from them."""

from oprel.dialects.openai.responses.routes import response_handlers

__all__ = ["response_handlers"]
