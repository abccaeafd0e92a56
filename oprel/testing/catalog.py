"""A catalog and a registry in memory, so that a scheduler stands in three lines:

catalog = ScriptedCatalog(scripted_model("tiny:latest"))
driver = ScriptedDriver(Script(text=("Hi", "!")))
scheduler = Scheduler(catalog=catalog, registry=ScriptedRegistry(driver), settings=Settings())
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from oprel.drivers import Driver
from oprel.errors import DriverUnavailableError, ModelNotFoundError
from oprel.schema import Hardware, Model, ModelFile
from oprel.store import ModelName, parse_reference

if TYPE_CHECKING:
    from oprel.store import GgufMetadata

__all__ = ["ScriptedCatalog", "ScriptedRegistry", "scripted_model"]

MIB = 1024 * 1024
_TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


def scripted_model(name: str = "scripted:latest", **changes: Any) -> Model:
    """A chat model of 100 MiB (an embedding model with `capabilities=frozenset({"embedding"})`), its digests made
    from its name; `changes` are fields of `schema.Model`."""
    digest = hashlib.sha256(name.encode()).hexdigest()
    is_embedding = "embedding" in changes.get("capabilities", ())
    model = Model(
        name=name,
        digest=digest,
        format="gguf",
        files=(ModelFile("weights", f"/models/blobs/sha256-{digest}", digest, 100 * MIB),),
        size_bytes=100 * MIB,
        modified_at=1_700_000_000.0,
        architecture="bert" if is_embedding else "llama",
        families=("bert",) if is_embedding else ("llama",),
        parameter_size="22M" if is_embedding else "135M",
        quantization="Q8_0",
        parameter_count=22_000_000 if is_embedding else 135_000_000,
        context_tokens=512 if is_embedding else 8192,
        embedding_length=384 if is_embedding else 576,
        layers=30,
        kv_bytes_per_token=1024,
        pooling="mean" if is_embedding else None,
        chat_template=None if is_embedding else _TEMPLATE,
        capabilities=frozenset({"completion"}),
    )
    return msgspec.structs.replace(model, **changes)


class ScriptedCatalog:
    """Keeps what `oprel.store.Catalog` promises, over the models given; the latest given is the newest."""

    def __init__(self, *models: Model, metadata: Mapping[str, GgufMetadata] | None = None) -> None:
        self.models = list(models)
        self._metadata = dict(metadata or {})

    def find(self, name: str, *, patterns: bool = True) -> Model:
        """It has no patterns."""
        wanted = _key(name)
        for model in self.models:
            if wanted in {_key(model.name), *map(_key, model.aliases)}:
                return model
        raise ModelNotFoundError(f"Model {name[:200]!r} isn't here; get it with: oprel pull {name[:200]}", model=name)

    def list(self, *, described: bool = True) -> tuple[Model, ...]:
        return tuple(reversed(self.models))

    def metadata(self, model: Model, *, full: bool = False) -> GgufMetadata:
        """What was given for the model's name; KeyError for a model without."""
        return self._metadata[model.name]

    def are_files_known(self, model: Model) -> bool:
        """There are none."""
        return True

    def check_files(self, model: Model, *, progress: Callable[[int], None] | None = None) -> None:
        """There are none."""

    def blob_path(self, digest: str) -> Path:
        return Path("/models/blobs") / f"sha256-{digest.removeprefix('sha256:')}"


def _key(name: str) -> object:
    """Names are the same by the store's own rules; InvalidNameError for what isn't one."""
    reference = parse_reference(name)
    return ModelName.parse(name).key if isinstance(reference, ModelName) else str(reference)


class ScriptedRegistry:
    """Keeps what the scheduler asks of `oprel.drivers.registry.Registry`, over the drivers given: the first one that
    supports the model. `machine` may be replaced: the next look at the hardware sees it."""

    def __init__(self, *drivers: Driver, hardware: Hardware | None = None) -> None:
        self.drivers = drivers
        self.machine = hardware or Hardware(
            system="Linux",
            machine="x86_64",
            cores=4,
            threads=8,
            ram_total_bytes=16 * 1024 * MIB,
            ram_available_bytes=12 * 1024 * MIB,
        )

    def hardware(self) -> Hardware:
        return self.machine

    def choose(self, model: Model, hardware: Hardware, wanted: str = "auto") -> tuple[Driver, str]:
        for candidate in self.drivers:
            support = candidate.supports(model)
            if wanted in ("auto", candidate.name) and support.supported:
                return candidate, support.reason
        raise DriverUnavailableError(f"no driver can run {model.name!r}", driver=None if wanted == "auto" else wanted)

    def others(self, model: Model, hardware: Hardware, chosen: str | None) -> tuple[tuple[str, str], ...]:
        others = (driver for driver in self.drivers if driver.name != chosen)
        return tuple((driver.name, driver.supports(model).reason) for driver in others)
