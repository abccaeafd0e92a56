"""The contract on the scripted driver; and that a driver which breaks it is found out."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from oprel.drivers import DriverOptions, Engine
from oprel.schema import Capabilities, Hardware
from oprel.testing import Script, ScriptedDriver, ScriptedEngine, scripted_model
from oprel.testing.contract import DriverContract, Subject

HARDWARE = Hardware("Linux", "x86_64", cores=2, threads=2, ram_total_bytes=2**34, ram_available_bytes=2**33)
CHAT = scripted_model("chat")
EMBED = scripted_model("embed", capabilities=frozenset({"embedding"}))
DAMAGED = scripted_model("damaged")
STORY = Script(text=(" there", " was", " a", " pri", "nce", " 🙂", " who"), endless=True, token_delay_s=0.002, slots=2)


def kill(engine: Engine) -> None:
    assert isinstance(engine, ScriptedEngine)
    engine.kill()


def subject_of(script: Script, make: type[ScriptedDriver] = ScriptedDriver, **changes: Any) -> Subject:
    scripts = {"damaged": msgspec.structs.replace(script, refusals=("model",) * 9)}

    def made(options: DriverOptions) -> ScriptedDriver:
        return make(script, scripts=scripts, options=options)

    fields: dict[str, Any] = {"chat": CHAT, "embed": EMBED, "damaged": DAMAGED, "kill": kill, **changes}
    return Subject(make=made, hardware=HARDWARE, **fields)


class TestScripted(DriverContract):
    @pytest.fixture(scope="class")
    @classmethod
    def subject(cls) -> Subject:
        return subject_of(STORY)


class TestScriptedWithoutExtras(DriverContract):
    """An engine that can little refuses the rest by name."""

    @pytest.fixture(scope="class")
    @classmethod
    def subject(cls) -> Subject:
        little = Capabilities(chat=True, complete=True)
        return subject_of(msgspec.structs.replace(STORY, capabilities=little), embed=None)
