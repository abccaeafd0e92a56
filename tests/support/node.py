"""Node.js clients for tests: packages of an exact version, installed once into the tests' cache.

Without Node or without the package a test is skipped with the reason; with `OPREL_TEST_REQUIRE_NODE=1` it fails.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import pytest

from support.models import cache_dir

__all__ = ["node_package", "node_packages", "run_node"]

_INSTALL_LIMIT_S = 300
_RUN_LIMIT_S = 800


def node_package(name: str, version: str) -> Path:
    """A folder whose `node_modules` has the package."""
    return node_packages({name: version})


def node_packages(versions: Mapping[str, str]) -> Path:
    """A folder whose `node_modules` has all of them."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        _without("Node.js and npm are not on PATH")
    named = "-".join(f"{name}-{version}" for name, version in versions.items()).replace("/", "+")
    target = cache_dir() / f"node-{named}"
    with (cache_dir() / f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            _install(versions, target)
    return target


def _install(versions: Mapping[str, str], target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=cache_dir(), prefix="making-") as scratch:
        folder = Path(scratch) / "package"
        folder.mkdir()
        (folder / "package.json").write_text(json.dumps({"private": True, "dependencies": dict(versions)}))
        command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=_INSTALL_LIMIT_S, check=False
        )
        if done.returncode:
            _without(f"npm can't install {dict(versions)}: {done.stderr.strip()[-500:]}")
        folder.rename(target)


def run_node(script: Path, package: Path, *arguments: str) -> Any:
    """Runs a script (.mjs) beside the package; what it prints is JSON."""
    with tempfile.NamedTemporaryFile("w", dir=package, suffix=".mjs") as beside:
        beside.write(script.read_text("utf-8"))
        beside.flush()
        done = subprocess.run(
            ["node", beside.name, *arguments],
            cwd=package,
            capture_output=True,
            text=True,
            timeout=_RUN_LIMIT_S,
            check=False,
        )
    assert done.returncode == 0, f"node ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return json.loads(done.stdout)


def _without(reason: str) -> NoReturn:
    if os.environ.get("OPREL_TEST_REQUIRE_NODE") == "1":
        pytest.fail(reason)
    pytest.skip(reason)
