"""From a model, options and this machine to a plan, with a reason for each choice. Pure."""

from __future__ import annotations

import math
import re
from pathlib import PurePath
from typing import NoReturn

import msgspec

from oprel.drivers.exllama.flavour import Flavour
from oprel.drivers.exllama.options import CACHE_TYPES, ExllamaOptions
from oprel.drivers.llama_cpp.launch import is_template_text
from oprel.drivers.llama_cpp.shape import MAX_CONTEXT_TOKENS, Shape, Wish, best_shape
from oprel.drivers.local.words import SOCKET, TEMPLATE
from oprel.errors import InsufficientMemoryError, UnsupportedError
from oprel.schema import EngineProbe, Gpu, Hardware, LoadOptions, Model, Plan

__all__ = ["CACHE", "gpus_of", "make_plan"]

CACHE = "{cache}"
"""Stands in the environment, for the folder of compiled kernels."""

_MIB = 1024 * 1024
_GIB = 1024 * _MIB
_GB = 10**9
_PAGE_TOKENS = 256
_MAX_SLOTS = 64
_MAX_TEMPLATE_BYTES = 64 * 1024
# What is left free on each GPU: its driver's context, fragments, the desktop.
_GPU_MARGIN_BYTES = _GIB
# Torch, CUDA's libraries and the tokenizer in RAM.
_HOST_BYTES = 2 * _GIB
_SCRATCH_BYTES = 512 * _MIB
_PREFILL_TOKENS = 2048
# Of a draft model whose files the catalog doesn't know.
_DRAFT_BYTES = 2 * _GIB
# Where a config says nothing of its shape: those of an 8B model, so that the estimate errs on the safe side.
_DEFAULT_WIDTH = 4096
_DEFAULT_KV_BYTES = 128 * 1024
_UNKNOWN_CONTEXT_TOKENS = 4096
# One compiler takes some 3 GB.
_COMPILER_BYTES = 3 * _GIB


def gpus_of(hardware: Hardware) -> tuple[Gpu, ...]:
    """Those that CUDA builds of torch can use."""
    return tuple(gpu for gpu in hardware.gpus if gpu.vendor == "nvidia")


def make_plan(
    model: Model,
    options: LoadOptions,
    hardware: Hardware,
    probe: EngineProbe,
    *,
    flavour: Flavour,
    own: ExllamaOptions,
) -> Plan:
    """Raises UnsupportedError for options that can't be honoured, InsufficientMemoryError where even the smallest
    plan doesn't fit: there is no CPU to fall back to."""
    planner = _Planner(model, options, hardware, probe, flavour, own)
    planner.check()
    first = planner.best(planner.wish) or planner.refuse()
    return msgspec.structs.replace(first, fallbacks=planner.smaller(first))


class _Planner:
    """What the plans of one ladder share."""

    def __init__(
        self,
        model: Model,
        options: LoadOptions,
        hardware: Hardware,
        probe: EngineProbe,
        flavour: Flavour,
        own: ExllamaOptions,
    ) -> None:
        self.model = model
        self.options = options
        self.hardware = hardware
        self.probe = probe
        self.flavour = flavour
        self.own = own
        self.versions = dict(flag.split("==", 1) for flag in probe.flags)
        self.gpus = gpus_of(hardware)
        if options.main_gpu is not None:
            self.gpus = self.gpus[options.main_gpu : options.main_gpu + 1]
        self.cache_type = options.kv_cache_type or own.cache_type or "f16"
        self.draft = _draft_folder(model, own)
        self.can_page = flavour.pages_with is None or flavour.pages_with in self.versions
        self.wish, self.context_reason = _wish(model, options, can_page=self.can_page)

    # What can't be

    def check(self) -> None:
        options, layers = self.options, self.model.layers
        for name, low, high in (("context_tokens", 1, 1 << 30), ("slots", 1, _MAX_SLOTS), ("main_gpu", 0, 255)):
            value = getattr(options, name)
            if value is not None and not low <= value <= high:
                raise self._refusal(name, f"must be from {low} to {high}, not {value}")
        if options.main_gpu is not None and not self.gpus:
            raise self._refusal("main_gpu", f"must be below {len(gpus_of(self.hardware))}, the number of NVIDIA GPUs")
        if options.gpu_layers is not None and (options.gpu_layers == 0 or options.gpu_layers < (layers or 0)):
            raise self._refusal("gpu_layers", f"can't be {options.gpu_layers}: {self.flavour.name} has all on the GPU")
        if self.cache_type not in CACHE_TYPES:
            raise self._refusal("kv_cache_type", f"must be one of {', '.join(CACHE_TYPES)}, not {self.cache_type!r}")
        if len(self.own.gpu_split) > len(self.gpus):
            raise self._refusal("gpu_split", f"names {len(self.own.gpu_split)} GPUs, and there are {len(self.gpus)}")
        template = options.chat_template
        if template is not None and not is_template_text(template):
            raise self._refusal("chat_template", f"must be Jinja text: {self.flavour.name} knows no templates by name")
        if template is not None and len(template.encode()) > _MAX_TEMPLATE_BYTES:
            raise self._refusal("chat_template", f"may have {_MAX_TEMPLATE_BYTES} bytes at most")

    def _refusal(self, name: str, why: str) -> UnsupportedError:
        return UnsupportedError(
            f"{name} {why}.", capability=name, model=self.model.name, driver=self.flavour.name, param=name
        )

    def refuse(self) -> NoReturn:
        least = self.wish.least
        needed, budget = self._on_gpu(least), self.budget
        asked = "" if self.options.context_tokens is None else f" with the {least.tokens} tokens of context asked for"
        raise InsufficientMemoryError(
            f"{self.model.name!r} needs at least {_size(needed)} of GPU memory{asked}, and {_size(budget)} can be had: "
            "unload other models, or take a smaller model, quantization, context or cache type.",
            needed_bytes=needed,
            available_bytes=budget,
        )

    # Memory

    @property
    def budget(self) -> int:
        return sum(self._room(n) for n in range(len(self.gpus)))

    def _room(self, n: int) -> int:
        room = max(0, self.gpus[n].free_bytes - _GPU_MARGIN_BYTES)
        split = self.own.gpu_split
        if not split:
            return room
        return min(room, int(split[n] * _GB)) if n < len(split) else 0

    def _on_gpu(self, shape: Shape) -> int:
        model = self.model
        width = model.embedding_length or _DEFAULT_WIDTH
        kv = model.kv_bytes_per_token
        if kv is None:
            kv = model.layers * width * 4 if model.layers and model.embedding_length else _DEFAULT_KV_BYTES
        cache = kv * CACHE_TYPES[self.cache_type][1] * shape.slots * self._slot_tokens(shape.context_tokens)
        weights = sum(file.size_bytes for file in model.files)
        if self.own.draft_model is not None:
            weights += _DRAFT_BYTES
        elif self.draft is not None:
            cache *= 1.25  # its own, which is of the same length, and f16
        return math.ceil(weights + cache) + _SCRATCH_BYTES + 32 * width * _PREFILL_TOKENS

    def _slot_tokens(self, context_tokens: int) -> int:
        """As the host reckons: whole pages, and room for the tokens that are under way."""
        margin = 1 + (self.own.draft_tokens if self.draft is not None else 0)
        return -(-(context_tokens + margin) // _PAGE_TOKENS) * _PAGE_TOKENS

    def _bytes_by_device(self, shape: Shape) -> tuple[tuple[str, int], ...]:
        """GPUs are filled one after the other."""
        parts = [("cpu", _HOST_BYTES)]
        left = self._on_gpu(shape)
        for n, gpu in enumerate(self.gpus):
            part = min(left, self._room(n))
            if part > 0:
                parts.append((f"CUDA{gpu.index}", part))
                left -= part
        return tuple(parts)

    # Plans

    def best(self, wish: Wish) -> Plan | None:
        shape = best_shape(wish, lambda shape: self._on_gpu(shape) <= self.budget)
        return None if shape is None else self._plan(shape)

    def smaller(self, first: Plan) -> tuple[Plan, ...]:
        """What to try when memory runs out, for metadata says little of some models."""
        half = first.context_tokens // 2
        if self.wish.is_context_fixed or half < self.wish.least.context_tokens:
            return ()
        rung = self.best(Wish(half, first.slots))
        if rung is None:
            return ()
        reason = ("fallback", "with half the context, should memory run out")
        return (msgspec.structs.replace(rung, reasons=(*rung.reasons, reason)),)

    def _plan(self, shape: Shape) -> Plan:
        model, flavour = self.model, self.flavour
        return Plan(
            driver=flavour.name,
            engine=f"{flavour.name} {self.probe.version}",
            model=model.name,
            model_digest=model.digest,
            files=model.files,
            options=self.options,
            gpu_layers=model.layers if model.layers is not None else "fit",
            layers=model.layers,
            bytes_by_device=self._bytes_by_device(shape),
            context_tokens=shape.context_tokens,
            slots=shape.slots,
            threads=1,
            argv=self._argv(shape),
            environment=self._environment(),
            device="gpu",
            chat=bool(model.chat_template or self.options.chat_template),
            reasons=tuple(self._reasons(shape)),
        )

    def _argv(self, shape: Shape) -> tuple[str, ...]:
        words = [
            *self.probe.command,
            "--engine", self.flavour.name,
            "--model", str(PurePath(self.model.weights.path).parent),
            "--name", self.model.digest[:12] or "model",
            "--socket", SOCKET,
            "--context", str(shape.context_tokens),
            "--slots", str(shape.slots),
            "--cache-type", CACHE_TYPES[self.cache_type][0],
        ]  # fmt: skip
        if self.own.gpu_split:
            words += ["--gpu-split", ",".join(f"{size:g}" for size in self.own.gpu_split)]
        if self.draft is not None:
            words += ["--draft", self.draft, "--draft-tokens", str(self.own.draft_tokens)]
        if self.options.chat_template is not None:
            words += ["--template", TEMPLATE]
        return tuple(words)

    def _environment(self) -> tuple[tuple[str, str], ...]:
        """Kernels are compiled for one version of everything, so each combination has a folder of its own. CUDA
        numbers GPUs as nvidia-smi does when it is told to."""
        python = ".".join(self.versions.get("python", "").split(".")[:2])
        tag = f"{self.flavour.name}-{self.probe.version}-torch{self.versions.get('torch', '')}-py{python}"
        jobs = max(1, min(self.hardware.cores, self.hardware.ram_available_bytes // _COMPILER_BYTES))
        found = [
            ("CUDA_DEVICE_ORDER", "PCI_BUS_ID"),
            ("HF_HUB_OFFLINE", "1"),
            ("MAX_JOBS", str(jobs)),
            ("TORCH_EXTENSIONS_DIR", f"{CACHE}/{re.sub(r'[^A-Za-z0-9._+-]', '_', tag)}"),
        ]
        if self.options.main_gpu is not None:
            found.append(("CUDA_VISIBLE_DEVICES", str(self.gpus[0].index)))
        return tuple(found)

    # Reasons

    def _reasons(self, shape: Shape) -> list[tuple[str, str]]:
        tokens, most = shape.context_tokens, self.wish.most_tokens
        why = self.context_reason if tokens == most else f"GPU memory has no room for {most}"
        names = ", ".join(f"CUDA{gpu.index} ({gpu.name})" for gpu in self.gpus)
        how = f"split as configured ({self._split_text()})" if self.own.gpu_split else "filled one after the other"
        reasons = [
            ("engine", f"{self.flavour.name} {self.probe.version} ({self.probe.command[0]})"),
            ("device", f"the whole model on {names}" + (f", {how}" if len(self.gpus) > 1 else "")),
            ("context", f"{tokens} tokens for each slot: {why}"),
            ("slots", self._slots_text(shape)),
            ("cache", f"{self.cache_type}: " + ("asked for" if self.cache_type != "f16" else "the default")),
            ("threads", "1: the GPU does the work"),
        ]
        asked, trained = self.options.context_tokens, self.model.context_tokens
        if asked is not None and trained is not None and asked > trained:
            text = f"the context is {tokens} tokens, not the {asked} asked for: the model was trained for no more"
            reasons.append(("context_reduced", text))
        if self.draft is not None:
            reasons.append(("draft", f"{self.own.draft_tokens} tokens at a time are guessed by {self.draft}"))
        ignored = [
            name for name in ("batch_tokens", "mmap", "flash_attention") if getattr(self.options, name) is not None
        ]
        if ignored:
            reasons.append(("ignored", f"{', '.join(ignored)}: {self.flavour.name} has no such option"))
        if not (self.model.chat_template or self.options.chat_template):
            reasons.append(("template", "the model has no chat template: it completes text, and is refused for chat"))
        return reasons

    def _split_text(self) -> str:
        return ", ".join(f"{size:g} GB" for size in self.own.gpu_split)

    def _slots_text(self, shape: Shape) -> str:
        asked = self.options.slots
        if not self.can_page:
            instead = f" instead of the {asked} asked for" if asked is not None and asked > 1 else ""
            return f"1{instead}: without {self.flavour.pages_with} it takes one request at a time"
        if asked is not None:
            return f"{shape.slots}: asked for"
        if shape.slots == self.wish.slot_counts[0]:
            return f"{shape.slots}: the default, and memory allows it"
        return f"{shape.slots}: with more of them each would have too little context"


def _draft_folder(model: Model, own: ExllamaOptions) -> str | None:
    found = next((str(PurePath(file.path).parent) for file in model.files if file.role == "draft"), None)
    return own.draft_model or found


def _wish(model: Model, options: LoadOptions, *, can_page: bool) -> tuple[Wish, str]:
    """What to aim at, and why."""
    trained, asked = model.context_tokens, options.context_tokens
    slots = options.slots if can_page else 1
    if asked is not None:
        fixed = asked if trained is None else min(asked, trained)
        why = "asked for" if fixed == asked else "what the model was trained for"
        return Wish(fixed, slots, is_context_fixed=True), why
    if trained is None:
        return Wish(_UNKNOWN_CONTEXT_TOKENS, slots), "the model doesn't say what it was trained for"
    if trained <= MAX_CONTEXT_TOKENS:
        return Wish(trained, slots), "what the model was trained for"
    return Wish(MAX_CONTEXT_TOKENS, slots), f"no more is planned without being asked ({trained} would be possible)"


def _size(count: int) -> str:
    return f"{count / _GIB:.1f} GiB" if count >= _GIB else f"{count // _MIB} MiB"
