"""What differs between ExLlamaV2 and ExLlamaV3, as data; and which of them a model's weights are for."""

from __future__ import annotations

from msgspec import Struct

from oprel.schema import Model

__all__ = ["EXLLAMA", "EXLLAMAV2", "EXLLAMAV3", "Flavour", "quantization_of"]

EXLLAMA = "exllama"
"""The name of the interpreter in `DriverOptions.executables`, and of the table in `DriverOptions.tables`."""


class Flavour(Struct, frozen=True):
    """`name` is the driver's and the package's; `takes` the quantizations that it runs ("fp16" is none); `needs` the
    packages without which it can't be used; `pages_with` the one that several requests at once depend on."""

    name: str
    takes: tuple[str, ...]
    needs: tuple[str, ...]
    install: str
    pages_with: str | None = None


EXLLAMAV2 = Flavour(
    name="exllamav2",
    takes=("exl2", "gptq", "fp16"),
    needs=("torch", "exllamav2", "tokenizers"),
    install="pip install torch exllamav2 tokenizers flash-attn",
    pages_with="flash-attn",
)
EXLLAMAV3 = Flavour(
    name="exllamav3",
    takes=("exl3", "fp16"),
    needs=("torch", "exllamav3", "tokenizers"),
    install="pip install torch exllamav3",
)

_OWN_FORMATS = ("exl2", "exl3", "gptq")
_UNQUANTIZED = ("", "f16", "fp16", "float16", "bf16", "bfloat16", "f32", "fp32", "float32")


def quantization_of(model: Model) -> str | None:
    """ "exl2", "exl3", "gptq", "fp16" (none), or another by the model's own word; None: it isn't a folder of weights
    that such an engine reads at all."""
    if model.format in _OWN_FORMATS:
        return model.format
    if model.format != "safetensors":
        return None
    word = model.quantization.lower()
    return "fp16" if word in _UNQUANTIZED else word
