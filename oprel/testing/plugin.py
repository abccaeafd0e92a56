"""The pytest plugin: what `oprel.testing` adds to pytest, which is a marker and nothing that runs by itself.

pytest imports it at every start, for everyone who has Oprel installed, so it imports nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

__all__ = ["pytest_configure"]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "driver_contract: a test of the driver contract, from oprel.testing.contract.DriverContract"
    )
