"""Engines that are HTTP servers speaking OpenAI's API, or llama-server's: one implementation, differences as data."""

from oprel.drivers.upstream.engine import HttpEngine
from oprel.drivers.upstream.quirks import LLAMA_SERVER, Quirks

__all__ = ["LLAMA_SERVER", "HttpEngine", "Quirks"]
