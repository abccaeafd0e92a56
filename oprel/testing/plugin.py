"""The pytest plugin: a marker, and readable failures for the contract tests. Nothing runs by itself.

pytest imports this at every start, for everyone who has Oprel installed, so it imports nothing. The tests themselves
are a class to inherit from: `oprel.testing.contract.DriverContract`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

__all__ = ["pytest_configure", "pytest_load_initial_conftests"]

_RULES = ("checks", "contract", "driver_rules", "end_rules", "engine_rules")


def pytest_load_initial_conftests() -> None:
    """Before any conftest may import the rules, or their failures would show no values."""
    import pytest

    pytest.register_assert_rewrite(*(f"oprel.testing.{module}" for module in _RULES))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "driver_contract: a test of the driver contract, from oprel.testing.contract.DriverContract"
    )
