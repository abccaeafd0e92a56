"""The contract on both ExLlama drivers, with stand-ins for the libraries: all but the call into the real ones."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from support.exllama_driver import make_hardware, model_in
from support.exllama_python import install

from oprel.drivers import DriverOptions, Engine
from oprel.drivers.exllama import ExllamaV2Driver, ExllamaV3Driver
from oprel.testing.contract import DriverContract, Subject

pytest.importorskip("jinja2", reason="chat templates are rendered by jinja2, which an engine's environment has")


def kill(engine: Engine) -> None:
    """The host's whole group, as the out-of-memory killer would."""
    os.killpg(engine._child.pid, signal.SIGKILL)  # type: ignore[attr-defined]  # only engines with a child have it


def subject_of(made: type[ExllamaV2Driver | ExllamaV3Driver], folder: Path, *, packages: tuple[str, ...]) -> Subject:
    python = install(folder / "env", packages=packages, endless=True, token_s=0.005)
    quantization = made.flavour.takes[0]

    def make(options: DriverOptions) -> ExllamaV2Driver | ExllamaV3Driver:
        table = {"build_dir": str(folder / "build")}
        return made(
            DriverOptions(
                run_dir=options.run_dir,
                executables=(("exllama", str(python)),),
                tables=(("exllama", table),),
                start_timeout_s=options.start_timeout_s,
                stall_timeout_s=options.stall_timeout_s,
                stop_grace_s=5.0,
            )
        )

    probing = make(DriverOptions(run_dir=str(folder)))
    return Subject(
        make=make,
        chat=model_in(folder / "model", quantization),
        damaged=model_in(folder / "damaged", quantization, architectures=["A", "B"]),
        kill=kill,
        hardware=make_hardware(*probing.probe()),
    )


class TestExllamaV3(DriverContract):
    @pytest.fixture(scope="class")
    @classmethod
    def subject(cls, tmp_path_factory: pytest.TempPathFactory) -> Subject:
        return subject_of(ExllamaV3Driver, tmp_path_factory.mktemp("exl3"), packages=("torch", "exllamav3"))


class TestExllamaV2(DriverContract):
    """Without flash-attn and without a library for JSON schemas, as its installation from the package index is."""

    @pytest.fixture(scope="class")
    @classmethod
    def subject(cls, tmp_path_factory: pytest.TempPathFactory) -> Subject:
        return subject_of(ExllamaV2Driver, tmp_path_factory.mktemp("exl2"), packages=("torch", "exllamav2"))
