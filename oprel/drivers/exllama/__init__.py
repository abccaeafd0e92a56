"""EXL2, EXL3, GPTQ and FP16 models on ExLlamaV2 and ExLlamaV3, each in an environment of its own."""

from oprel.drivers.exllama.driver import ExllamaV2Driver, ExllamaV3Driver

__all__ = ["ExllamaV2Driver", "ExllamaV3Driver"]
