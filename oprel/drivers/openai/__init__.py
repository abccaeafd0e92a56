"""Models on other servers that speak OpenAI's API: one server, or several replicas, behind local names."""

from oprel.drivers.openai.driver import OpenAIDriver

__all__ = ["OpenAIDriver"]
