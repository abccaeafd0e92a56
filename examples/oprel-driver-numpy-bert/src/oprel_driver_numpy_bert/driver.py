"""What can be used, what it would take, and how an engine comes up."""

from __future__ import annotations

import asyncio
from importlib.util import find_spec
from pathlib import Path

from oprel.drivers import Driver, Engine, EngineStartError, UnsupportedError
from oprel.schema import Availability, Capabilities, Hardware, LoadOptions, Model, Plan, Support

__all__ = ["NumpyBertDriver"]

# Weights are unpacked to 32-bit floats; beside them, the vocabulary and what one text needs while it is worked on.
_BYTES_PER_WEIGHT = 4
_SPARE_BYTES = 64 * 1024 * 1024
_TRAINED_TOKENS = 512


class NumpyBertDriver(Driver):
    name = "numpy_bert"
    can = Capabilities(embed=True, tokenize=True)

    def availability(self, hardware: Hardware) -> Availability:
        missing = [name for name in ("numpy", "gguf") if find_spec(name) is None]
        if missing:
            return Availability(usable=False, reason=f"it needs {' and '.join(missing)}: pip install numpy gguf")
        return Availability(usable=True, reason="NumPy, on the CPU")

    def supports(self, model: Model) -> Support:
        if model.format != "gguf":
            return Support(supported=False, reason=f"it reads GGUF files, and this model's format is {model.format!r}")
        if model.architecture != "bert":
            return Support(supported=False, reason=f"it knows BERT only, and this model is of {model.architecture!r}")
        if model.pooling not in ("mean", "cls"):
            return Support(supported=False, reason=f"it doesn't know the pooling {model.pooling!r}")
        return Support(supported=True, reason="it is a BERT in a GGUF file")

    def plan(self, model: Model, options: LoadOptions, hardware: Hardware) -> Plan:
        support = self.supports(model)
        if not support.supported:
            raise UnsupportedError(
                f"{model.name!r} can't run on {self.name}: {support.reason}",
                capability="format",
                model=model.name,
                driver=self.name,
            )
        trained = model.context_tokens or _TRAINED_TOKENS
        context = min(options.context_tokens or trained, trained)
        weights = (model.parameter_count or model.size_bytes) * _BYTES_PER_WEIGHT
        return Plan(
            driver=self.name,
            engine="NumPy",
            model=model.name,
            model_digest=model.digest,
            files=model.files,
            options=options,
            gpu_layers=0,
            layers=model.layers,
            bytes_by_device=(("cpu", weights + _SPARE_BYTES),),
            context_tokens=context,
            slots=options.slots or 2,
            threads=options.threads or hardware.cores,
            argv=(),
            device="cpu",
            embedding=True,
            reasons=(
                ("device", "the CPU: NumPy knows no other"),
                ("context", f"{context} tokens: a BERT has no positions for more than {trained}"),
                ("slots", f"{options.slots or 2}: one text is worked on while the next one is read"),
            ),
        )

    async def start(self, plan: Plan) -> Engine:
        # Here, and no sooner: these imports take a while.
        from oprel_driver_numpy_bert.engine import NumpyBertEngine
        from oprel_driver_numpy_bert.files import read_model

        path = Path(next(file.path for file in plan.files if file.role == "weights"))
        try:
            bert, words = await asyncio.to_thread(read_model, path)
        except Exception as error:  # a file may be wrong in any way
            raise EngineStartError(
                f"{plan.model!r} can't be read: {type(error).__name__}: {error}",
                driver=self.name,
                cause="memory" if isinstance(error, MemoryError) else "model",
            ) from error
        return NumpyBertEngine(plan, bert, words)
