"""curl, where it is at hand; `OPREL_TEST_REQUIRE_CURL=1` makes its absence a failure."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

__all__ = ["curl"]


def curl(*arguments: str) -> str:
    """What it prints. Skips the test where there's no curl."""
    found = shutil.which("curl")
    if found is None:
        if os.environ.get("OPREL_TEST_REQUIRE_CURL") == "1":
            pytest.fail("curl is not on PATH")
        pytest.skip("curl is not on PATH")
    command = [found, "--silent", "--show-error", "--fail-with-body", "--max-time", "60", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=90).stdout
