"""Settings, read in one place: flags, then `OPREL_*`, then the `OLLAMA_*` that means the same, then a project's
`oprel.toml`, then the user's `config.toml`, then these defaults.

A setting `a_b` is `--a-b` as a flag, `OPREL_A_B` in the environment, `a_b = …` in a file; the few that have another
name as well are in `_SETTINGS`, the one table that says where each comes from and how it is read.
"""

from __future__ import annotations

import math
import os
import re
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from oprel.durations import parse_duration
from oprel.errors import ConfigError
from oprel.remotes import Origin, Remote, read_remotes

__all__ = ["DEFAULT_PORT", "Address", "Settings", "config_dir", "load_settings", "parse_address", "parse_duration"]

DEFAULT_PORT = 11434


class Settings(BaseModel):
    """All that can be set. None: planned, or found. Times in seconds (`math.inf`: for ever), sizes in bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    scheme: str = "http"  # for clients of a server behind TLS
    models_dir: Path = Path("~/.oprel/models")
    extra_models_dirs: tuple[Path, ...] = ()  # other Ollama stores on this machine: read, never written
    state_dir: Path = Path("~/.oprel/state")
    aliases_file: Path | None = None
    driver: str = "auto"
    drivers: tuple[str, ...] = ()  # third parties' drivers that `auto` may choose
    llama_server: Path | None = None
    trees_dir: Path = Path("~/.oprel/trees")  # models that are folders
    vllm_python: Path | None = None  # an interpreter that has vLLM, or the `vllm` program
    vllm: dict[str, Any] = {}  # the table [vllm]: its driver's own options, checked by oprel.drivers.vllm
    preload: tuple[str, ...] = ()
    parallel: int | None = None
    context: int | None = None
    gpu_layers: int | None = None
    threads: int | None = None
    kv_cache_type: str | None = None
    chat_template: str | None = None  # for models that have none
    memory_limit_bytes: int | None = None
    keep_alive: float = 300.0
    max_loaded: int | None = None
    max_queue: int = 512
    load_timeout: float = 300.0
    stall_timeout: float = 60.0
    request_time_limit: float = 600.0  # wall clock of a generation without max_tokens
    drain_timeout: float = 30.0
    send_timeout: float = 60.0
    header_timeout: float = 10.0  # from a request's first byte to the end of its headers
    body_timeout: float = 30.0  # for a body to arrive, and one second more for each 16 KiB of it
    max_body_bytes: int = 32 * 1024 * 1024
    api_keys: tuple[str, ...] = ()
    allow_unauthenticated: bool = False
    origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()  # names that this server may be called by, beyond its own
    remotes: tuple[Remote, ...] = ()  # other servers, whose models have local names
    verbose: bool = False

    @property
    def keeps_for_ever(self) -> bool:
        return math.isinf(self.keep_alive)

    @property
    def base_url(self) -> str:
        """Where a client on this machine finds the server: an unspecified address becomes the loopback one."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(self.host, self.host)  # noqa: S104
        return f"{self.scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Address:
    """`port` None: not said. `path` starts with a slash or is empty; only clients use it."""

    host: str
    port: int | None
    scheme: str = "http"
    path: str = ""


def load_settings(
    flags: Mapping[str, object] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Settings:
    """`flags` by setting name; None means not given. ConfigError names the setting, where it was read, and what may
    stand there."""
    environ = os.environ if environ is None else environ
    home = _home(environ)
    values: dict[str, Any] = {
        "models_dir": home / ".oprel/models",
        "state_dir": home / ".oprel/state",
        "aliases_file": config_dir(environ) / "aliases.toml",
    }
    origins = _Origins(flags or {}, environ, home, Path.cwd() if cwd is None else cwd)
    for level in reversed(origins.levels()):
        values.update(_read_level(level, home, below=values))
    values.setdefault("trees_dir", values["state_dir"].parent / "trees")
    for name in ("models_dir", "state_dir", "trees_dir"):
        values[name] = _absolute(values[name], origins.cwd)
    if "extra_models_dirs" not in values:
        values["extra_models_dirs"] = _ollama_stores(environ, home, besides=values["models_dir"])
    values.pop("_address_port", None)
    return Settings(**values)


def parse_address(text: str) -> Address:
    """`HOST`, `HOST:PORT`, `:PORT`, an IPv6 address with or without brackets, or a URL; ValueError otherwise. A URL
    without a port means its scheme's own (80, 443), as it does for Ollama's clients."""
    text = text.strip().strip("\"'").strip()
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "http", text
    scheme = scheme.lower()
    if scheme not in ("http", "https"):
        raise ValueError(f"the scheme {scheme!r} is neither http nor https")
    hostport, slash, path = rest.partition("/")
    host, port = _split_port(hostport)
    if port is None and separator:
        port = 443 if scheme == "https" else 80
    if re.search(r"[\s@\\?#]", host):
        raise ValueError(f"{host!r} is not a host name")
    return Address(host=host, port=port, scheme=scheme, path=(slash + path).rstrip("/"))


def _split_port(hostport: str) -> tuple[str, int | None]:
    if hostport.startswith("["):
        host, bracket, rest = hostport[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError("a bracket is not closed")
        return host, _port_number(rest[1:]) if rest else None
    if hostport.count(":") > 1:  # an IPv6 address without brackets can't have a port
        return hostport, None
    host, colon, port = hostport.partition(":")
    return host, _port_number(port) if colon else None


def _port_number(text: object) -> int:
    if not re.fullmatch(r"\d{1,5}", str(text)) or int(str(text)) > 65535:
        raise ValueError(f"{text!r} is not a port")
    return int(str(text))


# How a setting is read. Each reader takes text (from a flag or the environment) or a value of TOML, and raises
# ValueError; what it wants is said by the sentence beside it in the table.

Reader = Callable[[Any, Path], Any]


def _text(value: Any, home: Path) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError
    return value.strip()


def _path(value: Any, home: Path) -> Path:
    text = value if isinstance(value, Path) else _text(value, home)
    if str(text) == "~" or str(text).startswith("~/"):
        return home / str(text)[2:]
    return Path(text)


def _whole(least: int, *, zero_means_planned: bool = False) -> Reader:
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


def _seconds(value: Any, home: Path) -> float:
    return parse_duration(value)


def _yes_or_no(value: Any, home: Path) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("0", "false", "no", "off", ""):
        return False
    raise ValueError


def _one_of(*choices: str) -> Reader:
    def read(value: Any, home: Path) -> str:
        word = str(value).strip().lower()
        if word not in choices:
            raise ValueError
        return word

    return read


def _words(value: Any, home: Path) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        raise ValueError
    return tuple(part.strip() for part in parts if part.strip())


def _paths(value: Any, home: Path) -> tuple[Path, ...]:
    parts = value.split(os.pathsep) if isinstance(value, str) else value
    return tuple(_path(part, home) for part in _words(list(parts), home))


_SIZE_UNITS = {"": 1, "b": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def _size(value: Any, home: Path) -> int:
    matched = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?)b?|b)?\s*", str(value).lower())
    if matched is None or isinstance(value, bool):
        raise ValueError
    number, unit, binary = matched.groups()
    factor = 1024 ** "_kmgt".index(unit) if unit and binary else _SIZE_UNITS[unit or ""]
    size = int(float(number) * factor)
    if size < 1:
        raise ValueError
    return size


def _table(value: Any, home: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError
    return value


def _key(value: Any, home: Path) -> tuple[str, ...]:
    keys = (value,) if isinstance(value, str) else tuple(value)
    keys = tuple(key.strip() for key in keys)
    if not keys or not all(re.fullmatch(r"[\x21-\x7e]+", key) for key in keys):
        raise ValueError
    return keys


def _key_file(value: Any, home: Path) -> tuple[str, ...]:
    path = _path(value, home)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"api_key_file: {path} can't be read: {error}") from error
    keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not keys:
        raise ConfigError(f"api_key_file: {path} holds no key: write one a line")
    return _key(keys, home)


def _by_hand(value: Any, home: Path) -> Any:
    raise NotImplementedError("read where its place is known")


@dataclass(frozen=True, slots=True)
class _Setting:
    """`names`: suffixes after `OPREL_`, the first found wins; `ollama`: the variable that means the same. `field` is
    where it ends up in Settings. `project`: whether a project's oprel.toml may set it: what runs programs or opens the
    server to others may not come from a folder that somebody else wrote."""

    field: str
    read: Reader
    wants: str
    names: tuple[str, ...] = ()
    ollama: str | None = None
    project: bool = True

    def variables(self, key: str) -> tuple[str, ...]:
        return (*(f"OPREL_{name}" for name in self.names), f"OPREL_{key.upper()}")


_COUNT = "a whole number, 1 or more"
_TIME = "a duration such as 30s, 5m or 1h30m, or a number of seconds; negative: for ever"
_PATH = "a path"

_SETTINGS: dict[str, _Setting] = {
    "models_dir": _Setting("models_dir", _path, _PATH, ("MODELS",), "OLLAMA_MODELS"),
    "extra_models_dirs": _Setting("extra_models_dirs", _paths, "a list of paths"),
    "state_dir": _Setting("state_dir", _path, _PATH, project=False),
    "aliases_file": _Setting("aliases_file", _path, _PATH),
    "driver": _Setting("driver", _text, "auto, or a driver's name (see `oprel drivers`)"),
    "drivers": _Setting("drivers", _words, "a list of drivers' names", project=False),
    "llama_server": _Setting("llama_server", _path, "the path of a llama-server program", project=False),
    "trees_dir": _Setting("trees_dir", _path, _PATH),
    "vllm_python": _Setting("vllm_python", _path, "the path of a Python with vLLM", project=False),
    "vllm": _Setting("vllm", _table, "a table [vllm] in the config file", project=False),
    "preload": _Setting("preload", _words, "a list of models' names", ("MODEL",)),
    "parallel": _Setting(
        "parallel", _whole(1, zero_means_planned=True), _COUNT, ("NUM_PARALLEL",), "OLLAMA_NUM_PARALLEL"
    ),
    "context": _Setting(
        "context",
        _whole(4, zero_means_planned=True),
        "a number of tokens, 4 or more",
        ("CONTEXT_LENGTH",),
        "OLLAMA_CONTEXT_LENGTH",
    ),
    "gpu_layers": _Setting("gpu_layers", _whole(0), "a whole number; 0: none on the GPU"),
    "threads": _Setting("threads", _whole(1, zero_means_planned=True), _COUNT),
    "kv_cache_type": _Setting(
        "kv_cache_type", _one_of("f16", "q8_0", "q4_0"), "f16, q8_0 or q4_0", ollama="OLLAMA_KV_CACHE_TYPE"
    ),
    "chat_template": _Setting("chat_template", _text, "a template's name, or its text"),
    "memory_limit": _Setting("memory_limit_bytes", _size, "a size such as 6GiB", ("MEMORY_LIMIT_BYTES",)),
    "keep_alive": _Setting("keep_alive", _seconds, _TIME, ollama="OLLAMA_KEEP_ALIVE"),
    "max_loaded": _Setting(
        "max_loaded",
        _whole(1, zero_means_planned=True),
        _COUNT,
        ("MAX_LOADED_MODELS",),
        "OLLAMA_MAX_LOADED_MODELS",
    ),
    "max_queue": _Setting("max_queue", _whole(1), _COUNT, ollama="OLLAMA_MAX_QUEUE"),
    "load_timeout": _Setting("load_timeout", _seconds, _TIME, ollama="OLLAMA_LOAD_TIMEOUT"),
    "stall_timeout": _Setting("stall_timeout", _seconds, _TIME),
    "request_time_limit": _Setting("request_time_limit", _seconds, _TIME),
    "drain_timeout": _Setting("drain_timeout", _seconds, _TIME),
    "send_timeout": _Setting("send_timeout", _seconds, _TIME),
    "header_timeout": _Setting("header_timeout", _seconds, _TIME),
    "body_timeout": _Setting("body_timeout", _seconds, _TIME),
    "max_body": _Setting("max_body_bytes", _size, "a size such as 32MiB", ("MAX_BODY_BYTES",)),
    "api_key": _Setting("api_keys", _key, "a key of visible ASCII characters", project=False),
    "api_key_file": _Setting("api_keys", _key_file, "a file with one key a line", project=False),
    "allow_unauthenticated": _Setting("allow_unauthenticated", _yes_or_no, "true or false", project=False),
    "origins": _Setting(
        "origins", _words, "a list of origins such as https://app.example", (), "OLLAMA_ORIGINS", project=False
    ),
    "allowed_hosts": _Setting("allowed_hosts", _words, "a list of host names", project=False),
    "remote": _Setting("remotes", _by_hand, "tables [remote.NAME]"),
    "verbose": _Setting("verbose", _yes_or_no, "true or false"),
}


_FLAG_NAMES = {"preload": "--model"}


@dataclass(frozen=True, slots=True)
class _Given:
    """One value as it was found: `origin` is what an error message calls the place."""

    key: str
    value: object
    origin: str
    is_project: bool = False


@dataclass(frozen=True, slots=True)
class _Origins:
    flags: Mapping[str, object]
    environ: Mapping[str, str]
    home: Path
    cwd: Path

    def levels(self) -> list[list[_Given]]:
        """Strongest first."""
        return [
            list(self._flags()),
            list(self._oprel_variables()),
            list(self._ollama_variables()),
            list(_file(self.cwd / "oprel.toml", project=True)),
            list(_file(self._user_file(), project=False)),
        ]

    def _flags(self) -> Iterator[_Given]:
        for key, value in self.flags.items():
            if value is not None:
                yield _Given(key, value, _FLAG_NAMES.get(key) or f"--{key.replace('_', '-')}")

    def _oprel_variables(self) -> Iterator[_Given]:
        for key in ("host", "port"):
            if value := self.environ.get(f"OPREL_{key.upper()}"):
                yield _Given(key, value, f"OPREL_{key.upper()}")
        for key, setting in _SETTINGS.items():
            for variable in setting.variables(key):
                if value := self.environ.get(variable):
                    yield _Given(key, value, variable)
                    break

    def _ollama_variables(self) -> Iterator[_Given]:
        # An address is one thing: where Oprel's own variable says the host, Ollama's is not looked at.
        if (value := self.environ.get("OLLAMA_HOST")) and not self.environ.get("OPREL_HOST"):
            yield _Given("host", value, "OLLAMA_HOST")
        for key, setting in _SETTINGS.items():
            if setting.ollama and (value := self.environ.get(setting.ollama)):
                yield _Given(key, value, setting.ollama)

    def _user_file(self) -> Path:
        if named := self.environ.get("OPREL_CONFIG"):
            path = _path(named, self.home)
            if not path.is_file():
                raise ConfigError(f"OPREL_CONFIG names {path}, and there is no such file")
            return path
        return config_dir(self.environ) / "config.toml"


def config_dir(environ: Mapping[str, str] | None = None) -> Path:
    """Where the user's `config.toml` and `aliases.toml` live."""
    environ = os.environ if environ is None else environ
    base = environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else _home(environ) / ".config") / "oprel"


def _file(path: Path, *, project: bool) -> Iterator[_Given]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path} can't be read as TOML: {error}") from error
    for key, value in table.items():
        setting = _SETTINGS.get(key)
        if setting is None and key not in ("host", "port"):
            raise ConfigError(f"{key!r} in {path} is no setting{_nearest(key)}")
        if project and (setting is not None and not setting.project):
            raise ConfigError(
                f"{key!r} can't be set by a project ({path}): move it to {config_dir()}/config.toml, "
                "where only you write"
            )
        yield _Given(key, value, str(path), project)


def _nearest(key: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(key, [*_SETTINGS, "host", "port"], n=1)
    return (
        f": did you mean {near[0]!r}?" if near else f": choose from {', '.join(sorted([*_SETTINGS, 'host', 'port']))}"
    )


def _read_level(level: list[_Given], home: Path, *, below: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for given in level:
        if given.key == "port":
            continue
        if given.key == "host":
            values.update(_read_host(given, below))
            continue
        setting = _SETTINGS.get(given.key)
        if setting is None:
            raise ConfigError(f"{given.origin} is no setting{_nearest(given.key)}")
        if setting.field == "remotes":
            values["remotes"] = _with_remotes(below.get("remotes", ()), given, home)
            continue
        value = _read(given, setting.read, setting.wants, home)
        if setting.field == "api_keys":  # a key and a file of keys add up
            value = (*values.get("api_keys", ()), *value)
        values[setting.field] = value
    for given in level:  # last: it beats a port that is part of the host
        if given.key == "port":
            values["port"] = _read(given, lambda value, _: _port_number(value), "a number from 0 to 65535", home)
            values["_address_port"] = False
    return values


def _with_remotes(below: tuple[Remote, ...], given: _Given, home: Path) -> tuple[Remote, ...]:
    """Those of this place beside those of weaker ones. A name that both have is this place's whole: a key that the
    user's own file names never goes to an address that another file gives."""
    file = Path(given.origin)
    written_at = file.stat().st_mtime if file.is_file() else time.time()
    folder = file.parent.absolute() if file.is_file() else Path.cwd()
    origin = Origin(given.origin, folder, home, is_project=given.is_project, written_at=written_at)
    found = {remote.name: remote for remote in read_remotes(given.value, origin)}
    return (*found.values(), *(remote for remote in below if remote.name not in found))


def _read_host(given: _Given, below: Mapping[str, Any]) -> dict[str, Any]:
    wants = "a host, host:port or URL"
    address = _read(given, lambda value, home: parse_address(_text(value, home)), wants, Path())
    values: dict[str, Any] = {"host": address.host, "scheme": address.scheme}
    if address.port is not None:
        values |= {"port": address.port, "_address_port": True}
    elif below.get("_address_port"):
        # The port was part of the address that this one replaces.
        values |= {"port": DEFAULT_PORT, "_address_port": False}
    return values


def _read(given: _Given, read: Reader, wants: str, home: Path) -> Any:
    try:
        return read(given.value, home)
    except (ValueError, TypeError) as error:
        shown = "the value" if given.key.startswith("api_key") else repr(given.value)
        why = f" ({error})" if isinstance(error, ValueError) and str(error) else ""
        raise ConfigError(f"{given.key}: {shown} from {given.origin} can't be used{why}: give {wants}") from error


def _home(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("HOME") or Path.home())


def _absolute(path: Path, cwd: Path) -> Path:
    return path if path.is_absolute() else cwd / path


def _ollama_stores(environ: Mapping[str, str], home: Path, *, besides: Path) -> tuple[Path, ...]:
    """Stores that Ollama left on this machine, as far as this user may read them."""
    candidates = [home / ".ollama/models"]
    if named := environ.get("OLLAMA_MODELS"):
        candidates.insert(0, _path(named, home))
    if sys.platform == "linux":  # where its installer's service keeps them
        candidates += [Path("/usr/share/ollama/.ollama/models"), Path("/var/lib/ollama/models")]
    found = dict.fromkeys(path for path in candidates if os.access(path / "manifests", os.R_OK | os.X_OK))
    return tuple(path for path in found if path != besides)
