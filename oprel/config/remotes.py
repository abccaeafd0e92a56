"""Remote servers as settings: the `[remote.NAME]` tables, read strictly. Keys are named here, never held."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from oprel.config.durations import parse_duration
from oprel.errors import ConfigError

__all__ = ["CAPABILITIES", "SERVERS", "Origin", "Remote", "read_remotes"]

# Fields of `schema.Capabilities` (a test compares) that a remote can be said to have.
CAPABILITIES = (
    "chat", "complete", "embed", "vision", "audio", "tools", "thinking", "json_schema", "grammar", "logprobs", "infill",
)  # fmt: skip
SERVERS = ("auto", "openai", "oprel", "llama_server", "vllm", "sglang")

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}|[0-9A-Fa-f:.]{2,45}")
_PATH = re.compile(r"(/[A-Za-z0-9._~!$&'()*+,;=:@%-]+)*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_KEY = re.compile(r"[\x21-\x7e]{1,4096}")
_HERE = ("127.0.0.1", "localhost", "::1")
_MAX_KEY_FILE_BYTES = 64 * 1024
_DEFAULT_PATH = "/v1"


@dataclass(frozen=True, slots=True)
class Remote:
    """One server, or several that serve the same models, behind local names.

    `urls` are base URLs, as OpenAI's clients take them, without a slash at the end. `models` are (local name, the
    remote's id) pairs; None: what the remote lists. `context_tokens`, `capabilities`: None where the remote may tell.
    `timeout_s` bounds the time without progress. `slots` are requests at once for each URL. `configured_at` is Unix
    time. The key itself is read when it is used, by `read_key`.
    """

    name: str
    urls: tuple[str, ...]
    models: tuple[tuple[str, str], ...] | None = None
    key_env: str | None = None
    key_file: Path | None = None
    context_tokens: int | None = None
    capabilities: frozenset[str] | None = None
    verify: bool = True
    ca_file: Path | None = None
    timeout_s: float | None = None
    slots: int = 32
    server: str = "auto"
    configured_at: float = 0.0

    @property
    def key_place(self) -> str | None:
        """Where its key comes from, for people."""
        if self.key_env is not None:
            return f"the environment variable {self.key_env}"
        return None if self.key_file is None else f"the file {self.key_file}"

    def read_key(self, environ: Mapping[str, str] | None = None) -> str | None:
        """The key; None where none is configured. ConfigError says where it should be, never what is there."""
        if self.key_env is not None:
            found = (os.environ if environ is None else environ).get(self.key_env, "").strip()
            why = "isn't set" if not found else "holds characters that no key has"
        elif self.key_file is not None:
            found, why = _first_line(self.key_file)
        else:
            return None
        if not _KEY.fullmatch(found):
            raise ConfigError(f"the key of remote {self.name!r} is missing: {self.key_place} {why}")
        return found


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a table was found: `place` is what errors call it, `folder` what its relative paths start from.
    `is_project`: a project's file, which somebody else may have written."""

    place: str
    folder: Path
    home: Path
    is_project: bool = False
    written_at: float = 0.0


def read_remotes(table: object, origin: Origin) -> tuple[Remote, ...]:
    """All `[remote.NAME]` tables of one place. ConfigError names the setting, the place, and what may stand there."""
    if not isinstance(table, Mapping):
        raise ConfigError(f"remote from {origin.place} can't be used: write tables [remote.NAME] in config.toml")
    return tuple(_remote(str(name), fields, origin) for name, fields in table.items())


def _remote(name: str, fields: object, origin: Origin) -> Remote:
    where = f"remote.{name}"
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{where} in {origin.place}: a remote's name has letters, digits, '_' and '-' only")
    if not isinstance(fields, Mapping):
        raise ConfigError(f"{where} in {origin.place} is no table: write [remote.{name}] and its url below")
    values: dict[str, Any] = {}
    for key, value in fields.items():
        field = _FIELDS.get(key)
        if field is None:
            near = get_close_matches(key, _FIELDS, n=1)
            hint = f": did you mean {near[0]!r}?" if near else f": choose from {', '.join(sorted(_FIELDS))}"
            raise ConfigError(f"'{where}.{key}' in {origin.place} is no setting{hint}")
        if origin.is_project and field.is_private:
            raise ConfigError(
                f"'{where}.{key}' can't be set by a project ({origin.place}): move the remote to your own config.toml"
            )
        values[field.name] = _value(f"{where}.{key}", field, value, origin)
    return _checked(where, name, fields, values, origin)


def _checked(where: str, name: str, fields: Mapping[str, Any], values: dict[str, Any], origin: Origin) -> Remote:
    if ("url" in fields) == ("urls" in fields):
        raise ConfigError(f"{where} in {origin.place} needs either url or urls (replicas of the same models)")
    if "key_env" in fields and "key_file" in fields:
        raise ConfigError(f"{where} in {origin.place} has key_env and key_file: give one of them")
    if not values.get("verify", True) and "ca_file" in fields:
        raise ConfigError(f"{where} in {origin.place} has ca_file and verify = false: give one of them")
    return Remote(name, configured_at=origin.written_at, **values)


def _value(setting: str, field: _Field, value: object, origin: Origin) -> Any:
    try:
        return field.read(value, origin)
    except (ValueError, TypeError) as error:
        why = f" ({error})" if str(error) else ""
        # What stands where a key is named may be the key itself, written in the wrong place.
        shown = "the value" if field.name in ("key_env", "urls") else repr(value)
        raise ConfigError(f"{setting}: {shown} from {origin.place} can't be used{why}: give {field.wants}") from None


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError
    return value.strip()


def _url(value: object, origin: Origin) -> str:
    """Normalized; without a path it is OpenAI's own, /v1."""
    text = _text(value)
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ValueError("it can't be read") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("it is no http or https URL")
    if parts.username is not None or parts.password is not None:
        raise ValueError("a key in a URL ends up in logs; name it with key_env or key_file")
    if origin.is_project and parts.hostname not in _HERE:
        raise ValueError("a project's file, which somebody else may have written, can only name this machine")
    if parts.query or parts.fragment:
        raise ValueError("it has a query or a fragment")
    path = parts.path.rstrip("/")
    if not _HOST.fullmatch(parts.hostname) or not _PATH.fullmatch(path) or port == 0:
        raise ValueError("its host, port or path can't be used")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}{'' if port is None else f':{port}'}{path or _DEFAULT_PATH}"


def _one_url(value: object, origin: Origin) -> tuple[str, ...]:
    return (_url(value, origin),)


def _urls(value: object, origin: Origin) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise ValueError
    return tuple(dict.fromkeys(_url(each, origin) for each in value))


def _models(value: object, _: Origin) -> tuple[tuple[str, str], ...]:
    if isinstance(value, Mapping):
        pairs = [(_text(local), _text(remote)) for local, remote in value.items()]
    elif isinstance(value, list | tuple):
        pairs = [("", _text(remote)) for remote in value]
    else:
        raise ValueError
    if not pairs or any(len(remote) > 500 or not remote.isprintable() for _, remote in pairs):
        raise ValueError
    return tuple(pairs)


def _variable(value: object, _: Origin) -> str:
    text = _text(value)
    if not _VARIABLE.fullmatch(text):
        raise ValueError
    return text


def _path(value: object, origin: Origin) -> Path:
    text = _text(value)
    path = origin.home / text[2:] if text.startswith("~/") else Path(text)
    return path if path.is_absolute() else origin.folder / path


def _whole(least: int, most: int) -> Callable[[object, Origin], int]:
    def read(value: object, _: Origin) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError
        return value

    return read


def _seconds(value: object, _: Origin) -> float:
    seconds = parse_duration(value)
    if not 0 < seconds < math.inf:
        raise ValueError
    return seconds


def _truth(value: object, _: Origin) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _capabilities(value: object, _: Origin) -> frozenset[str]:
    if not isinstance(value, list | tuple) or not value or not set(value).issubset(CAPABILITIES):
        raise ValueError
    return frozenset(value)


def _server(value: object, _: Origin) -> str:
    if value not in SERVERS:
        raise ValueError
    return str(value)


@dataclass(frozen=True, slots=True)
class _Field:
    """`name` in Remote. `is_private`: not for a project's file, which could send the user's secrets anywhere."""

    name: str
    read: Callable[[Any, Origin], Any]
    wants: str
    is_private: bool = False


def _listed(words: Iterable[str]) -> str:
    return ", ".join(words)


_FIELDS: dict[str, _Field] = {
    "url": _Field("urls", _one_url, "a base URL such as https://host:8000/v1, without a key in it"),
    "urls": _Field("urls", _urls, "a list of base URLs such as https://host:8000/v1, without keys in them"),
    "models": _Field("models", _models, "a list of the remote's ids, or a table of local names and ids"),
    "key_env": _Field("key_env", _variable, "the name of an environment variable, not the key itself", is_private=True),
    "key_file": _Field("key_file", _path, "the path of a file with the key in its first line", is_private=True),
    "context": _Field("context_tokens", _whole(4, 2**31 - 1), "a number of tokens, 4 or more"),
    "capabilities": _Field("capabilities", _capabilities, f"a list out of {_listed(CAPABILITIES)}"),
    "verify": _Field("verify", _truth, "true or false", is_private=True),
    "ca_file": _Field("ca_file", _path, "the path of a file of certificates (PEM)", is_private=True),
    "timeout": _Field("timeout_s", _seconds, "a duration such as 30s, or a number of seconds"),
    "slots": _Field("slots", _whole(1, 4096), "a number of requests at once, 1 to 4096"),
    "server": _Field("server", _server, _listed(SERVERS)),
}


def _first_line(path: Path) -> tuple[str, str]:
    """The first line that isn't empty, and what is wrong with the file if there is none that can be a key."""
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_KEY_FILE_BYTES).decode("ascii", "replace")
    except OSError as error:
        return "", f"can't be read: {error.strerror or 'it is no file'}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[0], "holds characters that no key has") if lines else ("", "is empty")
