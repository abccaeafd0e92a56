"""Which engines are found, and what is wrong with those that can't be used."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support import fake_llama_server as fake
from support.llama_models import MIB, driver_for, make_hardware, make_model, make_probe

from oprel.drivers.llama_cpp import probe
from oprel.drivers.llama_cpp.probe import LLAMA_SERVER, XLLAMACPP, probe_bundled, probe_engines, probe_server
from oprel.errors import DriverUnavailableError
from oprel.schema import LoadOptions


def test_version_options_and_devices_are_read(tmp_path: Path) -> None:
    devices = (fake.GPU, "Vulkan0: llvmpipe (LLVM 15) (1000 MiB, 900 MiB free)", "BLAS: Accelerate (0 MiB, 0 MiB free)")
    found = probe_server(fake.install(tmp_path, devices=devices))
    assert found.problem is None
    assert found.version == "11434 (5f2a1c3)"
    assert {"--model", "--fit", "--no-ui"} <= found.flags
    # It is named in a description, and is none of its options.
    assert "--not-an-option" not in found.flags
    (device,) = found.devices
    assert (device.id, device.name) == ("CUDA0", "NVIDIA Imaginary 4090")
    assert (device.total_bytes, device.free_bytes) == (24564 * MIB, 24000 * MIB)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ({"lacks": ("--jinja",)}, "too old: it has no --jinja"),
        ({"lacks": (".sock",)}, "unix socket"),
        ({"lacks": ("--model",)}, "isn't a llama-server"),
        ({"probe_fails_with": "libcudart.so.12: cannot open shared object file"}, "libcudart.so.12"),
    ],
    ids=["old", "no sockets", "other", "library"],
)
def test_an_engine_that_cannot_be_used_says_why(tmp_path: Path, script: dict[str, object], said: str) -> None:
    executable = fake.install(tmp_path, **script)
    found = probe_server(executable)
    assert found.problem is not None
    assert said in found.problem
    assert str(executable) in found.problem


def test_an_engine_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_HELP_LIMIT_S", 0.3)
    found = probe_server(fake.install(tmp_path, hangs_on_probe=True))
    assert "doesn't answer --help within 0.3 s" in (found.problem or "")


class TestOrder:
    def test_the_configured_one_is_the_only_one(self, tmp_path: Path) -> None:
        configured = fake.install(tmp_path / "mine", version="1 (a)")
        fake.install(tmp_path / "path")
        (found,) = probe_engines(str(configured), search_path=str(tmp_path / "path"))
        assert found.command == (str(configured),)

    def test_a_configured_one_that_cannot_run_is_not_skipped(self, tmp_path: Path) -> None:
        missing = tmp_path / "llama-server"
        (found,) = probe_engines(str(missing))
        assert found.problem is not None
        assert "configured" in found.problem
        assert str(missing) in found.problem

    def test_path_comes_before_the_bundled_one(self, tmp_path: Path) -> None:
        executable = fake.install(tmp_path)
        (found,) = probe_engines(search_path=str(tmp_path))
        assert (found.engine, found.command) == (LLAMA_SERVER, (str(executable),))

    def test_one_on_path_that_is_too_old_is_passed_over_with_its_reason(self, tmp_path: Path) -> None:
        fake.install(tmp_path, lacks=("--jinja",))
        old, bundled = probe_engines(search_path=str(tmp_path))
        assert "too old" in (old.problem or "")
        assert (bundled.engine, bundled.problem) == (XLLAMACPP, None)
        reason = driver_for(tmp_path).availability(make_hardware(old, bundled)).reason
        assert "bundled" in reason
        assert "too old" in reason

    def test_no_engine_anywhere_says_how_to_get_one(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "xllamacpp", None)
        monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
        (found,) = probe_engines(search_path=str(tmp_path))
        assert "pip install xllamacpp" in (found.problem or "")
        driver = driver_for(tmp_path)
        assert not driver.availability(make_hardware(found)).usable
        with pytest.raises(DriverUnavailableError, match="pip install xllamacpp"):
            driver.plan(make_model(), LoadOptions(), make_hardware(found))


def test_the_bundled_engine_is_probed_in_a_child() -> None:
    found = probe_bundled()
    assert found.problem is None
    assert found.version
    assert {"--model", "--host", "--pooling", "--chat-template-file", "--fit"} <= found.flags
    assert "CPU" not in {device.id for device in found.devices}


def test_a_bundled_engine_that_crashes_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A processor without AVX2 ends it by a signal."""
    package = tmp_path / "xllamacpp"
    package.mkdir()
    (package / "__init__.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n")
    monkeypatch.delitem(sys.modules, "xllamacpp", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = probe_bundled()
    assert "ended with code -4" in (found.problem or "")


def test_which_engine_is_used_is_visible(tmp_path: Path) -> None:
    plan = driver_for(tmp_path).plan(make_model(), LoadOptions(), make_hardware(make_probe()))
    assert plan.engine == "llama-server 11434"
    assert dict(plan.reasons)["engine"] == "llama-server 11434 (/opt/llama-server)"
