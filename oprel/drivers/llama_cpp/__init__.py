"""GGUF models on llama.cpp: `llama-server` where there is one, else the engine of the xllamacpp wheel."""

from oprel.drivers.llama_cpp.driver import LlamaCppDriver

__all__ = ["LlamaCppDriver"]
