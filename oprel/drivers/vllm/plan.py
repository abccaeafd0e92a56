"""From a model, options and this machine to a plan, with a reason for each choice. Pure."""

from __future__ import annotations

import math

import msgspec

from oprel.drivers.vllm.launch import Launch, build_argv, build_environment
from oprel.drivers.vllm.memory import GIB, PROCESS_BYTES, Needs
from oprel.drivers.vllm.options import VllmOptions
from oprel.drivers.vllm.parsers import reasoning_parser, tool_parser
from oprel.drivers.vllm.probe import CPU_BUILD, DRIVER
from oprel.errors import InsufficientMemoryError, UnsupportedError
from oprel.schema import Device, EngineProbe, Hardware, LoadOptions, Model, Plan

__all__ = ["make_plan"]

MAX_CONTEXT_TOKENS = 32_768
_MAX_EMBEDDING_TOKENS = 8192
_UNKNOWN_CONTEXT_TOKENS = 4096
_LEAST_CONTEXT_TOKENS = 512
_STEP = 256

# The cache is paged, so that slots cost nothing until they are used.
_CPU_SLOTS = 16
_GPU_SLOTS = 128
_MAX_SLOTS = 4096
# How many whole contexts a cache in RAM is made for.
_WHOLE_CONTEXTS = 4
_RAM_RESERVE_BYTES = GIB // 2
_GPU_SHARE = 0.9
# What others on the GPU may take while the engine starts.
_GPU_MARGIN_BYTES = GIB // 2


def make_plan(model: Model, load: LoadOptions, options: VllmOptions, hardware: Hardware, probe: EngineProbe) -> Plan:
    """The plan on `probe`'s vLLM. Raises UnsupportedError for options that can't be honoured and
    InsufficientMemoryError where even the least doesn't fit."""
    _check(load)
    planner = _Planner(model, load, options, hardware, probe)
    plan = planner.plan()
    return msgspec.structs.replace(plan, fallbacks=planner.smaller(plan))


def _check(load: LoadOptions) -> None:
    for name, low, high in (
        ("context_tokens", 1, 1 << 30),
        ("slots", 1, _MAX_SLOTS),
        ("threads", 1, 4096),
        ("batch_tokens", 1, 1 << 20),
        ("main_gpu", 0, 255),
    ):
        value = getattr(load, name)
        if value is not None and not low <= value <= high:
            raise _refused(name, f"must be from {low} to {high}, not {value}")
    if load.kv_cache_type not in (None, "f16"):
        raise _refused("kv_cache_type", f"{load.kv_cache_type} isn't known to vLLM: set kv_cache_dtype in [vllm]")
    if load.chat_template is not None and not _is_template_text(load.chat_template):
        raise _refused("chat_template", "must be a Jinja template: vLLM knows none by name")


def _is_template_text(template: str) -> bool:
    return "{{" in template or "{%" in template


class _Planner:
    """What the plans for one model share."""

    def __init__(
        self, model: Model, load: LoadOptions, options: VllmOptions, hardware: Hardware, probe: EngineProbe
    ) -> None:
        self.model = model
        self.load = load
        self.options = options
        self.hardware = hardware
        self.probe = probe
        self.is_cpu = CPU_BUILD in probe.flags
        self.dtype, self.dtype_reason = self._dtype()
        self.needs = Needs.of(model, options, dtype=self.dtype)
        self.most_tokens, self.is_fixed, self.context_reason = self._wish()
        self.slots, self.slots_reason = self._slots()
        self.template = load.chat_template or model.chat_template

    def plan(self) -> Plan:
        return self._on_cpu(self.most_tokens) if self.is_cpu else self._on_gpu(self.most_tokens)

    def smaller(self, first: Plan) -> tuple[Plan, ...]:
        """What to try when memory runs out: half of the context, unless that was asked for, and no CUDA graphs."""
        half = first.context_tokens // 2
        if self.is_fixed or half < _LEAST_CONTEXT_TOKENS:
            return ()
        rung = self._on_cpu(half) if self.is_cpu else self._on_gpu(half, is_eager=True)
        why = ("fallback", "with half the context, should memory run out")
        return (msgspec.structs.replace(rung, reasons=(*rung.reasons, why)),)

    # -- where it runs

    def _on_cpu(self, most_tokens: int) -> Plan:
        budget = self.hardware.ram_available_bytes - min(_RAM_RESERVE_BYTES, self.hardware.ram_total_bytes // 20)
        left = budget - PROCESS_BYTES - self.needs.weights_bytes
        context, cache_gib = self._cpu_cache(left, most_tokens)
        threads = self.load.threads
        asked = None if threads is None else min(threads, self.hardware.threads)
        is_eager = True if self.options.enforce_eager is None else self.options.enforce_eager
        launch = self._launch(context, is_eager, cpu_cache_gib=cache_gib, threads=asked)
        cache = cache_gib * GIB if self.needs.kv_bytes_per_token else 0
        reasons = (
            ("device", "on the CPU: this vLLM is built for it"),
            *self._context_reasons(context),
            ("cache", f"{cache_gib} GiB for {self.needs.tokens_in(cache_gib * GIB)} tokens of all requests together")
            if cache
            else ("cache", "none is needed: the model reads each text as a whole"),
            self._threads_reason(asked),
            ("compiling", "off: it takes a minute at every start") if is_eager else ("compiling", "on: asked for"),
        )
        return self._plan(
            launch,
            bytes_by_device=(("cpu", PROCESS_BYTES + self.needs.weights_bytes + cache),),
            threads=asked or max(1, self.hardware.cores - 1),
            device="cpu",
            reasons=reasons,
        )

    def _cpu_cache(self, left: int, most_tokens: int) -> tuple[int, int]:
        """(context, GiB of cache): whole GiB is all that vLLM takes."""
        asked = self.options.kv_cache_gib
        room = asked if asked is not None else max(0, left) // GIB
        context = min(most_tokens, self.needs.tokens_in(room * GIB))
        if context < most_tokens:
            context -= context % _STEP
        least = most_tokens if self.is_fixed else min(most_tokens, _LEAST_CONTEXT_TOKENS)
        if room < 1 or context < least:
            raise self._too_little(least, left)
        if asked is not None:
            return context, asked
        whole = math.ceil(self.needs.cache_bytes(context) / GIB)
        wanted = math.ceil(self.needs.cache_bytes(context * min(self.slots, _WHOLE_CONTEXTS)) / GIB)
        return context, max(1, whole, min(wanted, room // 2))

    def _on_gpu(self, most_tokens: int, *, is_eager: bool | None = None) -> Plan:
        gpus = self._gpus()
        share, share_reason = self._share(gpus)
        context = self._gpu_context(gpus, share, most_tokens)
        chosen = self.options.enforce_eager if is_eager is None else is_eager
        is_every = len(gpus) == len(self.probe.devices)
        launch = self._launch(
            context,
            bool(chosen),
            gpu_share=share,
            gpus=None if is_every else tuple(_index(device) for device in gpus),
        )
        names = ", ".join(f"{device.id} ({device.name})" for device in gpus)
        elsewhere = ", and on other machines" if self.options.is_over_machines else ""
        reasons = (
            ("device", f"all layers on {names}{elsewhere}"),
            ("memory", share_reason),
            *self._context_reasons(context),
        )
        held = tuple((device.id, int(share * device.total_bytes)) for device in gpus)
        return self._plan(
            launch, bytes_by_device=(("cpu", PROCESS_BYTES), *held), threads=1, device="gpu", reasons=reasons
        )

    def _gpus(self) -> tuple[Device, ...]:
        devices = self.probe.devices
        if self.load.gpu_layers is not None and self.load.gpu_layers < (self.model.layers or 0):
            raise _refused(
                "gpu_layers", "must be all of them: vLLM splits no model with the CPU (cpu_offload_gib in [vllm] can)"
            )
        needed = self.options.local_gpus
        if self.options.is_over_machines:
            return devices[: min(needed, len(devices))]
        main = self.load.main_gpu
        if main is not None:
            chosen = tuple(device for device in devices if _index(device) == main)
            if not chosen or needed > 1:
                raise _refused("main_gpu", f"must be one of {len(devices)} GPUs, for a model on one of them")
            return chosen
        if needed > len(devices):
            raise _refused(
                "tensor_parallel",
                f"and its like ask for {needed} GPUs, and this machine has {len(devices)}: other machines take part by "
                'executor = "ray", nodes or data_parallel_local in [vllm]',
            )
        # Those with the most room first; one model's parts lie on equal ones.
        roomiest = sorted(devices, key=lambda device: -device.free_bytes)[:needed]
        return tuple(device for device in devices if device in roomiest)

    def _share(self, gpus: tuple[Device, ...]) -> tuple[float, str]:
        if self.options.gpu_memory_share is not None:
            return self.options.gpu_memory_share, f"{self.options.gpu_memory_share:.0%} of each GPU: asked for"
        free = min((gpu.free_bytes - _GPU_MARGIN_BYTES) / gpu.total_bytes for gpu in gpus)
        share = max(0.01, min(_GPU_SHARE, math.floor(free * 100) / 100))
        why = "the default" if share == _GPU_SHARE else "what is free"
        return share, f"{share:.0%} of each GPU: {why}; what the model leaves is cache"

    def _gpu_context(self, gpus: tuple[Device, ...], share: float, most_tokens: int) -> int:
        ranks = self.options.ranks
        offload = int((self.options.cpu_offload_gib or 0) * GIB)
        room = min(int(share * gpu.total_bytes) for gpu in gpus) - self.needs.on_each_gpu(ranks, offload_bytes=offload)
        context = min(most_tokens, self.needs.tokens_in(room * ranks))
        if context < most_tokens:
            context -= context % _STEP
        least = most_tokens if self.is_fixed else min(most_tokens, _LEAST_CONTEXT_TOKENS)
        if context < least:
            raise self._too_little(least, room * ranks)
        return context

    def _too_little(self, least: int, left: int) -> InsufficientMemoryError:
        where = "RAM" if self.is_cpu else "the GPUs"
        needed = self.needs.weights_bytes + max(self.needs.cache_bytes(least), GIB if self.is_cpu else 0)
        needed += PROCESS_BYTES if self.is_cpu else 0
        available = max(0, left + self.needs.weights_bytes + (PROCESS_BYTES if self.is_cpu else 0))
        return InsufficientMemoryError(
            f"{self.model.name!r} needs {needed / GIB:.1f} GiB on vLLM with {least} tokens of context, and {where} can "
            f"give {available / GIB:.1f} GiB: unload other models, or take a smaller model, quantization or context.",
            needed_bytes=needed,
            available_bytes=available,
        )

    # -- what is chosen

    def _dtype(self) -> tuple[str, tuple[tuple[str, str], ...]]:
        if self.options.dtype is not None:
            return self.options.dtype, (("dtype", f"{self.options.dtype}: asked for"),)
        if self.is_cpu and self.model.is_embedding and self.model.quantization == "F32":
            return "float32", (("dtype", "float32, as in the file: halving it would change the vectors"),)
        return "auto", ()

    def _wish(self) -> tuple[int, bool, str]:
        """(tokens to aim at, whether they were asked for, why)."""
        trained = self.model.context_tokens
        asked = self.load.context_tokens if self.load.context_tokens is not None else self.options.max_length
        if asked is not None:
            fixed = asked if trained is None else min(asked, trained)
            return fixed, True, "asked for" if fixed == asked else "what the model was trained for"
        if trained is None:
            return _UNKNOWN_CONTEXT_TOKENS, False, "the model doesn't say what it was trained for"
        limit = _MAX_EMBEDDING_TOKENS if self.model.is_embedding else MAX_CONTEXT_TOKENS
        if trained <= limit:
            return trained, False, "what the model was trained for"
        return limit, False, f"no more is planned without being asked ({trained} would be possible)"

    def _slots(self) -> tuple[int, tuple[str, str]]:
        if self.load.slots is not None:
            return self.load.slots, ("slots", f"{self.load.slots}: asked for")
        if self.options.max_requests is not None:
            return self.options.max_requests, ("slots", f"{self.options.max_requests}: max_requests in [vllm]")
        slots = _CPU_SLOTS if self.is_cpu else _GPU_SLOTS
        return slots, ("slots", f"{slots}: the default; they share one cache, and wait in turn when it is full")

    def _context_reasons(self, context: int) -> tuple[tuple[str, str], ...]:
        why = self.context_reason if context == self.most_tokens else f"memory has no room for {self.most_tokens}"
        reason = ("context", f"{context} tokens for each request: {why}")
        asked, trained = self.load.context_tokens, self.model.context_tokens
        if asked is None or trained is None or asked <= trained:
            return (reason,)
        text = f"the context is {context} tokens, not the {asked} asked for: the model was trained for no more"
        return (reason, ("context_reduced", text))

    def _threads_reason(self, asked: int | None) -> tuple[str, str]:
        if asked is not None:
            return ("threads", f"{asked}: asked for, or what other engines leave")
        return ("threads", "one for each core but one, which vLLM keeps for its server, bound to them")

    # -- the plan

    def _launch(
        self,
        context: int,
        is_eager: bool,
        *,
        gpu_share: float | None = None,
        gpus: tuple[int, ...] | None = None,
        cpu_cache_gib: int | None = None,
        threads: int | None = None,
    ) -> Launch:
        template = "" if self.model.is_embedding else self.template or ""
        return Launch(
            context_tokens=context,
            slots=self.slots,
            dtype=self.dtype,
            is_eager=is_eager,
            tool_parser=(self.options.tool_parser or tool_parser(template)) if template else None,
            reasoning_parser=(self.options.reasoning_parser or reasoning_parser(template)) if template else None,
            gpu_share=gpu_share,
            gpus=gpus,
            cpu_cache_gib=cpu_cache_gib,
            threads=threads,
        )

    def _plan(
        self,
        launch: Launch,
        *,
        bytes_by_device: tuple[tuple[str, int], ...],
        threads: int,
        device: str,
        reasons: tuple[tuple[str, str], ...],
    ) -> Plan:
        on_gpu = device == "gpu"
        return Plan(
            driver=DRIVER,
            engine=f"{self.probe.engine} {self.probe.version}",
            model=self.model.name,
            model_digest=self.model.digest,
            files=self.model.files,
            options=self.load,
            gpu_layers=(self.model.layers or 0) if on_gpu else 0,
            layers=self.model.layers,
            bytes_by_device=bytes_by_device,
            context_tokens=launch.context_tokens,
            slots=self.slots,
            threads=threads,
            argv=build_argv(self.probe, self.model, self.load, self.options, launch),
            environment=build_environment(self.options, launch),
            device=device,
            embedding=self.model.is_embedding,
            chat=not self.model.is_embedding and self.template is not None,
            reasons=(
                ("engine", f"{self.probe.engine} {self.probe.version} ({self.probe.command[0]})"),
                *reasons,
                self.slots_reason,
                *self.dtype_reason,
                *self._parser_reasons(launch),
                *self._other_machines(),
            ),
        )

    def _parser_reasons(self, launch: Launch) -> tuple[tuple[str, str], ...]:
        if self.model.is_embedding:
            return ()
        if self.template is None:
            return (("template", "the model has no chat template: it completes text, and is refused for chat"),)
        found: list[tuple[str, str]] = []
        if launch.tool_parser is not None:
            how = "asked for" if self.options.tool_parser else "by the marks in its chat template"
            found.append(("tools", f"calls are read by vLLM's parser {launch.tool_parser!r}: {how}"))
        elif "tools" in self.template:
            found.append(("tools", "none: its way to call them isn't known; tool_parser in [vllm] can name it"))
        if launch.reasoning_parser is not None:
            how = "asked for" if self.options.reasoning_parser else "by the marks in its chat template"
            found.append(("thinking", f"read by vLLM's parser {launch.reasoning_parser!r}: {how}"))
        return tuple(found)

    def _other_machines(self) -> tuple[tuple[str, str], ...]:
        options = self.options
        if not options.is_over_machines:
            return ()
        if "ray" in (options.executor, options.data_parallel_backend):
            where = options.ray_address or "the one that this machine belongs to"
            return (("machines", f"those of a Ray cluster ({where}), which must be there before"),)
        return (("machines", "the others run the same vLLM command with ranks of their own, without a server"),)


def _index(device: Device) -> int:
    return int(device.id.removeprefix("CUDA"))


def _refused(name: str, why: str) -> UnsupportedError:
    return UnsupportedError(f"{name} {why}.", capability=name, driver=DRIVER, param=name)
