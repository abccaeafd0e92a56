"""`keep_alive` and timestamps."""

from __future__ import annotations

import math
import time

import pytest

from oprel.dialects.ollama.durations import FOREVER_S, created_at, keep_alive, local_time
from oprel.dialects.ollama.errors import Refusal


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        (0, 0.0),
        (5, 5.0),
        (0.5, 0.5),
        (-1, math.inf),
        (1e300, math.inf),
        ("10m", 600.0),
        ("1h30m", 5400.0),
        ("1.5h", 5400.0),
        (".5s", 0.5),
        ("300ms", 0.3),
        ("7us", 7e-6),
        ("7µs", 7e-6),
        ("0", 0.0),
        ("0s", 0.0),
        ("+2s", 2.0),
        ("-1m", math.inf),
        ("-1s", math.inf),
    ],
)
def test_what_keep_alive_means(value: object, seconds: float | None) -> None:
    assert keep_alive(value) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("5", 'time: missing unit in duration "5"'),
        ("-1", 'time: missing unit in duration "-1"'),
        ("", 'time: invalid duration ""'),
        ("x", 'time: invalid duration "x"'),
        (".", 'time: invalid duration "."'),
        ("1d", 'time: unknown unit "d" in duration "1d"'),
        ("9999999h", 'time: invalid duration "9999999h"'),
        (True, "Unsupported type: 'bool'"),
        ({}, "Unsupported type: 'map[string]interface {}'"),
        ([], "Unsupported type: '[]interface {}'"),
    ],
)
def test_what_keep_alive_refuses(value: object, text: str) -> None:
    with pytest.raises(Refusal) as refused:
        keep_alive(value)
    assert (refused.value.row.status, str(refused.value)) == (400, text)


def test_created_at_is_utc_with_nanoseconds_trimmed() -> None:
    assert created_at(1_700_000_000_123_456_789) == "2023-11-14T22:13:20.123456789Z"
    assert created_at(1_700_000_000_120_000_000) == "2023-11-14T22:13:20.12Z"
    assert created_at(1_700_000_001_000_000_000) == "2023-11-14T22:13:21Z"
    assert created_at(1_700_000_000_000_000_001) == "2023-11-14T22:13:20.000000001Z"


def test_local_time_has_the_zones_offset(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        monkeypatch.setenv("TZ", "XYZ+7")
        time.tzset()
        assert local_time(1_700_000_000.25) == "2023-11-14T15:13:20.25-07:00"
        monkeypatch.setenv("TZ", "UTC")
        time.tzset()
        assert local_time(1_700_000_000) == "2023-11-14T22:13:20Z"
        assert local_time(1_700_000_000 + FOREVER_S).startswith("2316-")
    finally:
        monkeypatch.undo()
        time.tzset()
