"""From a model, options and this machine to a plan, with a reason for each choice. Pure."""

from __future__ import annotations

from typing import NoReturn

import msgspec

from oprel.drivers.llama_cpp.estimate import CACHE_TYPES, Estimate
from oprel.drivers.llama_cpp.launch import Launch, build_argv
from oprel.drivers.llama_cpp.probe import DRIVER, LLAMA_SERVER
from oprel.drivers.llama_cpp.shape import DEFAULT_SLOTS, MAX_CONTEXT_TOKENS, Shape, Wish, best_shape
from oprel.errors import InsufficientMemoryError, UnsupportedError
from oprel.schema import Device, EngineProbe, Hardware, LoadOptions, Model, Plan, Pooling

__all__ = ["make_plan"]

_MIB = 1024 * 1024
_GIB = 1024 * _MIB

# A client that leaves while its prompt is read waits for the running batch: short ones on a slow processor.
_CPU_BATCH_TOKENS = 512
_GPU_BATCH_TOKENS = 2048
_MICRO_BATCH_TOKENS = 512
# Embedding reads each input as one batch, whose scratch grows with it.
_MAX_EMBEDDING_TOKENS = 8192
# What the engine's own fit leaves free on each GPU.
_GPU_MARGIN_BYTES = _GIB
_RAM_RESERVE_BYTES = 512 * _MIB
_MAX_SLOTS = 256
# For a model that does not say what it was trained for.
_UNKNOWN_CONTEXT_TOKENS = 4096
_GPU_INSTALL = {
    "nvidia": "pip install xllamacpp --force-reinstall --index-url https://xorbitsai.github.io/xllamacpp/whl/cu128",
    "amd": "pip install xllamacpp --force-reinstall --index-url https://xorbitsai.github.io/xllamacpp/whl/rocm-6.4.1",
}
_GPU_INSTALL_ANY = (
    "pip install xllamacpp --force-reinstall --index-url https://xorbitsai.github.io/xllamacpp/whl/vulkan"
)


def make_plan(model: Model, options: LoadOptions, hardware: Hardware, probe: EngineProbe) -> Plan:
    """The plan on `probe`'s engine. Raises UnsupportedError for options that can't be honoured and
    InsufficientMemoryError where even the smallest plan doesn't fit."""
    _check(options, probe)
    planner = _Planner(model, options, hardware, probe)
    on_gpu = planner.gpu_plan() if planner.wants_gpu else None
    if on_gpu is None:
        on_cpu = planner.cpu_plan() or planner.refuse()
        return msgspec.structs.replace(on_cpu, fallbacks=planner.smaller(on_cpu))
    return msgspec.structs.replace(on_gpu, fallbacks=planner.ladder(on_gpu))


def _check(options: LoadOptions, probe: EngineProbe) -> None:
    def refuse(name: str, why: str) -> UnsupportedError:
        return UnsupportedError(f"{name} {why}.", capability=name, driver=DRIVER, param=name)

    for name, low, high in (
        ("context_tokens", 1, 1 << 30),
        ("slots", 1, _MAX_SLOTS),
        ("threads", 1, 4096),
        ("batch_tokens", 1, 1 << 20),
        ("main_gpu", 0, 255),
    ):
        value = getattr(options, name)
        if value is not None and not low <= value <= high:
            raise refuse(name, f"must be from {low} to {high}, not {value}")
    count = len(_own_devices(probe.devices))
    if options.main_gpu is not None and 0 < count <= options.main_gpu:
        raise refuse("main_gpu", f"must be below {count}, the number of GPUs that the engine lists")
    kind = options.kv_cache_type
    if kind is not None and kind not in CACHE_TYPES:
        raise refuse("kv_cache_type", f"must be one of {', '.join(CACHE_TYPES)}, not {kind!r}")
    if options.flash_attention is False and kind not in (None, "f16"):
        raise refuse("kv_cache_type", f"{kind} needs flash attention, which is switched off")


class _Planner:
    """What the plans of one ladder share."""

    def __init__(self, model: Model, options: LoadOptions, hardware: Hardware, probe: EngineProbe) -> None:
        self.model = model
        self.options = options
        self.hardware = hardware
        self.probe = probe
        self.estimate = Estimate.of(model, options)
        self.devices = _own_devices(probe.devices)
        if options.main_gpu is not None:
            self.devices = self.devices[options.main_gpu : options.main_gpu + 1]
        self.is_shared_memory = bool(self.devices) and (
            hardware.system == "Darwin" or all(device.integrated for device in self.devices)
        )
        self.gpu_budget = sum(max(0, device.free_bytes - _GPU_MARGIN_BYTES) for device in self.devices)
        self.ram_budget = _ram_budget(hardware)
        self.wish, self.context_reason = _wish(model, options)

    @property
    def wants_gpu(self) -> bool:
        return bool(self.devices) and self.options.gpu_layers != 0

    def cpu_plan(self, wish: Wish | None = None) -> Plan | None:
        return self._fixed_plan(0, wish or self.wish)

    def gpu_plan(self) -> Plan | None:
        """All layers, or as many as fit; None: no layer fits."""
        everything = self.estimate.layers
        asked = self.options.gpu_layers
        if asked is not None and asked > 0:
            layers = min(asked, everything)
            chosen = best_shape(self.wish, lambda shape: self._fits(layers, shape)) or self.wish.least
            return self._plan(layers, layers, chosen)
        shape = best_shape(self.wish, lambda shape: self._fits(everything, shape))
        good = self.wish.good_tokens
        if shape is not None and shape.context_tokens >= good:
            return self._plan(everything, "fit", shape)
        return self._partial_plan(good)

    def ladder(self, first: Plan) -> tuple[Plan, ...]:
        """What to try when the GPU fails: half of the layers, then none. The context never grows on the way, or the
        cache would take the room that the layers left."""
        wish = Wish(first.context_tokens, first.slots, is_context_fixed=self.wish.is_context_fixed)
        half = self._layers_of(first) // 2
        rungs = (self._fixed_plan(half, wish) if half > 0 else None, self.cpu_plan(wish))
        return tuple(
            _with_reason(rung, "fallback", self._why_fallback(first, rung)) for rung in rungs if rung is not None
        )

    def smaller(self, first: Plan) -> tuple[Plan, ...]:
        """What to try when memory runs out, for metadata says little of some models: half of the context, unless
        that was asked for."""
        half = first.context_tokens // 2
        if self.wish.is_context_fixed or half < self.wish.least.context_tokens:
            return ()
        rung = self.cpu_plan(Wish(half, first.slots))
        return () if rung is None else (_with_reason(rung, "fallback", "with half the context, should memory run out"),)

    def refuse(self) -> NoReturn:
        least = self.wish.least
        needed = self._on_cpu(0, least)
        asked = "" if self.options.context_tokens is None else f" with the {least.tokens} tokens of context asked for"
        raise InsufficientMemoryError(
            f"{self.model.name!r} needs at least {_size(needed)}{asked}, and {_size(self.ram_budget)} can be used: "
            "unload other models, or take a smaller model, quantization or context.",
            needed_bytes=needed,
            available_bytes=self.ram_budget,
        )

    def _fixed_plan(self, gpu_layers: int, wish: Wish) -> Plan | None:
        """Exactly that many layers on the GPU; None: not even the least context fits beside them."""
        shape = best_shape(wish, lambda shape: self._fits(gpu_layers, shape))
        return self._plan(gpu_layers, gpu_layers, shape) if shape is not None else None

    def _partial_plan(self, good: int) -> Plan | None:
        """The most layers that leave one request a good context, then as many slots as still fit."""
        one = Shape(self.wish.slot_counts[-1], good)
        fitting = [layers for layers in range(1, self.estimate.layers) if self._fits(layers, one)]
        if not fitting:
            return None
        layers = fitting[-1]
        shape = best_shape(self.wish, lambda shape: self._fits(layers, shape)) or one
        return self._plan(layers, "fit", shape)

    def _fits(self, gpu_layers: int, shape: Shape) -> bool:
        on_gpu, on_cpu = self._on_gpu(gpu_layers, shape), self._on_cpu(gpu_layers, shape)
        if self.is_shared_memory and on_gpu + on_cpu > self.ram_budget:
            return False
        return on_gpu <= self.gpu_budget and on_cpu <= self.ram_budget

    def _on_gpu(self, gpu_layers: int, shape: Shape) -> int:
        return self.estimate.on_gpu(gpu_layers, tokens=shape.tokens, batch_tokens=self._batch(gpu_layers, shape)[1])

    def _on_cpu(self, gpu_layers: int, shape: Shape) -> int:
        return self.estimate.on_cpu(gpu_layers, tokens=shape.tokens, batch_tokens=self._batch(gpu_layers, shape)[1])

    def _batch(self, gpu_layers: int, shape: Shape) -> tuple[int, int]:
        """(logical, physical) batch."""
        if self.model.is_embedding:
            return shape.context_tokens, shape.context_tokens
        batch = self.options.batch_tokens or (_GPU_BATCH_TOKENS if gpu_layers > 0 else _CPU_BATCH_TOKENS)
        return batch, min(batch, _MICRO_BATCH_TOKENS)

    def _plan(self, estimated_layers: int, gpu_layers: int | str, shape: Shape) -> Plan:
        if gpu_layers == "fit" and "--fit" not in self.probe.flags:
            gpu_layers = estimated_layers
        batch, micro_batch = self._batch(estimated_layers, shape)
        pooling, pooling_reason = _pooling(self.model)
        threads, threads_reason = _threads(self.options, self.hardware)
        launch = Launch(
            shape=shape,
            gpu_layers=gpu_layers,
            threads=threads,
            batch_tokens=batch,
            micro_batch_tokens=micro_batch,
            cache_ram_mib=self._cache_ram_mib(estimated_layers, shape),
            pooling=pooling,
            devices=tuple(device.id for device in _own_devices(self.probe.devices)),
            is_every_device=not any(device.integrated for device in self.probe.devices),
        )
        reasons = (
            ("engine", _engine_reason(self.probe)),
            *self._device_reasons(estimated_layers, gpu_layers),
            *self._context_reasons(shape),
            self._slots_reason(shape),
            threads_reason,
            *pooling_reason,
            *self._template_reasons(),
        )
        return Plan(
            driver=DRIVER,
            engine=self._engine_name(),
            model=self.model.name,
            model_digest=self.model.digest,
            files=self.model.files,
            options=self.options,
            gpu_layers=gpu_layers,
            layers=self.estimate.layers if self.model.layers else None,
            bytes_by_device=self._bytes_by_device(estimated_layers, shape),
            context_tokens=shape.context_tokens,
            slots=shape.slots,
            threads=threads,
            argv=build_argv(self.probe, self.model, self.options, launch),
            environment=self._environment(estimated_layers),
            device=self._device_word(estimated_layers),
            embedding=self.model.is_embedding,
            chat=self._can_chat(),
            reasons=reasons,
        )

    def _layers_of(self, plan: Plan) -> int:
        """How many layers the estimate put on the GPU, where the number is left to the engine."""
        if isinstance(plan.gpu_layers, int):
            return plan.gpu_layers
        shape = Shape(plan.slots, plan.context_tokens)
        fitting = [n for n in range(1, self.estimate.layers + 1) if self._fits(n, shape)]
        return fitting[-1] if fitting else 0

    def _bytes_by_device(self, gpu_layers: int, shape: Shape) -> tuple[tuple[str, int], ...]:
        on_cpu, on_gpu = self._on_cpu(gpu_layers, shape), self._on_gpu(gpu_layers, shape)
        free = sum(device.free_bytes for device in self.devices)
        parts = [(device.id, on_gpu * device.free_bytes // free) for device in self.devices] if on_gpu and free else []
        return (("cpu", on_cpu), *((name, size) for name, size in parts if size))

    def _cache_ram_mib(self, gpu_layers: int, shape: Shape) -> int:
        """The engine's prompt cache in RAM (8 GiB if it had its way): an eighth of what is left, modestly."""
        if self.model.is_embedding:
            return 0
        left = self.ram_budget - self._on_cpu(gpu_layers, shape)
        return max(0, min(512, left // (8 * _MIB)))

    def _environment(self, gpu_layers: int) -> tuple[tuple[str, str], ...]:
        """Without a layer on it a GPU would still give some hundred MiB to its driver's context."""
        if gpu_layers > 0 or not self.probe.devices:
            return ()
        return (("CUDA_VISIBLE_DEVICES", ""), ("HIP_VISIBLE_DEVICES", ""), ("GGML_DISABLE_VULKAN", "1"))

    def _device_word(self, gpu_layers: int) -> str:
        if gpu_layers <= 0:
            return "cpu"
        return "gpu" if gpu_layers >= self.estimate.layers else "gpu+cpu"

    def _engine_name(self) -> str:
        return f"{self.probe.engine} {self.probe.version}".strip()

    def _can_chat(self) -> bool:
        return not self.model.is_embedding and bool(self.model.chat_template or self.options.chat_template)

    def _device_reasons(self, layers: int, gpu_layers: int | str) -> tuple[tuple[str, str], ...]:
        unused = _unused_gpu(self.hardware, self.probe)
        if unused is not None:
            return (("device", "on the CPU: the engine lists no GPU"), ("gpu_unused", unused))
        if not self.devices:
            return (("device", "on the CPU: there is no GPU"),)
        names = ", ".join(f"{device.id} ({device.name})" for device in self.devices)
        if layers <= 0:
            asked = self.options.gpu_layers == 0
            return (("device", "on the CPU: asked for" if asked else f"on the CPU: no layer fits on {names}"),)
        whole = layers >= self.estimate.layers
        extent = f"all {self.estimate.layers} layers" if whole else f"{layers} of {self.estimate.layers} layers"
        how = ", in the end as many as the engine finds room for" if gpu_layers == "fit" else ""
        return (("device", f"{extent} on {names}{how}"),)

    def _context_reasons(self, shape: Shape) -> tuple[tuple[str, str], ...]:
        tokens, most = shape.context_tokens, self.wish.most_tokens
        why = self.context_reason if tokens == most else f"memory has no room for {most}"
        reason = ("context", f"{tokens} tokens for each slot: {why}")
        asked, trained = self.options.context_tokens, self.model.context_tokens
        if asked is None or trained is None or asked <= trained:
            return (reason,)
        text = f"the context is {tokens} tokens, not the {asked} asked for: the model was trained for no more"
        return (reason, ("context_reduced", text))

    def _slots_reason(self, shape: Shape) -> tuple[str, str]:
        if self.options.slots is not None:
            return ("slots", f"{shape.slots}: asked for")
        if shape.slots == DEFAULT_SLOTS:
            return ("slots", f"{shape.slots}: the default, and memory allows it")
        return ("slots", f"{shape.slots}: with more of them each would have too little context")

    def _template_reasons(self) -> tuple[tuple[str, str], ...]:
        if self.model.is_embedding or self._can_chat():
            return ()
        return (("template", "the model has no chat template: it completes text, and is refused for chat"),)

    def _why_fallback(self, first: Plan, rung: Plan) -> str:
        tried = "all layers" if first.device == "gpu" else f"{self._layers_of(first)} layers"
        now = "on the CPU alone" if rung.device == "cpu" else f"with {rung.gpu_layers} of {self.estimate.layers} layers"
        return f"{now}, should the GPU fail with {tried}"


def _own_devices(devices: tuple[Device, ...]) -> tuple[Device, ...]:
    """GPUs with memory of their own; where there is none, those that share the machine's."""
    return tuple(device for device in devices if not device.integrated) or devices


def _ram_budget(hardware: Hardware) -> int:
    reserve = min(_RAM_RESERVE_BYTES, hardware.ram_total_bytes // 20)
    return max(0, hardware.ram_available_bytes - reserve)


def _wish(model: Model, options: LoadOptions) -> tuple[Wish, str]:
    """What to aim at, and why."""
    trained = model.context_tokens
    asked = options.context_tokens
    if asked is not None:
        fixed = asked if trained is None else min(asked, trained)
        why = "asked for" if fixed == asked else "what the model was trained for"
        return Wish(fixed, options.slots, is_context_fixed=True), why
    if trained is None:
        return Wish(_UNKNOWN_CONTEXT_TOKENS, options.slots), "the model doesn't say what it was trained for"
    limit = _MAX_EMBEDDING_TOKENS if model.is_embedding else MAX_CONTEXT_TOKENS
    if trained <= limit:
        return Wish(trained, options.slots), "what the model was trained for"
    return Wish(limit, options.slots), f"no more is planned without being asked ({trained} would be possible)"


def _threads(options: LoadOptions, hardware: Hardware) -> tuple[int, tuple[str, str]]:
    """Workers spin at barriers: one more than there are cores, and all of them crawl."""
    asked = options.threads
    if asked is None:
        return hardware.cores, ("threads", f"{hardware.cores}: one for each core")
    if asked > hardware.threads:
        return hardware.threads, ("threads", f"{hardware.threads} instead of the {asked} asked for: there are no more")
    return asked, ("threads", f"{asked}: asked for")


def _pooling(model: Model) -> tuple[Pooling | None, tuple[tuple[str, str], ...]]:
    if not model.is_embedding:
        return None, ()
    if model.pooling in (None, "none"):
        return "mean", (("pooling", "mean: the file names none, and one vector for each input needs one"),)
    return model.pooling, (("pooling", f"{model.pooling}: as the file says"),)


def _unused_gpu(hardware: Hardware, probe: EngineProbe) -> str | None:
    """A sentence where the machine has a GPU that this engine can't see."""
    if not hardware.gpus or probe.devices:
        return None
    gpu = hardware.gpus[0]
    install = _GPU_INSTALL.get(gpu.vendor, _GPU_INSTALL_ANY)
    return (
        f"{gpu.name} is not used, because {_engine_reason(probe)} was built without support for it: "
        f"put a llama-server that has it on PATH, or run: {install}"
    )


def _engine_reason(probe: EngineProbe) -> str:
    name = f"{probe.engine} {probe.version}".strip()
    return f"{name} ({probe.command[0]})" if probe.engine == LLAMA_SERVER else f"{name} (bundled)"


def _with_reason(plan: Plan, subject: str, text: str) -> Plan:
    return msgspec.structs.replace(plan, reasons=(*plan.reasons, (subject, text)))


def _size(count: int) -> str:
    return f"{count / _GIB:.1f} GiB" if count >= _GIB else f"{count // _MIB} MiB"
