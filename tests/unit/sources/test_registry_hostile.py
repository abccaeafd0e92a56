"""Registries that lie, break or want what isn't theirs: refused in one sentence, and the store is as it was."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.file_server import FileHandler, running_files
from support.model_registry import ModelRegistry, blob_of, running_registry
from support.registry_places import Place, lines_of, prepared, trust
from support.store_checks import assert_valid_store, snapshot
from support.tiny_gguf import write_tiny_gguf

from oprel.errors import ModelNotFoundError, NoSpaceError, OprelError, SourceError
from oprel.sources import PullProgress
from oprel.sources.registry import Login
from oprel.store import ModelName
from oprel.store.disk import Disk

MEDIA = "application/vnd.ollama.image.model"
CONFIG = "application/vnd.docker.container.image.v1+json"
WEIGHTS = random.Random(5).randbytes(1 << 20)  # noqa: S311


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oprel.net.outside.getproxies", dict)
    monkeypatch.setattr("oprel.sources.retries.wait_before_retry", lambda state: 0.01)


@pytest.fixture
def registry() -> Iterator[ModelRegistry]:
    with running_registry() as registry:
        yield registry


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def manifest(layers: Any, config: Any = None) -> dict[str, Any]:
    return {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": config or blob_of(b"{}", CONFIG),
        "layers": layers,
    }


BAD_DIGESTS = [
    "../../../../etc/x", "sha256:../x", "sha256-" + "a" * 63, "sha256-" + "a" * 65, "sha256:" + "A" * 64, "",
    "sha512:" + "a" * 128, "sha256:" + "a" * 63 + "\0", "sha256:" + "a" * 64 + "\n", "sha256:" + "\uff41" * 64,
]  # fmt: skip


@pytest.mark.parametrize("digest", BAD_DIGESTS)
@pytest.mark.parametrize("where", ["layer", "config"])
def test_a_digest_that_is_none_is_refused_before_anything(
    registry: ModelRegistry, place: Place, digest: str, where: str
) -> None:
    bad = {**blob_of(b"{}", MEDIA), "digest": digest}
    good = blob_of(b"{}", MEDIA)
    data = manifest([bad]) if where == "layer" else manifest([good], bad)
    registry.put_manifest("a/b", "c", json.dumps(data).encode())
    with pytest.raises(SourceError, match="invalid digest"):
        place.pull(f"{registry.host}/a/b:c")
    assert place.files() == []
    assert len(registry.server.requests) == 1


@pytest.mark.parametrize(
    "data",
    [
        b"", b"null", b"[]", b"{}", b"<html>", b"\xff\xfe", b"[" * 100_000, b'{"layers":' + b"[" * 100_000,
        json.dumps(manifest(None)).encode(), json.dumps(manifest([None])).encode(),
        json.dumps(manifest([{**blob_of(b"{}", MEDIA), "size": -1}])).encode(),
        json.dumps(manifest([{**blob_of(b"{}", MEDIA), "size": 1 << 63}])).encode(),
        json.dumps(manifest([{**blob_of(b"{}", MEDIA), "size": 1 << 51}])).encode(),
        json.dumps(manifest([{**blob_of(b"{}", MEDIA), "size": 1.5}])).encode(),
        json.dumps(manifest([blob_of(b"{}", MEDIA)] * 1001)).encode(),
        json.dumps(manifest([], {**blob_of(b"{}", CONFIG), "size": (1 << 20) + 1})).encode(),
        json.dumps(manifest([blob_of(b"x", MEDIA), {**blob_of(b"x", MEDIA), "size": 2}])).encode(),
        b" " * ((4 << 20) + 1),
    ],
)  # fmt: skip
def test_a_manifest_that_is_none_is_refused(registry: ModelRegistry, place: Place, data: bytes) -> None:
    registry.put_manifest("a/b", "c", data)
    with pytest.raises(SourceError):
        place.pull(f"{registry.host}/a/b:c")
    assert place.files() == []


def test_an_endless_manifest_ends_at_its_limit(registry: ModelRegistry, place: Place) -> None:
    def endless(handler: FileHandler) -> bool:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        try:
            while not registry.server.stopping.is_set():
                handler.wfile.write(b"10000\r\n" + bytes(65536) + b"\r\n")
        except OSError:
            handler.close_connection = True
        return True

    registry.server.specials.insert(0, endless)
    with pytest.raises(SourceError, match="more than the"):
        place.pull(f"{registry.host}/a/b:c")
    assert place.files() == []


def test_a_packed_manifest_is_not_unpacked(registry: ModelRegistry, place: Place) -> None:
    """A few kilobytes could be gigabytes."""
    import gzip

    packed = gzip.compress(json.dumps(manifest([])).encode() + b" " * (1 << 20))
    registry.server.specials.insert(
        0, lambda handler: handler.answer(200, packed, {"Content-Encoding": "gzip"}) or True
    )
    with pytest.raises(SourceError, match="can't be read"):
        place.pull(f"{registry.host}/a/b:c")
    assert registry.server.requests[0][1]["accept-encoding"] == "identity"


@pytest.mark.parametrize("same_as_config", [False, True])
def test_a_blob_with_another_content_is_refused(registry: ModelRegistry, place: Place, same_as_config: bool) -> None:
    """A layer that shares the config's digest, too."""
    layer = blob_of(WEIGHTS, MEDIA)
    config = {**layer, "mediaType": CONFIG} if same_as_config else blob_of(b"{}", CONFIG)
    registry.put_manifest("a/b", "c", json.dumps(manifest([layer], config)).encode())
    registry.server.files[f"/v2/a/b/blobs/{layer['digest']}"] = bytes(len(WEIGHTS))
    with pytest.raises(SourceError, match="digest mismatch, file must be downloaded again: want"):
        place.pull(f"{registry.host}/a/b:c")
    assert place.files() == []


@pytest.mark.parametrize("difference", [-1, 1])
def test_a_blob_of_another_size_is_refused(registry: ModelRegistry, place: Place, difference: int) -> None:
    registry.add("a/b:c", [(WEIGHTS, "model")])
    path = f"/v2/a/b/blobs/sha256:{hashlib.sha256(WEIGHTS).hexdigest()}"
    registry.server.files[path] = WEIGHTS[:-1] if difference < 0 else WEIGHTS + b"x"
    with pytest.raises(SourceError, match="were declared"):
        place.pull(f"{registry.host}/a/b:c")
    assert place.files() == []


def test_what_would_not_fit_is_refused_before_it_begins(registry: ModelRegistry, tmp_path: Path) -> None:
    class Small(Disk):
        def free_bytes(self, path: Path) -> int:
            return len(WEIGHTS) + 100

    place = Place(tmp_path, disk=Small())
    registry.add("a/b:c", [(WEIGHTS, "model")])
    with pytest.raises(NoSpaceError, match="free some"):
        place.pull(f"{registry.host}/a/b:c")
    assert [path for path, _ in registry.server.requests if "/blobs/" in path] == []


def test_an_old_version_stays_when_the_new_one_fails(registry: ModelRegistry, place: Place, tmp_path: Path) -> None:
    weights = write_tiny_gguf(tmp_path / "a.gguf").read_bytes()
    registry.add("a/b:c", [(weights, "model")])
    name = f"{registry.host}/a/b:c"
    place.pull(name)
    before = ModelName.parse(name).manifest_path(place.store.models_dir).read_bytes()
    registry.add("a/b:c", [(weights + b"x", "model"), (b"hello", "system")])
    registry.server.files[f"/v2/a/b/blobs/sha256:{hashlib.sha256(b'hello').hexdigest()}"] = b"olleh"
    with pytest.raises(SourceError, match="digest mismatch"):
        place.pull(name)
    assert ModelName.parse(name).manifest_path(place.store.models_dir).read_bytes() == before
    assert_valid_store(place.store.models_dir)


@pytest.mark.parametrize("is_on_record", [False, True])
def test_a_blob_that_rotted_is_fetched_again(
    registry: ModelRegistry, place: Place, tmp_path: Path, is_on_record: bool
) -> None:
    """Of the right name and size, and pulled before or put there by another program."""
    registry.add("a/b:c", [(WEIGHTS, "model"), (b"be brief", "system")])
    name = f"{registry.host}/a/b:c"
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    blob = place.store.models_dir / f"blobs/sha256-{digest}"
    if is_on_record:
        place.pull(name)
    blob.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(WEIGHTS[:-1] + bytes([WEIGHTS[-1] ^ 1]))
    registry.server.requests.clear()
    assert place.pull(name)[-1].status == "success"
    assert blob.read_bytes() == WEIGHTS
    assert [path for path, _ in registry.server.requests if digest in path]
    assert assert_valid_store(place.store.models_dir) == 1


def test_a_blob_is_read_once_and_then_known(
    registry: ModelRegistry, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was fetched isn't read again; one that another program put there is, once."""
    from oprel.store import verified

    read: list[str] = []
    real = verified.hash_file

    def noted(path: Path, **more: Any) -> Any:
        read.append(path.name)
        return real(path, **more)

    monkeypatch.setattr(verified, "hash_file", noted)
    registry.add("a/b:c", [(WEIGHTS, "model")])
    name = f"{registry.host}/a/b:c"
    place.pull(name)
    place.pull(name)
    assert read == []
    other = WEIGHTS[::-1]
    registry.add("a/b:d", [(other, "model")])
    blob = place.store.models_dir / f"blobs/sha256-{hashlib.sha256(other).hexdigest()}"
    blob.write_bytes(other)
    for _ in range(2):
        lines = place.pull(f"{registry.host}/a/b:d")
        first = next(line for line in lines if line.digest)
        assert (first.completed, first.total) == (len(other), len(other))
    assert read == [blob.name]


def test_a_damaged_blob_stays_where_no_good_one_is_to_be_had(registry: ModelRegistry, place: Place) -> None:
    registry.add("a/b:c", [(WEIGHTS, "model")])
    name = f"{registry.host}/a/b:c"
    place.pull(name)
    blob = place.store.models_dir / f"blobs/sha256-{hashlib.sha256(WEIGHTS).hexdigest()}"
    blob.write_bytes(WEIGHTS[::-1])
    del registry.server.files[f"/v2/a/b/blobs/sha256:{hashlib.sha256(WEIGHTS).hexdigest()}"]
    before = snapshot(place.store.models_dir)
    with pytest.raises(SourceError, match="isn't there"):
        place.pull(name)
    assert snapshot(place.store.models_dir) == before


def test_blobs_may_lie_where_a_redirect_leads(registry: ModelRegistry, tmp_path: Path, monkeypatch: Any) -> None:
    """As Ollama's registry does it. The token doesn't go along."""
    registry.needs_token = True
    manifest_bytes = registry.add("a/b:c", [(WEIGHTS, "model")])
    place = Place(tmp_path)
    with running_files() as storage:
        registry.elsewhere = storage
        trust(monkeypatch, storage.origin)
        name = f"{registry.host}/a/b:c"
        place.pull(name)
        assert ModelName.parse(name).manifest_path(place.store.models_dir).read_bytes() == manifest_bytes
        assert storage.requests
        assert not any("authorization" in headers for _, headers in storage.requests)


@pytest.mark.parametrize(
    "target",
    [
        "http://169.254.169.254/latest", "http://[::ffff:127.0.0.1]:80/", "https://0.0.0.0/", "https://2130706433/",
        "https://localhost/", "file:///etc/passwd", "https://user@127.0.0.1/", "http://10.0.0.1/",
    ],
)  # fmt: skip
@pytest.mark.parametrize("what", ["manifests", "blobs"])
def test_a_redirect_inside_is_refused(registry: ModelRegistry, place: Place, target: str, what: str) -> None:
    registry.add("a/b:c", [(WEIGHTS, "model")])

    def redirect(handler: FileHandler) -> bool:
        if f"/{what}/" not in handler.path:
            return False
        handler.answer(307, b"", {"Location": target})
        return True

    registry.server.specials.insert(0, redirect)
    with pytest.raises(SourceError):
        place.pull(f"{registry.host}/a/b:c")
    assert place.files() == []


def test_an_address_inside_is_refused_unless_it_is_named_so(registry: ModelRegistry, place: Place) -> None:
    registry.add("a/b:c", [(WEIGHTS, "model")])
    with pytest.raises(SourceError, match="inside this machine"):
        place.pull(f"{registry.host}/a/b:c", insecure=False)
    assert registry.server.requests == []


def test_a_trusted_registry_may_be_inside_but_speaks_tls(registry: ModelRegistry, tmp_path: Path) -> None:
    with pytest.raises(SourceError) as failure:
        Place(tmp_path, trusted=(registry.host,)).pull(f"{registry.host}/a/b:c", insecure=False)
    assert "inside" not in failure.value.message


@pytest.mark.parametrize(
    "realm",
    [
        "http://evil.example/token",
        "https://127.0.0.1/token",
        "http://127.0.0.1:1/token",
        "https://auth.docker.io/token",
    ],
)
def test_a_password_goes_to_no_other_realm(registry: ModelRegistry, place: Place, realm: str) -> None:
    registry.needs_token, registry.realm = True, realm
    place.logins.keep(registry.host, Login("alice", "s3cr3t"))
    with pytest.raises(SourceError, match="does not match original host") as failure:
        place.pull(f"{registry.host}/a/b:c")
    assert "s3cr3t" not in str(failure.value)
    assert registry.host in str(failure.value)
    assert not any("authorization" in headers for _, headers in registry.server.requests)


def test_a_token_is_asked_for_with_the_login(registry: ModelRegistry, place: Place) -> None:
    registry.needs_token, registry.password = True, "s3cr3t"
    registry.add("a/b:c", [(WEIGHTS, "model")])
    with pytest.raises(SourceError, match="unauthorized: access denied"):
        place.pull(f"{registry.host}/a/b:c")
    place.logins.keep(registry.host, Login("alice", "s3cr3t"))
    assert place.pull(f"{registry.host}/a/b:c")[-1].status == "success"
    assert registry.token_requests[-1] == {
        "service": ["models"], "scope": ["repository:a/b:pull,push", "repository:c/d:pull"]
    }  # fmt: skip


@pytest.mark.parametrize("answer", [b"", b"{}", b'{"token": 5}', b'{"token": "a\\nb"}', b"x" * 70_000, b"[" * 60_000])
def test_a_token_that_is_none_is_refused(registry: ModelRegistry, place: Place, answer: bytes) -> None:
    registry.needs_token = True

    def token(handler: FileHandler) -> bool:
        if not handler.path.startswith("/token"):
            return False
        handler.answer(200, answer)
        return True

    registry.server.specials.insert(0, token)
    with pytest.raises(SourceError):
        place.pull(f"{registry.host}/a/b:c")


def test_only_the_protocols_own_words_are_passed_on(registry: ModelRegistry, place: Place) -> None:
    """What answers could be anything that this machine can reach."""
    said = json.dumps({"errors": [{"code": "DENIED", "message": "not for\nyou"}]}).encode()
    registry.server.specials.insert(0, lambda handler: handler.answer(418, said) or True)
    with pytest.raises(SourceError, match="pull model manifest: 418: not for you"):
        place.pull(f"{registry.host}/a/b:c")
    registry.server.specials[0] = lambda handler: handler.answer(418, b"instance-secret") or True
    with pytest.raises(SourceError, match="pull model manifest: 418: ") as failure:
        place.pull(f"{registry.host}/a/b:c")
    assert "secret" not in failure.value.message


def test_an_unknown_model_is_told_as_ollama_does(registry: ModelRegistry, place: Place) -> None:
    with pytest.raises(ModelNotFoundError, match=r"^pull model manifest: file does not exist$"):
        place.pull(f"{registry.host}/a/b:c")


def test_a_busy_registry_is_asked_again(registry: ModelRegistry, place: Place) -> None:
    registry.add("a/b:c", [(WEIGHTS, "model")])
    registry.server.specials.clear()
    registry.server.first_time("/v2/a/b/manifests/c", 429, {"Retry-After": "3"}, times=2)
    registry.server.first_time("/v2/a/b/manifests/c", 503, times=2)
    assert place.pull(f"{registry.host}/a/b:c")[-1].status == "success"


def test_two_models_share_the_download_of_a_blob(registry: ModelRegistry, place: Place) -> None:
    registry.add("a/b:c", [(WEIGHTS, "model")])
    registry.add("a/b:d", [(WEIGHTS, "model")])
    registry.server.pause_s = 0.005

    async def both() -> None:
        await asyncio.gather(
            *(lines_of(place.puller.pull(f"{registry.host}/a/b:{tag}", insecure=True)) for tag in "cd")
        )

    asyncio.run(both())
    assert len([1 for path, _ in registry.server.requests if hashlib.sha256(WEIGHTS).hexdigest() in path]) == 1


def test_who_leaves_first_does_not_end_the_others_download(registry: ModelRegistry, place: Place) -> None:
    registry.add("a/b:c", [(WEIGHTS, "model")])
    registry.add("a/b:d", [(WEIGHTS, "model")])
    registry.server.pause_s = 0.02

    async def both() -> list[PullProgress]:
        first = asyncio.ensure_future(lines_of(place.puller.pull(f"{registry.host}/a/b:c", insecure=True)))
        second = asyncio.ensure_future(lines_of(place.puller.pull(f"{registry.host}/a/b:d", insecure=True)))
        await asyncio.to_thread(registry.server.wait_sent, len(WEIGHTS) // 4)
        first.cancel()
        return await second

    assert asyncio.run(both())[-1].status == "success"


def test_the_last_to_leave_ends_the_download(
    registry: ModelRegistry, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came until then stays for the next pull."""
    monkeypatch.setattr("oprel.sources.transfer.BLOCK_BYTES", 1 << 14)
    registry.add("a/b:c", [(WEIGHTS, "model")])
    registry.server.pause_s = 0.05

    async def leave() -> None:
        pulling = asyncio.ensure_future(lines_of(place.puller.pull(f"{registry.host}/a/b:c", insecure=True)))
        await asyncio.to_thread(registry.server.wait_sent, len(WEIGHTS) // 4)
        pulling.cancel()
        await asyncio.gather(pulling, return_exceptions=True)

    asyncio.run(leave())
    assert place.files() == []
    assert sorted(path.suffix for path in (place.store.state_dir / "partial").iterdir()) == [".journal", ".part"]


# -- push


def test_a_model_that_is_not_here_is_not_pushed(registry: ModelRegistry, place: Place) -> None:
    told: list[str] = []

    async def push() -> None:
        async for line in place.puller.push(f"{registry.host}/a/b:c", insecure=True):
            told.append(line.status)  # noqa: PERF401  # what came before it failed counts

    with pytest.raises(ModelNotFoundError):
        asyncio.run(push())
    assert told == ["retrieving manifest", "couldn't retrieve manifest"]
    assert registry.server.requests == []


def test_parts_go_where_a_redirect_leads_without_the_token(
    registry: ModelRegistry, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oprel.sources.registry.upload.PART_BYTES", 2000)
    registry.needs_token = registry.redirects_uploads = True
    name = prepared(place, registry, tmp_path)
    parts: dict[str, bytes] = {}

    def keep(handler: FileHandler) -> bool:
        parts[handler.path] = handler.body
        handler.answer(200)
        return True

    with running_files() as storage:
        storage.specials.append(keep)
        registry.elsewhere = storage
        trust(monkeypatch, storage.origin)
        assert place.push(name)[-1].status == "success"
        assert not any("authorization" in headers for _, headers in storage.requests)
    sums = [hashlib.md5(data).digest() for path, data in parts.items() if path.startswith("/parts/1/")]  # noqa: S324
    assert len(sums) > 2
    assert registry.etags[0] == f"{hashlib.md5(b''.join(sums)).hexdigest()}-{len(sums)}"  # noqa: S324


def test_a_broken_upload_is_begun_again(registry: ModelRegistry, place: Place, tmp_path: Path) -> None:
    name = prepared(place, registry, tmp_path)
    broken: list[str] = []

    def cut(handler: FileHandler) -> bool:
        if handler.command != "PATCH" or len(broken) == 2:
            return False
        broken.append(handler.path)
        handler.close_connection = True
        handler.connection.close()
        return True

    registry.server.specials.insert(0, cut)
    assert place.push(name)[-1].status == "success"
    data = ModelName.parse(name).manifest_path(place.store.models_dir).read_bytes()
    assert registry.server.files["/v2/a/b/manifests/c"] == data


def test_an_upload_is_not_led_inside(registry: ModelRegistry, place: Place, tmp_path: Path) -> None:
    name = prepared(place, registry, tmp_path)

    def lead(handler: FileHandler) -> bool:
        if handler.command != "POST":
            return False
        handler.answer(202, b"", {"Location": "http://169.254.169.254/x"})
        return True

    registry.server.specials.insert(0, lead)
    with pytest.raises(SourceError, match="isn't https"):
        place.push(name)


def test_a_damaged_blob_is_not_sent(registry: ModelRegistry, place: Place, tmp_path: Path) -> None:
    name = prepared(place, registry, tmp_path)
    blob = max((place.store.models_dir / "blobs").iterdir(), key=lambda path: path.stat().st_size)
    data = blob.read_bytes()
    blob.unlink()
    blob.write_bytes(data[:-1])
    with pytest.raises(OprelError, match="damaged"):
        place.push(name)
    assert not [1 for path, _ in registry.server.requests if "uploads" in path]


def test_what_the_registry_refuses_is_told(registry: ModelRegistry, place: Place, tmp_path: Path) -> None:
    """The blob isn't what its name says: both sides notice."""
    name = prepared(place, registry, tmp_path)
    blob = max((place.store.models_dir / "blobs").iterdir(), key=lambda path: path.stat().st_size)
    data = blob.read_bytes()
    blob.unlink()
    blob.write_bytes(data[:-1] + b"?")
    with pytest.raises(SourceError, match="400: provided digest did not match"):
        place.push(name)
    assert "/v2/a/b/manifests/c" not in registry.server.files
