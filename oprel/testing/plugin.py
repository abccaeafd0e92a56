"""The pytest plugin: what `oprel.testing` adds to pytest. Nothing of it runs by itself.

pytest imports it at every start, for everyone who has Oprel installed, so it imports nothing.

| adds | for |
|---|---|
| marker `driver_contract` | tests from `oprel.testing.contract.DriverContract` |
| fixture `oprel_cassette` | a server that plays a recorded engine (`oprel.testing.cassette`) |
| option `--oprel-record` | records the cassettes of the tests that run anew, from real engines |
| options `--oprel-driver`, `--oprel-model` | the driver that `oprel.testing.installed` is about |
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

__all__ = ["pytest_addoption", "pytest_configure", "pytest_load_initial_conftests"]

_ASSERTING = ("checks", "contract", "driver_rules", "end_rules", "engine_rules", "installed", "served")


def pytest_load_initial_conftests() -> None:
    """Before any conftest may import the rules, or their failures would show no values."""
    import pytest

    pytest.register_assert_rewrite(*(f"oprel.testing.{module}" for module in _ASSERTING))


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("oprel", "Oprel's drivers and cassettes")
    group.addoption("--oprel-driver", metavar="NAME", help="the installed driver that oprel.testing.installed is about")
    group.addoption("--oprel-model", action="append", metavar="MODEL", help="a model to ask it with; may be repeated")
    group.addoption("--oprel-record", action="store_true", help="record cassettes anew, from real engines")
    group.addoption("--oprel-report", type=int, metavar="FD", help="where to tell each rule, for oprel drivers check")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "driver_contract: a test of the driver contract, from oprel.testing.contract.DriverContract"
    )
    from oprel.testing import fixtures

    config.pluginmanager.register(fixtures, "oprel-fixtures")
    descriptor = config.getoption("oprel_report")
    if descriptor is not None:
        from oprel.testing.reporter import Reporter

        config.pluginmanager.register(Reporter(descriptor), "oprel-report")
