"""The fixtures of the pytest plugin."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from oprel.testing.cassette_server import OpenCassette

__all__ = ["oprel_cassette"]


@pytest.fixture
def oprel_cassette(request: pytest.FixtureRequest) -> Generator[OpenCassette, None, None]:
    """`oprel_cassette(path, pace=0)` opens a cassette and is a server that plays it, on a real socket, until the test
    ends: `.url`, `.openai_url`. `path` is taken from the test file's folder. With `--oprel-record`, real engines
    of the models that are installed answer, and the cassette is written anew."""
    from contextlib import ExitStack

    from oprel.testing.cassette_server import opened

    with ExitStack() as stack:
        is_recording = bool(request.config.getoption("oprel_record"))
        yield opened(stack, folder=request.path.parent, is_recording=is_recording)
