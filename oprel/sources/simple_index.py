"""A package's wheels, as a package index (PEP 503 HTML, PEP 691 JSON), a folder or a page of links lists them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin, urlsplit
from urllib.request import url2pathname

import msgspec
from msgspec import Struct

from oprel.errors import SourceError
from oprel.net.outside import NotThereError, OutsideClient, shown_url
from oprel.sources.pip_settings import PipSettings
from oprel.sources.versions import is_prerelease, version_key

__all__ = ["WheelFile", "choose_wheel", "list_wheels", "parse_page"]

ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
MAX_PAGE_BYTES = 32 << 20
_WHEEL = re.compile(
    r"(?P<name>[A-Za-z0-9_.]+)-(?P<version>[A-Za-z0-9_.!+]+)(?:-\d[A-Za-z0-9_.]*)?"
    r"-[A-Za-z0-9_.]+-(?P<abi>[A-Za-z0-9_.]+)-(?P<platform>[A-Za-z0-9_.]+)\.whl"
)
_SHA256 = re.compile(r"[0-9a-f]{64}")


class WheelFile(Struct, frozen=True):
    """`url` is http(s), or `path` a file on this machine that pip's settings lead to. `sha256` is the index's, where
    it has one, as is `size_bytes`."""

    filename: str
    version: str
    url: str = ""
    path: Path | None = None
    sha256: str | None = None
    size_bytes: int | None = None
    is_yanked: bool = False
    is_universal: bool = False


async def list_wheels(client: OutsideClient, settings: PipSettings, package: str) -> list[WheelFile]:
    """From all places that pip would look in, the first ones first. Raises SourceError when none has the package and
    at least one couldn't be asked."""
    found: list[WheelFile] = []
    failure: SourceError | None = None
    for place, is_index in [(link, False) for link in settings.find_links] + [(url, True) for url in settings.indexes]:
        try:
            found += await _listed(client, place, package, is_index=is_index)
        except SourceError as problem:
            failure = failure or problem
    if not found and failure is not None:
        raise failure
    return found


def choose_wheel(wheels: Iterable[WheelFile], *, version: str | None) -> WheelFile | None:
    """The newest release (a pre-release only when there is nothing else, a withdrawn one only when it is asked for
    by its version); wheels for any machine first."""
    keyed = [(key, wheel) for wheel in wheels if (key := version_key(wheel.version)) is not None]
    if version is not None:
        wanted = version_key(version)
        keyed = [(key, wheel) for key, wheel in keyed if key == wanted or wheel.version == version]
    else:
        keyed = [(key, wheel) for key, wheel in keyed if not wheel.is_yanked]
        keyed = [(key, wheel) for key, wheel in keyed if not is_prerelease(key)] or keyed
    if not keyed:
        return None
    return max(keyed, key=lambda each: (each[0], each[1].is_universal))[1]


def parse_page(data: bytes, base_url: str, package: str) -> list[WheelFile]:
    """JSON or HTML, told apart by how it begins (mirrors get the content type wrong)."""
    if data.lstrip()[:1] == b"{":
        return _from_json(data, base_url, package)
    return _from_html(data, base_url, package)


async def _listed(client: OutsideClient, place: str, package: str, *, is_index: bool) -> list[WheelFile]:
    if not place.startswith(("http://", "https://")):
        return _from_disk(_local_path(place), package, is_index=is_index)
    url = f"{place.rstrip('/')}/{package}/" if is_index else place
    try:
        page = await client.read(url, max_bytes=MAX_PAGE_BYTES, headers={"Accept": ACCEPT})
    except NotThereError:
        return []
    return parse_page(page.data, page.url, package)


def _from_disk(folder: Path, package: str, *, is_index: bool) -> list[WheelFile]:
    """A folder of wheels, or an index laid out in folders. The user's own settings lead here, so links in its pages
    may lead to files."""
    try:
        if is_index:
            folder = folder / package
            page = folder / "index.html"
            if page.is_file() and page.stat().st_size <= MAX_PAGE_BYTES:
                return _from_html(page.read_bytes(), folder.as_uri() + "/", package, may_be_local=True)
        elif folder.is_file() and folder.suffix == ".html":
            return _from_html(folder.read_bytes(), folder.as_uri(), package, may_be_local=True)
        paths = sorted(folder.glob("*.whl"))
    except OSError as problem:
        raise SourceError(f"The package folder {folder} can't be read: {problem.strerror}.") from problem
    return [wheel for path in paths if (wheel := _wheel(path.name, package, path=path)) is not None]


def _local_path(place: str) -> Path:
    if place.startswith("file:"):
        return Path(url2pathname(unquote(urlsplit(place).path)))
    return Path(place).expanduser()


def _from_json(data: bytes, base_url: str, package: str) -> list[WheelFile]:
    try:
        page: dict[str, Any] = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError) as problem:
        raise SourceError(f"The package index {shown_url(base_url)} sends a page that can't be read.") from problem
    files = page.get("files")
    found: list[WheelFile] = []
    for file in files if isinstance(files, list) else []:
        if not isinstance(file, dict) or not isinstance(file.get("filename"), str):
            continue
        hashes, size = file.get("hashes"), file.get("size")
        wheel = _wheel(
            file["filename"],
            package,
            link=urljoin(base_url, str(file.get("url", ""))),
            sha256=hashes.get("sha256") if isinstance(hashes, dict) else None,
            size_bytes=size if isinstance(size, int) and not isinstance(size, bool) and size >= 0 else None,
            is_yanked=bool(file.get("yanked")),
        )
        if wheel is not None:
            found.append(wheel)
    return found


def _from_html(data: bytes, base_url: str, package: str, *, may_be_local: bool = False) -> list[WheelFile]:
    links = _Links()
    links.feed(data.decode("utf-8", errors="replace"))
    links.close()
    found: list[WheelFile] = []
    for href, is_yanked in links.found:
        try:
            link, fragment = urldefrag(urljoin(base_url, href))
            filename = unquote(urlsplit(link).path).rpartition("/")[2]
        except ValueError:
            continue
        sha256 = fragment.removeprefix("sha256=") if fragment.startswith("sha256=") else None
        path = _local_path(link) if may_be_local and link.startswith("file:") else None
        wheel = _wheel(filename, package, link=link, path=path, sha256=sha256, is_yanked=is_yanked)
        if wheel is not None:
            found.append(wheel)
    return found


def _wheel(
    filename: str,
    package: str,
    *,
    link: str = "",
    path: Path | None = None,
    sha256: str | None = None,
    size_bytes: int | None = None,
    is_yanked: bool = False,
) -> WheelFile | None:
    """None for another package's file, for what isn't a wheel, and for a link that a page from outside may not have."""
    match = _WHEEL.fullmatch(filename)
    if match is None or re.sub(r"[-_.]+", "-", match["name"]).lower() != package:
        return None
    if path is None and not link.startswith(("http://", "https://")):
        return None
    return WheelFile(
        filename=filename,
        version=match["version"].replace("_", "-"),
        url="" if path is not None else link,
        path=path,
        sha256=sha256 if isinstance(sha256, str) and _SHA256.fullmatch(sha256) else None,
        size_bytes=size_bytes,
        is_yanked=is_yanked,
        is_universal=(match["abi"], match["platform"]) == ("none", "any"),
    )


class _Links(HTMLParser):
    """The links of a page: (href, whether the file was withdrawn)."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, bool]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "a":
            return
        named = dict(attrs)
        href = named.get("href")
        if href:
            self.found.append((href, "data-yanked" in named))
