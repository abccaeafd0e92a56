"""A server that was cut off: the next one reads files again before it loads them, and one that ended doesn't."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from support.tiny_gguf import write_tiny_gguf

from oprel.config import Settings
from oprel.dialects.services import Services
from oprel.scheduler import Scheduler
from oprel.server.lifetime import Lifetime
from oprel.sources import Puller
from oprel.store import Catalog, Store
from oprel.store.running_mark import RunningMark
from oprel.testing import ScriptedDriver, ScriptedRegistry

_CUT_OFF = (
    "import os, sys; from pathlib import Path; from oprel.store.running_mark import RunningMark; "
    "RunningMark(Path(sys.argv[1]) / 'running').begin(); os._exit(9)"
)


def run_server(state: Path) -> bool:
    """Starts and stops one; whether it knew the model's files when it ran."""
    store = Store(state.parent / "models", state_dir=state)
    catalog, settings = Catalog(store), Settings(drain_timeout=0.0)
    scheduler = Scheduler(catalog=catalog, registry=ScriptedRegistry(ScriptedDriver()), settings=settings)
    mark = RunningMark(state / "running")
    services = Services(settings, catalog, scheduler, Puller(catalog), "0", mark=mark)

    async def serve() -> bool:
        async with asyncio.timeout(20), Lifetime(services):
            return catalog.are_files_known(catalog.find("m"))

    return asyncio.run(serve())


def test_files_are_read_again_after_an_unclean_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = tmp_path / "state"
    store = Store(tmp_path / "models", state_dir=state)
    store.import_gguf(write_tiny_gguf(tmp_path / "m.gguf"), "m")
    assert run_server(state)
    assert run_server(state), "a clean end is none to remember"
    assert subprocess.run([sys.executable, "-c", _CUT_OFF, str(state)], check=False).returncode == 9
    assert not run_server(state)
    assert "was cut off" in caplog.text
    again = Catalog(Store(tmp_path / "models", state_dir=state))
    again.check_files(again.find("m"))
    assert run_server(state)
