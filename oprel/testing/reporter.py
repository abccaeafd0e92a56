"""What `oprel drivers check` hears from the process that checks: one line of JSON for each rule, on a pipe."""

from __future__ import annotations

import json
import os
from typing import Any

__all__ = ["Reporter"]


class Reporter:
    """A plugin of pytest. Tells which rule is being looked at, and what came of it."""

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
