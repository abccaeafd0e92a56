"""The pytest plugin: what `oprel.testing` adds to pytest. Nothing of it runs by itself.

pytest imports it at every start, for everyone who has Oprel installed, so it imports nothing heavy.

| adds | for |
|---|---|
| marker `driver_contract` | tests from `oprel.testing.contract.DriverContract` |
| fixture `oprel_cassette` | a server that plays a recorded engine (`oprel.testing.cassette`) |
| option `--oprel-record` | records the cassettes of the tests that run anew, from real engines |
| options `--oprel-driver`, `--oprel-model` | the driver that `oprel.testing.installed` is about |
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from oprel.testing.cassette_server import OpenCassette

__all__ = ["oprel_cassette", "pytest_addoption", "pytest_configure"]

pytest.register_assert_rewrite("oprel.testing.contract", "oprel.testing.served", "oprel.testing.installed")


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
    descriptor = config.getoption("oprel_report", None)
    if descriptor is not None:
        config.pluginmanager.register(_Reporter(descriptor), "oprel-report")


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


class _Reporter:
    """Tells each rule of the contract on a pipe, as a line of JSON, when it is known."""

    def __init__(self, descriptor: int) -> None:
        self._pipe = os.fdopen(descriptor, "w", encoding="utf-8")
        self._seconds = 0.0

    def pytest_runtest_logstart(self, nodeid: str, location: object) -> None:
        self._seconds = 0.0
        self._tell({"running": _rule(nodeid)[1]})

    def pytest_runtest_logreport(self, report: Any) -> None:
        self._seconds += report.duration
        if report.when == "call" or report.outcome != "passed":
            group, text = _rule(report.nodeid)
            outcome = {"passed": "holds", "failed": "fails", "skipped": "skipped"}[report.outcome]
            seconds = round(self._seconds, 3)
            told = {"group": group, "text": text, "outcome": outcome, "detail": _detail(report), "seconds": seconds}
            self._tell(told)

    def pytest_sessionfinish(self) -> None:
        self._pipe.close()

    def _tell(self, told: dict[str, Any]) -> None:
        self._pipe.write(json.dumps(told) + "\n")
        self._pipe.flush()


def _rule(nodeid: str) -> tuple[str, str]:
    """The group and the sentence that a test's name is."""
    _, class_name, test = nodeid.split("::")
    name, _, parameters = test.partition("[")
    text = name.removeprefix("test_").replace("_", " ").replace("openai", "OpenAI:", 1).replace("ollama", "Ollama:", 1)
    what = f" ({parameters.rstrip(']')})" if parameters else ""
    return class_name.removeprefix("Test").lower(), f"{text}{what}"


def _detail(report: Any) -> str:
    if report.outcome == "passed":
        return ""
    if report.outcome == "skipped":
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    return (crash.message if crash is not None else str(report.longrepr)).splitlines()[0]
