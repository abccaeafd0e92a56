"""From all that was given to one `Settings`."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from oprel.config.address import DEFAULT_PORT, parse_address, parse_port
from oprel.config.origins import Given, Origins, nearest
from oprel.config.places import config_dir, home_of, ollama_stores
from oprel.config.readers import Reader, as_text
from oprel.config.remotes import Origin, Remote, read_remotes
from oprel.config.settings import Settings
from oprel.config.table import SETTINGS
from oprel.errors import ConfigError

__all__ = ["load_settings"]


def load_settings(
    flags: Mapping[str, object] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Settings:
    """`flags` by setting name; None means not given. ConfigError names the setting, where it was read, and what may
    stand there."""
    environ = os.environ if environ is None else environ
    home = home_of(environ)
    values: dict[str, Any] = {
        "models_dir": home / ".oprel/models",
        "state_dir": home / ".oprel/state",
        "aliases_file": config_dir(environ) / "aliases.toml",
    }
    origins = Origins(flags or {}, environ, home, Path.cwd() if cwd is None else cwd)
    for level in reversed(origins.levels()):
        values.update(_read_level(level, home, below=values))
    values.setdefault("trees_dir", values["state_dir"].parent / "trees")
    for name in ("models_dir", "state_dir", "trees_dir"):
        values[name] = _absolute(values[name], origins.cwd)
    if "extra_models_dirs" not in values:
        values["extra_models_dirs"] = ollama_stores(environ, home, besides=values["models_dir"])
    values.pop("_address_port", None)
    return Settings(**values)


def _read_level(level: list[Given], home: Path, *, below: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for given in level:
        if given.key == "port":
            continue
        if given.key == "host":
            values.update(_read_host(given, below))
            continue
        setting = SETTINGS.get(given.key)
        if setting is None:
            raise ConfigError(f"{given.origin} is no setting{nearest(given.key)}")
        value = _read(given, setting.read, setting.wants, home)
        if setting.field == "api_keys":  # a key and a file of keys add up
            value = (*values.get("api_keys", ()), *value)
        if setting.field == "remotes":
            value = _with_remotes(below.get("remotes", ()), given, home)
        values[setting.field] = value
    for given in level:  # last: it beats a port that is part of the host
        if given.key == "port":
            values["port"] = _read(given, lambda value, _: parse_port(value), "a number from 0 to 65535", home)
            values["_address_port"] = False
    return values


def _with_remotes(below: tuple[Remote, ...], given: Given, home: Path) -> tuple[Remote, ...]:
    """Those of this place beside those of weaker ones. A name that both have is this place's whole: a key that the
    user's own file names never goes to an address that another file gives."""
    file = Path(given.origin)
    written_at = file.stat().st_mtime if file.is_file() else time.time()
    folder = file.parent.absolute() if file.is_file() else Path.cwd()
    origin = Origin(given.origin, folder, home, is_project=given.is_project, written_at=written_at)
    found = {remote.name: remote for remote in read_remotes(given.value, origin)}
    return (*found.values(), *(remote for remote in below if remote.name not in found))


def _read_host(given: Given, below: Mapping[str, Any]) -> dict[str, Any]:
    wants = "a host, host:port or URL"
    address = _read(given, lambda value, home: parse_address(as_text(value, home)), wants, Path())
    values: dict[str, Any] = {"host": address.host, "scheme": address.scheme}
    if address.port is not None:
        values |= {"port": address.port, "_address_port": True}
    elif below.get("_address_port"):
        # The port was part of the address that this one replaces.
        values |= {"port": DEFAULT_PORT, "_address_port": False}
    return values


def _read(given: Given, read: Reader, wants: str, home: Path) -> Any:
    try:
        return read(given.value, home)
    except (ValueError, TypeError) as error:
        shown = "the value" if given.key.startswith("api_key") else repr(given.value)
        why = f" ({error})" if isinstance(error, ValueError) and str(error) else ""
        raise ConfigError(f"{given.key}: {shown} from {given.origin} can't be used{why}: give {wants}") from error


def _absolute(path: Path, cwd: Path) -> Path:
    return path if path.is_absolute() else cwd / path
