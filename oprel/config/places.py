"""Folders on this machine: the user's home, config, and the stores that Ollama left."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from oprel.config.readers import as_path

__all__ = ["config_dir", "home_of", "ollama_stores"]


def config_dir(environ: Mapping[str, str] | None = None) -> Path:
    """Where the user's `config.toml` and `aliases.toml` live."""
    environ = os.environ if environ is None else environ
    base = environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else home_of(environ) / ".config") / "oprel"


def home_of(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("HOME") or Path.home())


def ollama_stores(environ: Mapping[str, str], home: Path, *, besides: Path) -> tuple[Path, ...]:
    """Stores that Ollama left on this machine, as far as this user may read them."""
    candidates = [home / ".ollama/models"]
    if named := environ.get("OLLAMA_MODELS"):
        candidates.insert(0, as_path(named, home))
    if sys.platform == "linux":  # where its installer's service keeps them
        candidates += [Path("/usr/share/ollama/.ollama/models"), Path("/var/lib/ollama/models")]
    found = dict.fromkeys(path for path in candidates if os.access(path / "manifests", os.R_OK | os.X_OK))
    return tuple(path for path in found if path != besides)
