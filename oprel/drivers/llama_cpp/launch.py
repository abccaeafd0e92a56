"""The command line of an engine: only options that its probe listed, values only of our own making."""

from __future__ import annotations

import re
from dataclasses import dataclass

from oprel.drivers.llama_cpp.shape import Shape
from oprel.drivers.local.words import SOCKET, TEMPLATE
from oprel.errors import UnsupportedError
from oprel.schema import EngineProbe, LoadOptions, Model

__all__ = ["PARTS", "Launch", "build_argv", "is_template_text"]

PARTS = "{parts}"

_TEMPLATE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_MAX_TEMPLATE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Launch:
    """What was decided. `gpu_layers` "fit" leaves the number to the engine; `devices` are the GPUs that it may use,
    by its own names, and `is_every_device` says that it lists no others."""

    shape: Shape
    gpu_layers: int | str
    threads: int
    batch_tokens: int
    micro_batch_tokens: int
    cache_ram_mib: int
    pooling: str | None
    devices: tuple[str, ...]
    is_every_device: bool


def build_argv(probe: EngineProbe, model: Model, options: LoadOptions, launch: Launch) -> tuple[str, ...]:
    """The whole command, with the placeholders `{socket}`, `{template}` and `{parts}` as arguments of their own.

    `{parts}` is the first part of a split file: engines find the others by names that blobs don't have."""
    line = _Line(probe)
    is_split = sum(file.role == "weights" for file in model.files) > 1
    line.add("--model", PARTS if is_split else model.weights.path)
    line.add("--alias", model.digest[:12] or "model")
    line.add("--host", SOCKET)
    line.add("--parallel", launch.shape.slots)
    line.add("--ctx-size", launch.shape.tokens)
    line.add_switch("--no-kv-unified")
    line.add("--threads", launch.threads)
    line.add("--batch-size", launch.batch_tokens)
    line.add("--ubatch-size", launch.micro_batch_tokens)
    line.add("--cache-ram", launch.cache_ram_mib)
    _add_device(line, options, launch)
    _add_memory(line, options)
    _add_template(line, options)
    _add_companions(line, model)
    if launch.pooling is not None:
        line.add_switch("--embeddings")
        line.add("--pooling", launch.pooling)
    line.add_switch("--no-ui", "--no-webui")
    line.add_switch("--offline")
    # Layers, buffers and devices are told at this level only; it costs about 20 lines a request.
    line.add(("--log-verbosity", "--verbosity"), 4)
    return line.words


def is_template_text(template: str) -> bool:
    """Whether it is Jinja itself, and not the name of a template that the engine knows."""
    return "{{" in template or "{%" in template or "\n" in template


class _Line:
    def __init__(self, probe: EngineProbe) -> None:
        self.words = probe.command
        self._flags = probe.flags

    def add(self, names: str | tuple[str, ...], value: object) -> bool:
        """The first of `names` that the engine lists, with `value`; False: it lists none."""
        for name in (names,) if isinstance(names, str) else names:
            if name in self._flags:
                self.words = (*self.words, name, str(value))
                return True
        return False

    def add_switch(self, *names: str) -> bool:
        for name in names:
            if name in self._flags:
                self.words = (*self.words, name)
                return True
        return False


def _add_device(line: _Line, options: LoadOptions, launch: Launch) -> None:
    layers = ("--gpu-layers", "--n-gpu-layers")
    if launch.gpu_layers == 0:
        if launch.devices:
            line.add(layers, 0)
            line.add("--device", "none")
        # Nothing is left to fit, and looking for it takes 0.3 s; a warm-up would only move the wait for pages.
        line.add("--fit", "off")
        line.add_switch("--no-warmup")
        return
    if launch.gpu_layers == "fit":
        line.add(layers, "auto")
        line.add("--fit", "on")
    else:
        line.add(layers, launch.gpu_layers)
        line.add("--fit", "off")
    if not launch.is_every_device:
        line.add("--device", ",".join(launch.devices))
    if options.main_gpu is not None:
        line.add("--split-mode", "none")
        line.add("--main-gpu", options.main_gpu)


def _add_memory(line: _Line, options: LoadOptions) -> None:
    if options.kv_cache_type is not None:
        line.add("--cache-type-k", options.kv_cache_type)
        line.add("--cache-type-v", options.kv_cache_type)
    if options.flash_attention is not None:
        line.add("--flash-attn", "on" if options.flash_attention else "off")
    if options.mmap is False and not line.add("--load-mode", "none"):
        line.add_switch("--no-mmap")


def _add_template(line: _Line, options: LoadOptions) -> None:
    template = options.chat_template
    if template is None:
        return
    if not is_template_text(template):
        if not _TEMPLATE_NAME.fullmatch(template):
            raise _refused(f"{template[:40]!r} is neither the name of a chat template nor a Jinja template")
        line.add("--chat-template", template)
    elif len(template.encode()) > _MAX_TEMPLATE_BYTES:
        raise _refused(f"a chat template may have {_MAX_TEMPLATE_BYTES} bytes at most")
    elif not line.add("--chat-template-file", TEMPLATE):
        raise _refused("this engine takes no chat template from outside")


def _add_companions(line: _Line, model: Model) -> None:
    adapters = [file.path for file in model.files if file.role == "adapter"]
    projectors = [file.path for file in model.files if file.role == "projector"]
    if any("," in path for path in adapters):  # the option separates by commas, and has no way to write one
        raise UnsupportedError("An adapter in a folder with a comma in its name can't be loaded.", capability="lora")
    if adapters and not line.add("--lora", ",".join(adapters)):
        raise UnsupportedError("This engine can't load adapters.", capability="lora", model=model.name)
    if projectors and not line.add("--mmproj", projectors[0]):
        raise UnsupportedError("This engine can't load projectors.", capability="vision", model=model.name)


def _refused(why: str) -> UnsupportedError:
    return UnsupportedError(f"The chat template can't be used: {why}.", capability="chat_template")
