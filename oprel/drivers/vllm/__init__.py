"""Models in safetensors on vLLM, run as a child from its own environment: Oprel never imports it."""

from oprel.drivers.vllm.driver import VllmDriver

__all__ = ["VllmDriver"]
