"""The pytest plugin: a marker, and readable failures for the contract tests. Nothing runs by itself.

pytest imports this at every start, for everyone who has Oprel installed, so it imports nothing. The tests themselves
are a class to inherit from: `oprel.testing.contract.DriverContract`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

__all__ = ["pytest_configure"]


def pytest_configure(config: pytest.Config) -> None:
    import pytest

    pytest.register_assert_rewrite("oprel.testing.contract")
    config.addinivalue_line(
        "markers", "driver_contract: a test of the driver contract, from oprel.testing.contract.DriverContract"
    )
