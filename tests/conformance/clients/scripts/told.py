"""Runs a script's calls and prints what came of each, so that one that fails hides no other."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

__all__ = ["Calls"]


class Calls:
    def __init__(self) -> None:
        self._results: dict[str, Any] = {}
        self._errors: dict[str, list[Any]] = {}

    def run(self, name: str, call: Callable[[], Any]) -> None:
        """Keeps the result, which JSON can hold, or the error: its class, its status if it has one, its words."""
        try:
            self._results[name] = call()
        except Exception as error:
            self._errors[name] = [type(error).__name__, getattr(error, "status_code", None), str(error)[:500]]

    def print(self) -> None:
        print(json.dumps({"results": self._results, "errors": self._errors}))
