"""Drivers by entry point: listed without being imported, and none lost in silence."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.llama_models import GIB, make_hardware, make_model

from oprel.drivers import Driver, DriverOptions, Engine
from oprel.drivers.registry import Registry
from oprel.errors import DriverUnavailableError, UnsupportedError
from oprel.hardware import detect_hardware
from oprel.schema import Availability, Device, EngineProbe, Gpu, Hardware, LoadOptions, Model, Plan, Support

GOOD = """
from oprel.drivers import Driver
from oprel.schema import Availability, EngineProbe, Support

class D(Driver):
    name = {name!r}
    def probe(self): return (EngineProbe(driver={name!r}, engine="e", command=("e",)),)
    def availability(self, hardware): return Availability(True, f"{{len(hardware.engines)}} probes seen")
    def supports(self, model): return Support(model.format == "strange", f"format {{model.format}}")
    def plan(self, model, options, hardware): raise NotImplementedError
    async def start(self, plan): raise NotImplementedError
"""

Installer = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installer:
    """Makes a package with one entry point, as pip would leave it, on sys.path."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))

    def install(name: str, source: str, *, package: str | None = None, target: str | None = None) -> None:
        package = package or f"oprel-test-{name}"
        module = package.replace("-", "_")
        site = tmp_path / "site"
        info = site / f"{module}-2.1.dist-info"
        info.mkdir(parents=True)
        (site / f"{module}.py").write_text(source)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 2.1\n")
        (info / "entry_points.txt").write_text(f"[oprel.drivers]\n{name} = {target or f'{module}:D'}\n")
        # A path entry of its own for each, so that no listing of before is taken for this one.
        monkeypatch.syspath_prepend(str(tmp_path / f"fresh-{name}-{package}"))
        monkeypatch.delitem(sys.modules, module, raising=False)

    return install


@pytest.fixture
def options(tmp_path: Path) -> DriverOptions:
    return DriverOptions(run_dir=str(tmp_path / "run"))


class InProcess(Driver):
    name = "in_process"

    def __init__(self, options: DriverOptions, *, usable: bool = True, probes: tuple[EngineProbe, ...] = ()) -> None:
        super().__init__(options)
        self.usable = usable
        self.probes = probes
        self.asked = 0

    def probe(self) -> tuple[EngineProbe, ...]:
        self.asked += 1
        return self.probes

    def availability(self, hardware: Hardware) -> Availability:
        return Availability(self.usable, "always" if self.usable else "its cable is unplugged")

    def supports(self, model: Model) -> Support:
        return Support(model.format == "scripted", "scripts only")

    def plan(self, model: Model, options: LoadOptions, hardware: Hardware) -> Plan:
        raise NotImplementedError

    async def start(self, plan: Plan) -> Engine:
        raise NotImplementedError


class TestListing:
    def test_the_built_in_driver_comes_by_the_same_door(self, options: DriverOptions) -> None:
        assert "llama_cpp" in Registry(options).names()

    def test_a_third_partys_driver_is_listed_and_not_imported(self, install: Installer, options: DriverOptions) -> None:
        install("other", "raise RuntimeError('imported')")
        state = next(s for s in Registry(options).states() if s.name == "other")
        assert (state.usable, state.loaded) == (None, False)
        assert state.origin == "oprel-test-other 2.1"
        assert "oprel_test_other" not in sys.modules

    def test_a_wanted_one_is_imported_and_probed(self, install: Installer, options: DriverOptions) -> None:
        install("other", GOOD.format(name="other"))
        registry = Registry(options, wanted=("auto", "other"))
        state = next(s for s in registry.states() if s.name == "other")
        assert (state.usable, state.loaded) == (True, True)
        assert "other" in {probe.driver for probe in registry.hardware().engines}

    def test_making_a_registry_looks_at_nothing(self, options: DriverOptions, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("oprel.drivers.registry._points", lambda: pytest.fail("listed"))
        Registry(options)


class TestDeclared:
    def test_every_driver_of_ours_says_what_it_can(self, options: DriverOptions) -> None:
        ours = [state for state in Registry(options).states() if state.origin.startswith("oprel ")]
        assert {state.name for state in ours} >= {"llama_cpp"}
        assert all(state.capabilities for state in ours if state.loaded), "declare `can`"

    def test_a_third_partys_driver_may_say_so_too(self, install: Installer, options: DriverOptions) -> None:
        can = "\n    from oprel.schema import Capabilities\n    can = Capabilities(embed=True)\n"
        install("other", GOOD.format(name="other") + can)
        state = next(s for s in Registry(options, wanted=("other",)).states() if s.name == "other")
        assert state.capabilities == ("embed",)

    def test_an_installation_that_is_broken_is_listed_without_an_origin(
        self, install: Installer, options: DriverOptions, tmp_path: Path
    ) -> None:
        install("odd", GOOD.format(name="odd"))
        (tmp_path / "site" / "oprel_test_odd-2.1.dist-info" / "METADATA").unlink()
        state = next(s for s in Registry(options).states() if s.name == "odd")
        assert state.origin == "unknown"


class TestFailures:
    @pytest.mark.parametrize(
        ("source", "said"),
        [
            ("raise ImportError('no libfoo')", "no libfoo"),
            ("x = 1", "has no attribute 'D'"),
            (GOOD.format(name="bad") + "\n    contract = 7\n", "contract 7 and this Oprel wants 1"),
            ("class D: pass", "contract None"),
            (
                "class D:\n    contract = 1\n    name = 'bad'\n    plan = start = print",
                "lacks availability, probe, supports",
            ),
            (GOOD.format(name="bad") + "\n    def __init__(self, options): raise OSError('no disk')\n", "no disk"),
        ],
        ids=["import", "attribute", "contract", "no contract", "methods", "constructor"],
    )
    def test_a_driver_that_cannot_be_used_keeps_its_reason(
        self, install: Installer, options: DriverOptions, source: str, said: str
    ) -> None:
        install("bad", source)
        registry = Registry(options, wanted=("bad",))
        with pytest.raises(DriverUnavailableError, match="'bad'") as caught:
            registry.get("bad")
        assert said in caught.value.message
        state = next(s for s in registry.states() if s.name == "bad")
        assert (state.usable, state.loaded) == (False, False)
        assert said in state.reason

    def test_an_unknown_name_says_which_there_are(self, options: DriverOptions) -> None:
        with pytest.raises(DriverUnavailableError, match=r"no driver 'vlmm'.*llama_cpp"):
            Registry(options).get("vlmm")

    def test_a_name_that_two_packages_claim_is_neithers(self, install: Installer, options: DriverOptions) -> None:
        install("twice", GOOD.format(name="twice"), package="oprel-test-first")
        install("twice", GOOD.format(name="twice"), package="oprel-test-second")
        with pytest.raises(DriverUnavailableError, match="several packages"):
            Registry(options).get("twice")

    def test_a_driver_that_raises_where_it_must_not(
        self, options: DriverOptions, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        driver = InProcess(options)

        def fail(*_: object) -> Any:
            raise ZeroDivisionError

        monkeypatch.setattr(driver, "availability", fail)
        monkeypatch.setattr(driver, "probe", fail)
        registry = Registry(options)
        registry.register("rude", driver)
        state = next(s for s in registry.states() if s.name == "rude")
        assert (state.usable, "ZeroDivisionError" in state.reason) == (False, True)
        assert any(probe.problem for probe in registry.hardware().engines if probe.driver == "rude")


class TestChoosing:
    def test_auto_takes_the_first_that_supports_the_model(self, options: DriverOptions) -> None:
        registry = Registry(options)
        registry.register("in_process", InProcess(options))
        driver, reason = registry.choose(make_model(format="scripted"), make_hardware())
        assert driver.name == "in_process"
        assert "scripts only" in reason

    def test_auto_never_imports_a_driver_that_nobody_wants(self, install: Installer, options: DriverOptions) -> None:
        install("other", GOOD.format(name="other"))
        with pytest.raises(UnsupportedError):
            Registry(options).choose(make_model(format="strange"), make_hardware())
        driver, _ = Registry(options, wanted=("other",)).choose(make_model(format="strange"), make_hardware())
        assert driver.name == "other"

    def test_no_driver_says_every_reason(self, options: DriverOptions) -> None:
        with pytest.raises(UnsupportedError, match=r"llama_cpp: .*'punched-cards'"):
            Registry(options).choose(make_model(format="punched-cards"), make_hardware())

    def test_one_that_is_not_usable_makes_room_for_the_next(self, options: DriverOptions) -> None:
        registry = Registry(options)
        registry.register("broken", InProcess(options, usable=False))
        registry.register("in_process", InProcess(options))
        driver, _ = registry.choose(make_model(format="scripted"), make_hardware())
        assert driver.availability(make_hardware()).usable

    def test_the_right_driver_that_is_not_usable_says_why(self, options: DriverOptions) -> None:
        registry = Registry(options)
        registry.register("in_process", InProcess(options, usable=False))
        with pytest.raises(DriverUnavailableError, match="cable is unplugged"):
            registry.choose(make_model(format="scripted"), make_hardware())
        with pytest.raises(DriverUnavailableError, match="cable is unplugged"):
            registry.choose(make_model(format="scripted"), make_hardware(), "in_process")

    def test_a_named_driver_that_does_not_support_the_model_is_refused(self, options: DriverOptions) -> None:
        registry = Registry(options)
        registry.register("in_process", InProcess(options))
        with pytest.raises(UnsupportedError, match="scripts only") as caught:
            registry.choose(make_model(), make_hardware(), "in_process")
        assert caught.value.driver == "in_process"


class TestHardware:
    def test_engines_are_probed_once(self, options: DriverOptions) -> None:
        registry = Registry(options)
        driver = InProcess(options, probes=(EngineProbe(driver="in_process", engine="e", command=("e",)),))
        registry.register("in_process", driver)
        first, second = registry.hardware(), registry.hardware()
        assert first.engines == second.engines
        assert driver.asked == 1

    def test_an_engine_that_was_not_there_is_looked_for_again_after_a_rest(self, options: DriverOptions) -> None:
        """Installing it needs no restart; looking costs no more than a twentieth of the time."""
        now = 0.0
        looking_s = 0.0

        class Late(InProcess):
            def probe(self) -> tuple[EngineProbe, ...]:
                nonlocal now
                now += looking_s
                return super().probe()

        registry = Registry(options, clock=lambda: now)
        missing = EngineProbe(driver="in_process", engine="e", command=(), problem="it isn't installed")
        driver = Late(options, probes=(missing,))
        registry.register("in_process", driver)
        registry.hardware()
        now, looking_s = 29.0, 2.0
        registry.hardware()
        assert driver.asked == 1
        now = 30.0
        registry.hardware()
        now = 32.0 + 39.0
        registry.hardware()
        assert driver.asked == 2, "the second time took 2 s, so that it rests for 40"
        now = 32.0 + 40.0
        driver.probes = (msgspec.structs.replace(missing, command=("e",), problem=None),)
        assert driver.probes[0] in registry.hardware().engines
        now = 10_000.0
        registry.hardware()
        assert driver.asked == 3, "what was found isn't looked for again"

    def test_a_driver_without_an_engine_to_find_is_asked_once(self, options: DriverOptions) -> None:
        now = 0.0
        registry = Registry(options, clock=lambda: now)
        driver = InProcess(options)
        registry.register("in_process", driver)
        registry.hardware()
        now = 10_000.0
        registry.hardware()
        assert driver.asked == 1

    def test_free_memory_of_devices_is_of_now(self, options: DriverOptions, monkeypatch: pytest.MonkeyPatch) -> None:
        device = Device("CUDA0", "RTX", total_bytes=24 * GIB, free_bytes=23 * GIB)
        gpu = Gpu(0, "RTX", "nvidia", total_bytes=24 * GIB + 1, free_bytes=5 * GIB, found_by="nvml")
        found = make_hardware(gpus=(gpu,))
        monkeypatch.setattr("oprel.drivers.registry.detect_hardware", lambda: found)
        registry = Registry(options)
        probe = EngineProbe(driver="in_process", engine="e", command=("e",), devices=(device,))
        registry.register("in_process", InProcess(options, probes=(probe,)))
        seen = next(probe for probe in registry.hardware().engines if probe.driver == "in_process")
        assert seen.devices[0].free_bytes == 5 * GIB

    def test_it_is_this_machine(self, options: DriverOptions) -> None:
        assert Registry(options).hardware().ram_total_bytes == detect_hardware().ram_total_bytes
