"""The drivers of this installation: listed without being imported, imported when chosen, never lost in silence."""

from __future__ import annotations

import importlib.metadata
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec

from oprel.drivers.calls import Hung, Raised, bounded, described
from oprel.drivers.contract import CONTRACT_VERSION, Driver, DriverOptions
from oprel.errors import ConfigError, DriverUnavailableError, InvalidNameError, UnsupportedError
from oprel.hardware import detect_hardware, with_free_memory
from oprel.schema import Availability, Capabilities, Device, EngineProbe, Gpu, Hardware, Model, Support
from oprel.store import ModelName

__all__ = ["AUTO", "GROUP", "DriverState", "Registry"]

GROUP = "oprel.drivers"
AUTO = "auto"

# What `auto` may choose without being told, likeliest first. Others are named in `drivers = […]` of the config.
_AUTO_ORDER = ("llama_cpp", "vllm", "exllamav3", "exllamav2")
_METHODS = ("availability", "plan", "probe", "start", "supports")
_OURS = "oprel.drivers."
_IMPORT_S = 60.0
"""For making a third party's driver, its import included."""
_PROBE_REST_S = 30.0
_PROBE_REST_FACTOR = 20.0
"""An engine that wasn't found is looked for again after the longer of 30 s and 20 times what the looking took."""


class DriverState(msgspec.Struct, frozen=True):
    """One row of `oprel drivers`. `origin` is the package that it comes from, with its version; `usable` is None for
    a driver that wasn't imported, because nothing chose it. `capabilities` names the most that its engines can do;
    None where it doesn't say."""

    name: str
    origin: str
    usable: bool | None
    reason: str
    loaded: bool
    capabilities: tuple[str, ...] | None = None


class _Entry:
    """A driver by name, and how far it has got."""

    def __init__(self, name: str, target: str) -> None:
        self.name = name
        self.target = target
        self.driver: Driver | None = None
        self.problem: str | None = None
        self.probes: tuple[EngineProbe, ...] | None = None
        self.probed_again_at = 0.0

    @property
    def has_found(self) -> bool:
        """An engine that can be used; there are drivers that have none to find."""
        return self.probes is not None and (not self.probes or any(probe.problem is None for probe in self.probes))


class Registry:
    """All drivers that are installed or were registered; safe to ask from several threads.

    `wanted` names the drivers that `--driver` and `drivers = […]` choose: `auto` may use them too, and their engines
    are probed with those of the built-in ones. `model_drivers` names a driver by a model's name, which is probed too;
    ConfigError for what is no name. Making a registry imports nothing and looks at nothing.
    """

    def __init__(
        self,
        options: DriverOptions,
        *,
        wanted: Sequence[str] = (),
        model_drivers: Mapping[str, str] = MappingProxyType({}),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.options = options
        self._model_drivers = {_model_key(model): driver for model, driver in model_drivers.items()}
        self._clock = clock
        self._wanted = tuple(name for name in wanted if name != AUTO)
        self._entries: dict[str, _Entry] | None = None
        self._registered: dict[str, _Entry] = {}
        self._hardware: Hardware | None = None
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        return f"<Registry of {', '.join(self.names())}>"

    def register(self, name: str, driver: Driver) -> None:
        """Adds a driver that comes from no package (tests, programs); `auto` tries it after all others."""
        entry = _Entry(name, "")
        entry.driver = driver
        with self._lock:
            self._registered[name] = entry

    def names(self) -> tuple[str, ...]:
        return tuple(sorted({**self._installed(), **self._registered}))

    def states(self) -> tuple[DriverState, ...]:
        """Every driver with its state, by name; those that ship with Oprel are imported for it. May block for seconds
        the first time, as `hardware` does."""
        hardware = self.hardware()
        origins = _origins()
        for entry in self._installed().values():
            if entry.target.startswith(_OURS):
                self._load(entry)
        return tuple(self._state(self._entry(name), hardware, origins) for name in self.names())

    def get(self, name: str) -> Driver:
        """The driver, imported now if need be. DriverUnavailableError says why not, or which ones there are."""
        with self._lock:
            entry = self._entry(name)
            self._load(entry)
        if entry.driver is None:
            raise DriverUnavailableError(f"The driver {name!r} can't be used: {entry.problem}", driver=name)
        return entry.driver

    def choose(self, model: Model, hardware: Hardware, wanted: str = AUTO) -> tuple[Driver, str]:
        """The driver for `model` and the reason for it: the one that the settings name for it, or that the model
        itself names, or the wanted one, or the first that is usable here and supports the model. Raises
        DriverUnavailableError or UnsupportedError with every reason."""
        if (named := self._named_for(model)) is not None:
            return self._insist(named, model, hardware, because="[model_drivers] names it for this model")
        if model.driver is not None:
            return self._insist(model.driver, model, hardware, because="the model's configuration names it")
        if wanted != AUTO:
            return self._insist(wanted, model, hardware)
        refusals: list[str] = []
        unusable: list[tuple[str, str]] = []
        for name in self._auto_names():
            entry = self._entry(name)
            self._load(entry)
            if entry.driver is None:
                refusals.append(f"{name}: {entry.problem}")
                continue
            support = _support(entry.driver, model)
            if not support.supported:
                refusals.append(f"{name}: {support.reason}")
                continue
            available = self._availability(entry, hardware)
            if available.usable:
                return entry.driver, f"{name} is the first usable driver that supports the model: {support.reason}"
            unusable.append((name, available.reason))
        for name, reason in unusable:
            # The first would be the right one: what is wrong with it is what the user must hear.
            raise DriverUnavailableError(f"The driver {name!r} can't be used: {reason}", driver=name)
        raise UnsupportedError(
            f"No driver can run {model.name!r}. {_joined(refusals)}", capability="format", model=model.name
        )

    def others(self, model: Model, hardware: Hardware, chosen: str | None) -> tuple[tuple[str, str], ...]:
        """Why not one of the other drivers: (name, clause) pairs. None is imported for this."""
        names = (name for name in self.names() if name != chosen)
        return tuple((name, self._why_not(self._entry(name), model, hardware, chosen)) for name in names)

    def probe(self) -> tuple[EngineProbe, ...]:
        """What the drivers that may be chosen found out about their engines, in order. Each is asked once; one whose
        engine wasn't there is asked again after a rest, so that installing it needs no restart. Blocks."""
        found: list[EngineProbe] = []
        for name in self._probed_names():
            entry = self._entry(name)
            self._load(entry)
            found += self._probes(entry)
        return tuple(found)

    def hardware(self) -> Hardware:
        """This machine with its engines; looked at once, but free memory is of this moment. Blocks."""
        with self._lock:
            if self._hardware is None:
                self._hardware = detect_hardware()
            else:
                self._hardware = with_free_memory(self._hardware)
            engines = tuple(_with_free_memory(probe, self._hardware) for probe in self.probe())
            return msgspec.structs.replace(self._hardware, engines=engines)

    def _insist(
        self, name: str, model: Model, hardware: Hardware, because: str = "it was asked for"
    ) -> tuple[Driver, str]:
        driver = self.get(name)
        support = _support(driver, model)
        if not support.supported:
            raise UnsupportedError(
                f"The driver {name!r} can't run {model.name!r}: {support.reason}",
                capability="format",
                model=model.name,
                driver=name,
            )
        available = self._availability(self._entry(name), hardware)
        if not available.usable:
            raise DriverUnavailableError(f"The driver {name!r} can't be used: {available.reason}", driver=name)
        return driver, f"{name}, since {because}: {support.reason}"

    def _named_for(self, model: Model) -> str | None:
        if not self._model_drivers:
            return None
        try:
            named = self._model_drivers.get(ModelName.parse(model.name).key)
        except InvalidNameError:  # a file on the command line
            return None
        return None if named == AUTO else named

    def _why_not(self, entry: _Entry, model: Model, hardware: Hardware, chosen: str | None) -> str:
        if entry.driver is None:
            return entry.problem or _not_chosen(entry.name)
        support = _support(entry.driver, model)
        if not support.supported:
            return support.reason
        available = self._availability(entry, hardware)
        if not available.usable:
            return available.reason
        return f"it could run it; {chosen} comes first" if chosen else "it could run it"

    def _auto_names(self) -> Iterator[str]:
        known = {**self._installed(), **self._registered}
        ordered = dict.fromkeys((*_AUTO_ORDER, *self._wanted, *self._registered))
        return (name for name in ordered if name in known)

    def _probed_names(self) -> Iterator[str]:
        known = {**self._installed(), **self._registered}
        named = (name for name in self._model_drivers.values() if name in known)
        return iter(dict.fromkeys((*self._auto_names(), *named)))

    def _availability(self, entry: _Entry, hardware: Hardware) -> Availability:
        if entry.driver is None:
            return Availability(usable=False, reason=entry.problem or "it isn't loaded")
        try:
            return entry.driver.availability(hardware)
        except Exception as error:  # a third party's driver that breaks the contract
            return Availability(usable=False, reason=f"its availability() failed: {described(error)}")

    def _probes(self, entry: _Entry) -> tuple[EngineProbe, ...]:
        if entry.driver is None:
            return ()
        with self._lock:
            if entry.probes is None or (not entry.has_found and self._clock() >= entry.probed_again_at):
                began = self._clock()
                entry.probes = _ask_probes(entry.name, entry.driver)
                ended = self._clock()
                entry.probed_again_at = ended + max(_PROBE_REST_S, _PROBE_REST_FACTOR * (ended - began))
        return entry.probes

    def _entry(self, name: str) -> _Entry:
        entry = self._registered.get(name) or self._installed().get(name)
        if entry is None:
            known = ", ".join(self.names()) or "none"
            raise DriverUnavailableError(f"There is no driver {name!r}: installed are {known}.", driver=name)
        return entry

    def _installed(self) -> dict[str, _Entry]:
        with self._lock:
            if self._entries is None:
                self._entries = dict(_listed())
        return self._entries

    def _load(self, entry: _Entry) -> None:
        """Imports it once; a failure is kept as its problem."""
        with self._lock:
            if entry.driver is not None or entry.problem is not None:
                return
            try:
                if entry.target.startswith(_OURS):
                    entry.driver = self._make(entry.name)
                else:
                    entry.driver = _checked(bounded(lambda: self._make(entry.name), limit_s=_IMPORT_S))
            except Exception as error:
                entry.problem = _load_problem(entry.target, error)

    def _make(self, name: str) -> Driver:
        found = _import(name)
        if (problem := _mismatch(found, name)) is not None:
            raise _NotOfContract(problem)
        driver: Driver = found(self.options)
        return driver

    def _state(self, entry: _Entry, hardware: Hardware, origins: dict[str, str]) -> DriverState:
        origin = origins.get(entry.target, "this program" if entry.name in self._registered else "unknown")
        if entry.problem is not None:
            return DriverState(entry.name, origin, usable=False, reason=entry.problem, loaded=False)
        if entry.driver is None:
            return DriverState(entry.name, origin, usable=None, reason=_not_chosen(entry.name), loaded=False)
        available = self._availability(entry, hardware)
        return DriverState(
            entry.name,
            origin,
            usable=available.usable,
            reason=available.reason,
            loaded=True,
            capabilities=_declared(entry.driver),
        )


def _listed() -> Iterator[tuple[str, _Entry]]:
    """The entry points of the group by name, none imported. A name that two packages claim is neither's."""
    targets: dict[str, list[str]] = {}
    for point in _points():
        targets.setdefault(point.name, []).append(point.value)
    for name, claims in targets.items():
        entry = _Entry(name, claims[0])
        if len(claims) > 1:
            entry.problem = f"several packages claim this name ({', '.join(claims)}): uninstall all but one"
        yield name, entry


def _model_key(name: str) -> tuple[str, str, str, str]:
    try:
        return ModelName.parse(name).key
    except InvalidNameError as error:
        raise ConfigError(f"[model_drivers]: {name!r} is not the name of a model") from error


def _points() -> list[importlib.metadata.EntryPoint]:
    from stevedore import ExtensionManager, NamedExtensionManager

    # stevedore remembers the listing for the life of the process; a registry that is made anew looks anew.
    ExtensionManager.ENTRY_POINT_CACHE.pop(GROUP, None)
    nothing_loaded: Any = NamedExtensionManager(GROUP, names=[])
    return list(nothing_loaded.list_entry_points())


def _import(name: str) -> Any:
    from stevedore import NamedExtensionManager

    def raise_it(_manager: Any, _point: Any, error: BaseException) -> None:
        raise error

    manager: Any = NamedExtensionManager(GROUP, names=[name], on_load_failure_callback=raise_it)
    return manager[name].plugin


class _NotOfContract(Exception):
    """What was loaded isn't a driver of this contract; the text says why, in one clause."""


def _mismatch(found: Any, name: str) -> str | None:
    """Why this isn't a driver of our contract, in one clause."""
    contract = getattr(found, "contract", None)
    if contract != CONTRACT_VERSION:
        is_newer = isinstance(contract, int) and contract > CONTRACT_VERSION
        remedy = "update Oprel, or install an older release of the driver" if is_newer else "update the driver"
        return f"it keeps contract {contract!r} and this Oprel wants {CONTRACT_VERSION}: {remedy}"
    missing = [method for method in _METHODS if not callable(getattr(found, method, None))]
    if not isinstance(getattr(found, "name", None), str):
        missing.insert(0, "name")
    if missing:
        return f"it lacks {', '.join(missing)}, which the contract asks for"
    if found.name != name:
        return f"it calls itself {found.name!r} and its entry point {name!r}: they must be the same"
    return None


def _checked(driver: Driver) -> Driver:
    from oprel.drivers.checked.driver import CheckedDriver  # only for those who have such a driver

    return CheckedDriver(driver)


def _load_problem(target: str, failure: Exception) -> str:
    error = failure.error if isinstance(failure, Raised) else failure
    if isinstance(error, _NotOfContract):
        return str(error)
    return f"{target} failed to load: {f'it {error}' if isinstance(error, Hung) else described(error)}"


def _support(driver: Driver, model: Model) -> Support:
    try:
        return driver.supports(model)
    except Exception as error:
        return Support(supported=False, reason=f"its supports() failed: {described(error)}")


def _declared(driver: Driver) -> tuple[str, ...] | None:
    can = getattr(driver, "can", None)
    return can.names if isinstance(can, Capabilities) else None


def _not_chosen(name: str) -> str:
    return f"not imported, because nothing chose it (--driver {name} does)"


def _ask_probes(name: str, driver: Driver) -> tuple[EngineProbe, ...]:
    try:
        return tuple(driver.probe())
    except Exception as error:  # a third party's driver that breaks the contract
        return (EngineProbe(driver=name, engine=name, command=(), problem=f"its probe() failed: {described(error)}"),)


def _with_free_memory(probe: EngineProbe, hardware: Hardware) -> EngineProbe:
    """A probe's devices are of the time of the probe; where they are the GPUs of the machine, in its order, their
    free memory is known again."""
    gpus = hardware.gpus
    if len(gpus) != len(probe.devices) or not all(map(_is_same_gpu, probe.devices, gpus)):
        return probe
    devices = tuple(
        msgspec.structs.replace(device, free_bytes=min(gpu.free_bytes, device.total_bytes))
        for device, gpu in zip(probe.devices, gpus, strict=True)
    )
    return msgspec.structs.replace(probe, devices=devices)


def _is_same_gpu(device: Device, gpu: Gpu) -> bool:
    """Drivers and engines count a few hundred MiB differently."""
    return abs(device.total_bytes - gpu.total_bytes) <= device.total_bytes // 20


def _origins() -> dict[str, str]:
    """From an entry point's target to "package version"."""
    return {
        point.value: f"{point.dist.name} {point.dist.version}"
        for point in importlib.metadata.entry_points(group=GROUP)
        if point.dist is not None and point.dist.name  # a broken installation may have none
    }


def _joined(reasons: Iterable[str]) -> str:
    return "; ".join(reasons) + "."
