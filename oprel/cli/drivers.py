"""`oprel drivers`: which there are and what they can do; `oprel drivers check`: whether one keeps the contract."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from oprel.cli.common import settings_of
from oprel.cli.terminal import Terminal

if TYPE_CHECKING:
    from oprel.drivers.registry import DriverState
    from oprel.testing.check import Report, Rule

__all__ = ["add_commands", "tell_drivers"]

_STATES = {True: "usable", False: "not usable", None: "not loaded"}
_MARKS = {"holds": "ok  ", "fails": "FAIL", "skipped": "-   "}


def add_commands(commands: Any) -> None:
    drivers = commands.add_parser("drivers", help="installed drivers with their state; `check` one of them")
    drivers.add_argument("--json", action="store_true", help="as JSON")
    drivers.add_argument("--all", action="store_true", help="look at those that nothing chose, too: imports them")
    drivers.add_argument("--driver", metavar="NAME", help="as if it were chosen: imports it")
    drivers.set_defaults(command=_drivers)

    inner = drivers.add_subparsers(metavar="check")
    check = inner.add_parser("check", help="whether a driver keeps the contract, rule by rule, and the API documents")
    check.add_argument("name", metavar="NAME")
    check.add_argument("--model", action="append", metavar="MODEL", help="an installed model to ask; may be repeated")
    check.add_argument("--models-dir", metavar="DIR", help="the store")
    check.add_argument("--time-limit", metavar="SECONDS", type=float, default=900.0, help="for the whole check (900)")
    check.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="as JSON, when it is done")
    check.set_defaults(command=_check)


def _drivers(arguments: argparse.Namespace, terminal: Terminal) -> None:
    import msgspec

    from oprel.server.compose import make_registry

    settings = settings_of(arguments, "driver")
    registry = make_registry(settings)
    if arguments.all:
        registry = make_registry(settings.model_copy(update={"drivers": registry.names()}))
    states = registry.states()
    if arguments.json:
        terminal.json(msgspec.to_builtins(states))
        return
    tell_drivers(states, terminal)


def tell_drivers(states: Sequence[DriverState], terminal: Terminal) -> None:
    terminal.table(
        ("DRIVER", "STATE", "FROM", "WHY"), [(s.name, _STATES[s.usable], s.origin, s.reason) for s in states]
    )
    for state in states:
        if state.capabilities is not None:
            terminal.answer(f"{state.name} can: {', '.join(state.capabilities) or 'nothing'}")


def _check(arguments: argparse.Namespace, terminal: Terminal) -> int:
    import msgspec

    from oprel.testing.check import check_driver

    settings = settings_of(arguments, "models_dir")
    on_rule = (lambda rule: None) if arguments.json else (lambda rule: _tell_rule(rule, terminal))
    report = check_driver(
        arguments.name,
        settings,
        models=tuple(arguments.model or ()),
        on_rule=on_rule,
        limit_s=arguments.time_limit,
    )
    if arguments.json:
        terminal.json({**msgspec.to_builtins(report), "passed": report.has_passed})
    else:
        _tell_end(report, terminal)
    return 0 if report.has_passed else 1


def _tell_rule(rule: Rule, terminal: Terminal) -> None:
    detail = f": {rule.detail}" if rule.detail else ""
    terminal.answer(f"{_MARKS[rule.outcome]}  {rule.text}{detail}")


def _tell_end(report: Report, terminal: Terminal) -> None:
    models = ", ".join(report.models) or "no model"
    counts = f"{report.count('holds')} hold, {report.count('fails')} fail, {report.count('skipped')} don't apply"
    terminal.answer(f"{report.driver} with {models}: {counts} ({report.seconds:.0f} s)")
    for problem in report.problems:
        terminal.answer(f"FAIL  {problem}")
