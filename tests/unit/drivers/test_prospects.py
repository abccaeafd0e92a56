"""Which driver would serve a model, why not another, and what a model is promised to be able to."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import msgspec
import pytest
from support.llama_models import make_model

from oprel.drivers import DriverOptions
from oprel.drivers.prospects import Prospect, look_ahead
from oprel.drivers.registry import Registry
from oprel.errors import ConfigError
from oprel.schema import (
    ALL_SAMPLING,
    Availability,
    Capabilities,
    Hardware,
    LoadOptions,
    Model,
    ModelFile,
    Plan,
    RemoteModel,
    promised,
)
from oprel.testing import Script, ScriptedDriver, scripted_model

HARDWARE = Hardware("Linux", "x86_64", cores=2, threads=2, ram_total_bytes=2**34, ram_available_bytes=2**33)
MOST = Capabilities(
    chat=True, complete=True, embed=True, vision=True, tools=True, json_schema=True, logprobs=True, infill=True,
    lora=True, rerank=True, tokenize=True, sampling=ALL_SAMPLING,
)  # fmt: skip


class Unplugged(ScriptedDriver):
    name = "unplugged"

    def availability(self, hardware: Hardware) -> Availability:
        return Availability(usable=False, reason="its cable is unplugged: plug it in")


class Planless(ScriptedDriver):
    def plan(self, model: Model, options: LoadOptions, hardware: Hardware) -> Plan:
        raise ZeroDivisionError("oh")


def ahead(
    *drivers: ScriptedDriver,
    model: Model | None = None,
    wanted: str = "auto",
    model_drivers: Mapping[str, str] = MappingProxyType({}),
) -> Prospect:
    registry = Registry(DriverOptions(run_dir=""), model_drivers=model_drivers)
    registry._entries = {}
    for driver in drivers:
        registry.register(driver.name, driver)
    return look_ahead(registry, model or scripted_model(), HARDWARE, options=LoadOptions(), wanted=wanted)


def named(name: str, script: Script | None = None, **more: Any) -> ScriptedDriver:
    return type("Named", (ScriptedDriver,), {"name": name})(script, **more)  # type: ignore[no-any-return]


def test_it_says_which_and_why_and_why_not_the_others() -> None:
    found = ahead(named("first"), named("second"), named("other", formats=frozenset({"exl2"})))
    assert found.driver == "first"
    assert "first usable driver" in found.reason
    assert dict(found.others) == {
        "second": "it could run it; first comes first",
        "other": "scripted runs exl2, not gguf",
    }
    assert found.plan is not None
    assert (found.context_tokens, found.problem) == (found.plan.context_tokens, None)
    assert {"chat", "tools"} <= set(found.capabilities.names)


def test_what_is_asked_for_is_the_reason() -> None:
    found = ahead(named("first"), named("second"), wanted="second")
    assert (found.driver, "asked for" in found.reason) == ("second", True)
    assert dict(found.others) == {"first": "it could run it; second comes first"}


def test_the_settings_choose_for_one_model() -> None:
    """Whatever way its name is written; other models are left as they are."""
    first, second = named("first"), named("second")
    settings = {"Scripted:Latest": "second", "other": "first"}
    found = ahead(first, second, model_drivers=settings)
    assert found.driver == "second"
    assert found.reason.startswith("second, since [model_drivers] names it for this model: ")
    assert ahead(first, second, wanted="first", model_drivers=settings).driver == "second"
    third = scripted_model("third:latest")
    assert ahead(first, second, model=third, model_drivers=settings).driver == "first"
    assert ahead(first, second, model_drivers={"scripted": "auto"}).driver == "first"


def test_the_settings_come_before_the_model_itself() -> None:
    model = msgspec.structs.replace(scripted_model(), driver="first")
    assert ahead(named("first"), named("second"), model=model).driver == "first"
    assert ahead(named("first"), named("second"), model=model, model_drivers={"scripted": "second"}).driver == "second"


def test_a_driver_that_the_settings_name_and_nobody_installed() -> None:
    problem = ahead(named("first"), model_drivers={"scripted": "secnod"}).problem
    assert problem is not None and "There is no driver 'secnod': installed are first" in problem


def test_what_is_no_name_is_told_when_the_settings_are_read() -> None:
    with pytest.raises(ConfigError, match=r"\[model_drivers\]: '\.\./x' is not the name of a model"):
        ahead(named("first"), model_drivers={"../x": "first"})


def test_nothing_that_runs_it_is_told_with_every_reason() -> None:
    found = ahead(named("first", formats=frozenset({"exl2"})))
    assert (found.driver, found.plan) == (None, None)
    assert "scripted runs exl2" in (found.problem or "")
    assert found.capabilities.names == ("chat", "complete"), "what the model says of itself"


def test_the_right_driver_that_can_not_be_used_says_what_would_fix_it() -> None:
    found = ahead(Unplugged())
    assert found.driver is None
    assert "plug it in" in found.reason
    assert dict(found.others) == {"unplugged": "its cable is unplugged: plug it in"}


def test_a_damaged_model_has_no_prospect() -> None:
    assert "cut off" in (ahead(named("first"), model=scripted_model(damage="it is cut off")).problem or "")


def test_a_driver_without_a_plan_is_named() -> None:
    found = ahead(Planless())
    assert found.driver == "scripted"
    assert found.problem == "the driver 'scripted' failed to plan it: ZeroDivisionError('oh')"
    assert found.context_tokens == 8192, "what it was trained for"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "chat complete json_schema logprobs tokenize"),
        ({"chat_template": None}, "complete json_schema logprobs tokenize"),
        (
            {"chat_template": None, "format": "remote", "remote": RemoteModel("far", "m")},
            "chat complete json_schema logprobs tokenize",
        ),
        ({"capabilities": frozenset({"embedding"})}, "embed tokenize"),
        (
            {"capabilities": frozenset({"completion", "tools", "vision", "insert", "audio"})},
            "chat complete vision tools json_schema logprobs infill tokenize",
        ),
        ({"capabilities": frozenset({"embedding"}), "pooling": "rank"}, "rerank tokenize"),
        (
            {"files": (ModelFile("adapter", "", "ab", 1),)},
            "chat complete json_schema logprobs lora tokenize",
        ),
        (
            {"capabilities": frozenset()},
            "chat complete embed rerank vision tools json_schema logprobs infill lora tokenize",
        ),
    ],
    ids=["text", "no template", "remote", "embeds", "much", "ranks", "adapter", "nothing known"],
)
def test_a_model_is_promised_what_it_says_and_the_engine_can(changes: dict[str, Any], expected: str) -> None:
    found = promised(make_model(**changes), MOST)
    assert " ".join(found.names) == expected
    assert found.context_tokens == 131_072


def test_without_an_engines_word_only_the_models_counts() -> None:
    found = promised(make_model())
    assert (found.names, found.sampling) == (("chat", "complete"), frozenset())
    assert promised(make_model(capabilities=frozenset())).names == ()


def test_an_engine_that_only_embeds_promises_no_text() -> None:
    assert promised(make_model(), Capabilities(embed=True, tokenize=True)).names == ("tokenize",)
