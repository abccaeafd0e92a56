"""How a value is read. Each reader takes text (from a flag or the environment) or a value of TOML, and raises
ValueError; what it wants is said by the sentence beside it in the table."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from oprel.config.durations import parse_duration
from oprel.errors import ConfigError

__all__ = [
    "Reader",
    "as_key",
    "as_key_file",
    "as_one_of",
    "as_path",
    "as_paths",
    "as_seconds",
    "as_size",
    "as_table",
    "as_texts",
    "as_text",
    "as_whole",
    "as_words",
    "as_yes_or_no",
]

Reader = Callable[[Any, Path], Any]


def as_text(value: Any, home: Path) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError
    return value.strip()


def as_path(value: Any, home: Path) -> Path:
    text = value if isinstance(value, Path) else as_text(value, home)
    if str(text) == "~" or str(text).startswith("~/"):
        return home / str(text)[2:]
    return Path(text)


def as_whole(least: int, *, zero_means_planned: bool = False) -> Reader:
    def read(value: Any, home: Path) -> int | None:
        if isinstance(value, bool) or not re.fullmatch(r"\s*\d{1,18}\s*", str(value)):
            raise ValueError
        number = int(value)
        if zero_means_planned and number == 0:
            return None
        if number < least:
            raise ValueError
        return number

    return read


def as_seconds(value: Any, home: Path) -> float:
    return parse_duration(value)


def as_yes_or_no(value: Any, home: Path) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("0", "false", "no", "off", ""):
        return False
    raise ValueError


def as_one_of(*choices: str) -> Reader:
    def read(value: Any, home: Path) -> str:
        word = str(value).strip().lower()
        if word not in choices:
            raise ValueError
        return word

    return read


def as_words(value: Any, home: Path) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        raise ValueError
    return tuple(part.strip() for part in parts if part.strip())


def as_paths(value: Any, home: Path) -> tuple[Path, ...]:
    parts = value.split(os.pathsep) if isinstance(value, str) else value
    return tuple(as_path(part, home) for part in as_words(list(parts), home))


_SIZE_UNITS = {"": 1, "b": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def as_size(value: Any, home: Path) -> int:
    matched = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?)b?|b)?\s*", str(value).lower())
    if matched is None or isinstance(value, bool):
        raise ValueError
    number, unit, binary = matched.groups()
    factor = 1024 ** "_kmgt".index(unit) if unit and binary else _SIZE_UNITS[unit or ""]
    size = int(float(number) * factor)
    if size < 1:
        raise ValueError
    return size


def as_table(value: Any, home: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError
    return value


def as_texts(value: Any, home: Path) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) and text.strip() for text in value.values()):
        raise ValueError
    return {name: text.strip() for name, text in value.items()}


def as_key(value: Any, home: Path) -> tuple[str, ...]:
    keys = (value,) if isinstance(value, str) else tuple(value)
    keys = tuple(key.strip() for key in keys)
    if not keys or not all(re.fullmatch(r"[\x21-\x7e]+", key) for key in keys):
        raise ValueError
    return keys


def as_key_file(value: Any, home: Path) -> tuple[str, ...]:
    path = as_path(value, home)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"api_key_file: {path} can't be read: {error}") from error
    keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not keys:
        raise ConfigError(f"api_key_file: {path} holds no key: write one a line")
    return as_key(keys, home)
