"""What was given, and where: flags, variables, files, strongest first."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from oprel.config.places import config_dir
from oprel.config.readers import as_path
from oprel.config.table import SETTINGS
from oprel.errors import ConfigError

__all__ = ["Given", "Origins", "nearest"]

_FLAG_NAMES = {"preload": "--model"}


@dataclass(frozen=True, slots=True)
class Given:
    """One value as it was found: `origin` is what an error message calls the place."""

    key: str
    value: object
    origin: str
    is_project: bool = False


@dataclass(frozen=True, slots=True)
class Origins:
    flags: Mapping[str, object]
    environ: Mapping[str, str]
    home: Path
    cwd: Path

    def levels(self) -> list[list[Given]]:
        """Strongest first."""
        return [
            list(self._flags()),
            list(self._oprel_variables()),
            list(self._ollama_variables()),
            list(_file(self.cwd / "oprel.toml", project=True)),
            list(_file(self._user_file(), project=False)),
        ]

    def _flags(self) -> Iterator[Given]:
        for key, value in self.flags.items():
            if value is not None:
                yield Given(key, value, _FLAG_NAMES.get(key) or f"--{key.replace('_', '-')}")

    def _oprel_variables(self) -> Iterator[Given]:
        for key in ("host", "port"):
            if value := self.environ.get(f"OPREL_{key.upper()}"):
                yield Given(key, value, f"OPREL_{key.upper()}")
        for key, setting in SETTINGS.items():
            for variable in setting.variables(key):
                if value := self.environ.get(variable):
                    yield Given(key, value, variable)
                    break

    def _ollama_variables(self) -> Iterator[Given]:
        # An address is one thing: where Oprel's own variable says the host, Ollama's is not looked at.
        if (value := self.environ.get("OLLAMA_HOST")) and not self.environ.get("OPREL_HOST"):
            yield Given("host", value, "OLLAMA_HOST")
        for key, setting in SETTINGS.items():
            if setting.ollama and (value := self.environ.get(setting.ollama)):
                yield Given(key, value, setting.ollama)

    def _user_file(self) -> Path:
        if named := self.environ.get("OPREL_CONFIG"):
            path = as_path(named, self.home)
            if not path.is_file():
                raise ConfigError(f"OPREL_CONFIG names {path}, and there is no such file")
            return path
        return config_dir(self.environ) / "config.toml"


def _file(path: Path, *, project: bool) -> Iterator[Given]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path} can't be read as TOML: {error}") from error
    for key, value in table.items():
        setting = SETTINGS.get(key)
        if setting is None and key not in ("host", "port"):
            raise ConfigError(f"{key!r} in {path} is no setting{nearest(key)}")
        if project and not _may_come_from_a_project(key, value):
            raise ConfigError(
                f"{key!r} can't be set by a project ({path}): move it to {config_dir()}/config.toml, "
                "where only you write"
            )
        yield Given(key, value, str(path), project)


def _may_come_from_a_project(key: str, value: object) -> bool:
    """Somebody else may have written the folder. A host elsewhere would get this user's prompts and key."""
    if key == "host":
        return str(value).partition(":")[0].strip() in ("127.0.0.1", "localhost")
    return key == "port" or SETTINGS[key].project


def nearest(key: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(key, [*SETTINGS, "host", "port"], n=1)
    return f": did you mean {near[0]!r}?" if near else f": choose from {', '.join(sorted([*SETTINGS, 'host', 'port']))}"
