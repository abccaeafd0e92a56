"""A plan: what loading a model would do, readable before anything is loaded."""

from __future__ import annotations

from msgspec import Struct

from oprel.schema.models import ModelFile, RemoteModel
from oprel.schema.requests import LoadOptions

__all__ = ["Availability", "Plan", "Support"]


class Availability(Struct, frozen=True):
    """`reason` is one sentence: what is used, or why not and what would fix it."""

    usable: bool
    reason: str


class Support(Struct, frozen=True):
    supported: bool
    reason: str


class Plan(Struct, frozen=True):
    """All that `Driver.start` needs; pure data, equal plans start equal engines.

    `gpu_layers`: a number, or "fit" when the engine decides. `bytes_by_device` maps a device ("cpu", "CUDA0", …) to
    the estimate for weights, cache and buffers. `argv` holds the placeholders `{socket}` and `{template}`; file paths
    in it are those of `files`. `context_tokens` is for each slot. `device` is what a user is told: "cpu", "gpu",
    "gpu+cpu" or "remote". `chat`: the model has a template to chat with. `reasons` are (subject, sentence) pairs, one
    for each choice. `remote` is where a model without files runs. `fallbacks` are tried in order, by the scheduler,
    when the start fails for a cause that they can help.
    """

    driver: str
    engine: str
    model: str
    model_digest: str
    files: tuple[ModelFile, ...]
    options: LoadOptions
    gpu_layers: int | str
    layers: int | None
    bytes_by_device: tuple[tuple[str, int], ...]
    context_tokens: int
    slots: int
    threads: int
    argv: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()
    device: str = "cpu"
    embedding: bool = False
    chat: bool = False
    reasons: tuple[tuple[str, str], ...] = ()
    remote: RemoteModel | None = None
    fallbacks: tuple[Plan, ...] = ()

    @property
    def bytes_total(self) -> int:
        return sum(size for _, size in self.bytes_by_device)

    @property
    def bytes_on_gpu(self) -> int:
        return sum(size for device, size in self.bytes_by_device if device != "cpu")
