"""Uploads that break, are told to wait, or are led elsewhere: what is sent again, where to, and as whom."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from support.file_server import FileHandler, running_files
from support.model_registry import ModelRegistry, running_registry
from support.registry_places import Place, prepared, trust
from tenacity import RetryCallState

from oprel.errors import SourceError
from oprel.sources import PullProgress
from oprel.sources.registry import Login
from oprel.sources.retries import wait_before_retry
from oprel.store import ModelName

PART = 2000
Fault = Callable[[FileHandler], None]


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long it would have waited."""
    noted: list[float] = []

    def wait(state: RetryCallState) -> float:
        noted.append(wait_before_retry(state))
        return 0.0

    monkeypatch.setattr("oprel.sources.retries.wait_before_retry", wait)
    return noted


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> None:
    monkeypatch.setattr("oprel.net.outside.getproxies", dict)
    monkeypatch.setattr("oprel.sources.registry.upload.PART_BYTES", PART)


@pytest.fixture
def registry() -> Iterator[ModelRegistry]:
    with running_registry() as registry:
        yield registry


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def name(place: Place, registry: ModelRegistry, tmp_path: Path) -> str:
    """A model of two blobs, of which the first takes several parts."""
    return prepared(place, registry, tmp_path)


def sizes(place: Place, name: str) -> list[int]:
    from oprel.store.manifests import parse_manifest

    path = ModelName.parse(name).manifest_path(place.store.models_dir)
    return [blob.size_bytes for blob in parse_manifest(path.read_bytes()).blobs]


def assert_pushed(registry: ModelRegistry, place: Place, name: str, lines: list[PullProgress]) -> None:
    assert lines[-1].status == "success"
    manifest = ModelName.parse(name).manifest_path(place.store.models_dir).read_bytes()
    assert registry.server.files["/v2/a/b/manifests/c"] == manifest
    for path in (place.store.models_dir / "blobs").iterdir():
        assert registry.server.files[f"/v2/a/b/blobs/{path.name.replace('-', ':')}"] == path.read_bytes()


def on_part(registry: ModelRegistry, number: int, fault: Fault, *, method: str = "PATCH") -> None:
    """The part of that number, counted from 1, comes to `fault` instead."""
    seen: list[str] = []

    def special(handler: FileHandler) -> bool:
        if handler.command != method or "/uploads/" not in handler.path:
            return False
        seen.append(handler.path)
        if len(seen) != number:
            return False
        fault(handler)
        return True

    registry.server.specials.insert(0, special)


def cut(handler: FileHandler) -> None:
    handler.close_connection = True
    handler.connection.close()


def kept_in_part(registry: ModelRegistry, count: int) -> Fault:
    """So many bytes arrive, then the connection breaks."""

    def fault(handler: FileHandler) -> None:
        upload = handler.path.rpartition("/")[2].partition("?")[0]
        registry.uploads[upload] += handler.body[:count]
        registry.part_bytes += count
        cut(handler)

    return fault


@pytest.mark.parametrize("arrived", [0, 700, PART])
def test_a_broken_part_goes_on_where_it_broke(registry: ModelRegistry, place: Place, name: str, arrived: int) -> None:
    on_part(registry, 3, kept_in_part(registry, arrived))
    assert_pushed(registry, place, name, place.push(name))
    assert registry.uploads_begun == 2
    assert registry.part_bytes == sum(sizes(place, name)), "no byte arrived twice"


def test_a_registry_that_does_not_say_what_arrived_gets_it_all_again(
    registry: ModelRegistry, place: Place, name: str
) -> None:
    registry.tells_progress = False
    on_part(registry, 3, kept_in_part(registry, 700))
    assert_pushed(registry, place, name, place.push(name))
    assert registry.uploads_begun == 3


@pytest.mark.parametrize("claimed", ["0-0", "0-1", "0-99999999", "5-4000", "rubbish", ""])
def test_what_cannot_have_arrived_is_not_believed(
    registry: ModelRegistry, place: Place, name: str, claimed: str
) -> None:
    on_part(registry, 3, cut)
    on_part(registry, 1, lambda handler: handler.answer(204, b"", {"Range": claimed}), method="GET")
    assert_pushed(registry, place, name, place.push(name))
    assert registry.uploads_begun == 3


def test_an_upload_that_the_registry_lost_is_begun_again(registry: ModelRegistry, place: Place, name: str) -> None:
    def lose(handler: FileHandler) -> None:
        registry.uploads.clear()
        handler.answer(404, b'{"errors": [{"code": "BLOB_UPLOAD_UNKNOWN"}]}')

    on_part(registry, 3, lose)
    assert_pushed(registry, place, name, place.push(name))
    assert registry.uploads_begun == 3


@pytest.mark.parametrize(("status", "asked"), [(429, "7"), (503, "7"), (500, None), (502, None)])
def test_a_busy_registry_gets_the_part_later(
    registry: ModelRegistry, place: Place, name: str, waits: list[float], status: int, asked: str | None
) -> None:
    headers = {} if asked is None else {"Retry-After": asked}
    for number in (2, 3):
        on_part(registry, number, lambda handler: handler.answer(status, b"", headers))
    assert_pushed(registry, place, name, place.push(name))
    assert registry.uploads_begun == 2
    assert registry.part_bytes == sum(sizes(place, name))
    if asked is None:
        assert len(waits) == 2
        assert 0 < waits[0] <= 1
    else:
        assert waits == [7.0, 7.0]


def test_six_tries_in_vain_are_enough(registry: ModelRegistry, place: Place, name: str) -> None:
    tries: list[str] = []

    def busy(handler: FileHandler) -> bool:
        if handler.command == "PATCH":
            tries.append(handler.path)
            handler.answer(503)
        return handler.command == "PATCH"

    registry.server.specials.insert(0, busy)
    with pytest.raises(SourceError, match="503"):
        place.push(name)
    assert len(tries) == 6
    assert "/v2/a/b/manifests/c" not in registry.server.files


def test_an_upload_that_never_ends_well_is_given_up(registry: ModelRegistry, place: Place, name: str) -> None:
    """Although each of its parts arrives, each time."""
    registry.tells_progress = False
    for number in range(1, 20):
        on_part(registry, number, lambda handler: handler.answer(503), method="PUT")
    with pytest.raises(SourceError, match="503"):
        place.push(name)
    assert registry.uploads_begun == 7  # one that brought parts there, six that brought no more


@pytest.mark.parametrize("is_redirected", [False, True])
def test_a_last_answer_that_is_lost_costs_no_second_upload(
    registry: ModelRegistry, place: Place, name: str, monkeypatch: pytest.MonkeyPatch, is_redirected: bool
) -> None:
    def lose(handler: FileHandler) -> None:
        url = urlsplit(handler.path)
        del registry.uploads[url.path.rpartition("/")[2]]
        (digest,) = parse_qs(url.query)["digest"]
        registry.put_blob("a/b", (place.store.models_dir / "blobs" / digest.replace(":", "-")).read_bytes())
        cut(handler)

    def keep(handler: FileHandler) -> bool:
        handler.answer(200)
        return True

    on_part(registry, 1, lose, method="PUT")
    with running_files() as storage:
        storage.specials.append(keep)
        if is_redirected:
            registry.redirects_uploads, registry.elsewhere = True, storage
            trust(monkeypatch, storage.origin)
        assert place.push(name)[-1].status == "success"
    assert registry.uploads_begun == 2


def test_a_redirected_part_that_breaks_is_sent_again_alone(
    registry: ModelRegistry, place: Place, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.redirects_uploads = True
    came: list[bytes] = []

    def keep(handler: FileHandler) -> bool:
        if len(came) == 2 and not broken:
            broken.append(handler.path)
            cut(handler)
            return True
        came.append(handler.body)
        handler.answer(200)
        return True

    broken: list[str] = []
    with running_files() as storage:
        storage.specials.append(keep)
        registry.elsewhere = storage
        trust(monkeypatch, storage.origin)
        assert place.push(name)[-1].status == "success"
    assert registry.uploads_begun == 2
    weights, config = sizes(place, name)
    assert [len(data) for data in came] == [*[PART] * (weights // PART), weights % PART, config]
    sums = [hashlib.md5(data).digest() for data in came[:-1]]  # noqa: S324
    assert registry.etags[0] == f"{hashlib.md5(b''.join(sums)).hexdigest()}-{len(sums)}"  # noqa: S324


def test_another_host_that_a_location_names_gets_the_data_but_no_token(
    registry: ModelRegistry, place: Place, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As registries do it that keep uploads on a machine of their own; one inside the network is refused."""
    registry.needs_token = True
    with running_registry() as other:

        def lead(handler: FileHandler) -> bool:
            if handler.command != "POST" or "Authorization" not in handler.headers:
                return False
            other.uploads_begun += 1
            other.uploads[str(other.uploads_begun)] = bytearray()
            target = f"{other.server.origin}/v2/a/b/blobs/uploads/{other.uploads_begun}"
            handler.answer(202, b"", {"Location": target})
            return True

        registry.server.specials.insert(0, lead)
        trust(monkeypatch, other.server.origin)
        assert place.push(name)[-1].status == "success"
        assert sum(len(data) for path, data in other.server.files.items() if "/blobs/" in path) == sum(
            sizes(place, name)
        )
        assert not any("authorization" in headers for _, headers in other.server.requests)


def test_a_challenge_by_another_host_is_not_met(
    registry: ModelRegistry, place: Place, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could want the password of the registry that led there."""
    place.logins.keep(registry.host, Login("alice", "s3cr3t"))
    with running_registry() as other:
        other.needs_token = True
        other.uploads["1"] = bytearray()
        target = f"{other.server.origin}/v2/a/b/blobs/uploads/1"
        on_part(registry, 1, lambda handler: handler.answer(202, b"", {"Location": target}), method="POST")
        trust(monkeypatch, other.server.origin)
        with pytest.raises(SourceError, match="unauthorized"):
            place.push(name)
        assert other.token_requests == []
        assert not any("authorization" in headers for _, headers in other.server.requests)


def test_a_token_that_ends_meanwhile_is_asked_for_anew(registry: ModelRegistry, place: Place, name: str) -> None:
    registry.needs_token, registry.password = True, "s3cr3t"
    place.logins.keep(registry.host, Login("alice", "s3cr3t"))
    for number in (2, 4):
        on_part(registry, number, lambda handler: refuse(registry, handler))
    assert_pushed(registry, place, name, place.push(name))
    assert registry.uploads_begun == 2
    assert registry.tokens_given == 5  # two that ended, each replaced


def refuse(registry: ModelRegistry, handler: FileHandler) -> None:
    registry.tokens_given += 1
    handler.answer(401, b"", {"WWW-Authenticate": f'Bearer realm="{registry.realm}",service="models"'})


def test_a_blob_that_another_repository_does_not_give_is_sent(registry: ModelRegistry, place: Place, name: str) -> None:
    """The registry is asked to take it from there, and begins an upload instead."""
    import json

    path = ModelName.parse(name).manifest_path(place.store.models_dir)
    manifest = json.loads(path.read_bytes())
    manifest["layers"][0]["from"] = f"{registry.host}/other/model:v1"
    place.store.write_manifest(ModelName.parse(name), json.dumps(manifest).encode())
    assert_pushed(registry, place, name, place.push(name))
    (asked,) = [path for path, _ in registry.server.requests if "mount=" in path]
    assert "from=other%2Fmodel" in asked


def test_a_login_by_password_goes_with_each_part(registry: ModelRegistry, place: Place, name: str) -> None:
    """Basic authentication, without any token."""
    expected = "Basic " + base64.b64encode(b"alice:s3cr3t").decode()

    def guard(handler: FileHandler) -> bool:
        if handler.headers.get("Authorization") == expected:
            return False
        handler.answer(401, b"", {"WWW-Authenticate": 'Basic realm="models"'})
        return True

    registry.server.specials.insert(0, guard)
    place.logins.keep(registry.host, Login("alice", "s3cr3t"))
    assert_pushed(registry, place, name, place.push(name))
    assert len([1 for _, headers in registry.server.requests if "authorization" not in headers]) == 1
