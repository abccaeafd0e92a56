"""Fetching a large file: whole and checked, or not at all; resumed wherever it stopped."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.file_server import FileHandler, FileServer, running_files

from oprel.errors import NoSpaceError, SourceError
from oprel.net.outside import OutsideClient
from oprel.sources import transfer
from oprel.sources.transfer import fetch_blob
from oprel.store import Digest, Store
from oprel.store.disk import Disk

SIZE = (9 << 20) + 12345
DATA = random.Random(7).randbytes(SIZE)  # noqa: S311
DIGEST = Digest(hashlib.sha256(DATA).hexdigest())


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setattr("oprel.net.outside.getproxies", dict)
    monkeypatch.setattr("oprel.sources.retries.wait_before_retry", lambda state: 0.01)
    with running_files() as server:
        server.files["/f"] = DATA
        yield server


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models", state_dir=tmp_path / "state")


def fetch(server: FileServer, store: Store, path: str = "/f", **more: object) -> bytes:
    """What was published."""
    arguments: dict[str, object] = {"digest": DIGEST, "size_bytes": SIZE, "max_bytes": SIZE, **more}
    trusted = (server.origin,)

    async def run() -> bytes:
        async with OutsideClient(trusted=trusted) as client:
            arguments.setdefault("completed", lambda done, total: None)
            with await fetch_blob(client, server.origin + path, store, **arguments) as blob:  # type: ignore[arg-type]
                return blob.publish().digest.blob_path(store.models_dir).read_bytes()

    return asyncio.run(run())


def leftovers(store: Store) -> list[str]:
    folder = store.state_dir / "partial"
    return sorted(path.suffix for path in folder.iterdir()) if folder.exists() else []


def blobs(store: Store) -> list[Path]:
    folder = store.models_dir / "blobs"
    return sorted(folder.iterdir()) if folder.exists() else []


def test_a_file_comes_in_ranges_and_leaves_no_partial(server: FileServer, store: Store) -> None:
    told: list[tuple[int, int | None]] = []
    assert fetch(server, store, completed=lambda done, total: told.append((done, total))) == DATA
    assert len([1 for _, headers in server.requests if "range" in headers]) == 3
    assert told[-1] == (SIZE, SIZE)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert leftovers(store) == []


def lengths(server: FileServer) -> list[int]:
    """Of the ranges that were asked for, in order."""
    spans = [headers["range"].removeprefix("bytes=").split("-") for _, headers in server.requests]
    return [int(last) + 1 - int(first) for first, last in spans]


def test_a_server_that_is_quick_is_asked_for_long_ranges_by_one_connection(
    server: FileServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "RANGE_BYTES", 1 << 20)
    monkeypatch.setattr(transfer, "QUICK_BYTES_PER_S", 0)
    assert fetch(server, store) == DATA
    found = lengths(server)
    assert (found[:4], max(found)) == ([1 << 20] * 4, 3 << 20)
    assert (sum(found), len(found) < 9) == (SIZE, True)


def test_a_server_that_is_slow_is_asked_for_short_ranges(
    server: FileServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "RANGE_BYTES", 1 << 20)
    monkeypatch.setattr(transfer, "QUICK_BYTES_PER_S", 1e15)
    assert fetch(server, store) == DATA
    assert sorted(lengths(server)) == [SIZE - (9 << 20)] + [1 << 20] * 9


def test_a_server_that_gets_slow_is_asked_by_several_connections_again(
    server: FileServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    short, long = 500_000, 1_500_000
    monkeypatch.setattr(transfer, "RANGE_BYTES", short)
    monkeypatch.setattr(transfer, "QUICK_BYTES_PER_S", 1e6)

    def slow(handler: FileHandler) -> bool:
        if lengths(server).count(long) == 1 and lengths(server)[-1] == long:
            time.sleep(2)
        return False

    server.specials.append(slow)
    assert fetch(server, store) == DATA
    found = lengths(server)
    after = found.index(long) + 1
    assert found[after : after + 3] == [short] * 3


def test_plain_http_waits_for_no_certificates(
    server: FileServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oprel.net.outside._tls", lambda ca_file: pytest.fail("certificates were read"))
    assert fetch(server, store) == DATA


def test_what_was_hashed_on_the_way_need_not_be_read_before_it_is_loaded(server: FileServer, store: Store) -> None:
    fetch(server, store)
    assert store.verified.holds(DIGEST, DIGEST.blob_path(store.models_dir))


def test_what_is_unknown_is_found_out(server: FileServer, store: Store) -> None:
    """Neither size nor digest: the ETag makes ranges safe."""
    assert fetch(server, store, digest=None, size_bytes=None, max_bytes=1 << 30) == DATA
    assert leftovers(store) == []


@pytest.mark.parametrize("has_etags", [True, False])
def test_a_server_without_ranges_gives_one_stream(server: FileServer, store: Store, has_etags: bool) -> None:
    server.has_ranges, server.has_etags = False, has_etags
    assert fetch(server, store) == DATA
    assert len(server.requests) == 1


def test_without_etag_and_digest_there_are_no_ranges(server: FileServer, store: Store) -> None:
    """Nothing would tell parts of two files apart."""
    server.has_etags = False
    assert fetch(server, store, digest=None, size_bytes=None, max_bytes=1 << 30) == DATA
    assert "range" not in server.requests[-1][1]


def test_an_empty_file_needs_no_request(server: FileServer, store: Store) -> None:
    assert fetch(server, store, digest=Digest(hashlib.sha256().hexdigest()), size_bytes=0) == b""
    assert server.requests == []


def test_an_empty_file_of_unknown_size(server: FileServer, store: Store) -> None:
    server.files["/empty"] = b""
    assert fetch(server, store, "/empty", digest=None, size_bytes=None, max_bytes=10) == b""


def test_a_broken_connection_is_taken_up_again(server: FileServer, store: Store) -> None:
    server.cut_after = 3 << 20

    def mended(handler: FileHandler) -> bool:
        if server.cut_after is not None and server.sent_bytes >= server.cut_after:
            server.cut_after = None
        return False

    server.specials.append(mended)
    assert fetch(server, store) == DATA
    assert server.sent_bytes < SIZE + transfer.CONNECTIONS * transfer.RANGE_BYTES


def test_the_next_process_goes_on(server: FileServer, store: Store) -> None:
    server.cut_after = 5 << 20
    with pytest.raises(SourceError):
        fetch(server, store)
    assert leftovers(store) == [".journal", ".part"]
    assert blobs(store) == []
    again = Store(store.models_dir, state_dir=store.state_dir)
    again.sweep(min_age_s=-1)
    told: list[int] = []
    with running_files() as other:
        other.files["/f"] = DATA
        assert fetch(other, again, completed=lambda done, total: told.append(done)) == DATA
        assert other.sent_bytes == SIZE - told[0]
    assert told[0] > 0
    assert leftovers(store) == []


def test_after_a_crash_of_the_machine_only_what_was_synced_counts(
    server: FileServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.cut_after = 5 << 20
    with pytest.raises(SourceError):
        fetch(server, store)
    monkeypatch.setattr("oprel.store.resumable._boot_id", lambda: "another boot")
    with running_files() as other:
        other.files["/f"] = DATA
        assert fetch(other, store) == DATA
        assert other.sent_bytes == SIZE


def test_checkpoints_survive_a_crash_of_the_machine(
    server: FileServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "SYNC_BYTES", 1 << 20)
    server.cut_after, server.pause_s = 5 << 20, 0.001
    with pytest.raises(SourceError):
        fetch(server, store)
    monkeypatch.setattr("oprel.store.resumable._boot_id", lambda: "another boot")
    with running_files() as other:
        other.files["/f"] = DATA
        assert fetch(other, store) == DATA
        assert other.sent_bytes < SIZE


def test_a_file_that_changed_is_begun_again(server: FileServer, store: Store) -> None:
    server.files["/f"] = bytes(SIZE)
    server.cut_after = 5 << 20
    with pytest.raises(SourceError):
        fetch(server, store)
    server.cut_after = None
    server.files["/f"] = DATA
    assert fetch(server, store) == DATA


def test_a_file_that_changes_meanwhile_is_begun_again(server: FileServer, store: Store) -> None:
    server.files["/f"] = bytes(SIZE)

    def change(handler: FileHandler) -> bool:
        if len(server.requests) == 2:
            server.files["/f"] = DATA
        return False

    server.specials.append(change)
    assert fetch(server, store) == DATA


def test_a_wrong_digest_leaves_nothing(server: FileServer, store: Store) -> None:
    """Not under its name, and not for another try, which would be as wrong."""
    server.files["/f"] = DATA[:-1] + b"\0" if DATA[-1] else DATA[:-1] + b"\1"
    with pytest.raises(SourceError, match="digest mismatch"):
        fetch(server, store)
    assert (leftovers(store), blobs(store)) == ([], [])


@pytest.mark.parametrize("has_ranges", [True, False])
@pytest.mark.parametrize("difference", [-1, 1])
def test_a_size_other_than_the_declared_one_is_refused(
    server: FileServer, store: Store, has_ranges: bool, difference: int
) -> None:
    server.has_ranges = has_ranges
    with pytest.raises(SourceError, match="were declared"):
        fetch(server, store, size_bytes=SIZE + difference)
    assert blobs(store) == []


def test_a_stream_ends_one_byte_after_its_limit(server: FileServer, store: Store) -> None:
    """Without a length, whatever comes is counted."""

    def endless(handler: FileHandler) -> bool:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        try:
            while not server.stopping.is_set():
                handler.wfile.write(b"10000\r\n" + bytes(65536) + b"\r\n")
        except OSError:
            handler.close_connection = True
        return True

    server.specials.append(endless)
    with pytest.raises(SourceError, match="more than the"):
        fetch(server, store, size_bytes=1 << 20)


@pytest.mark.parametrize(
    "span", ["bytes 1-{last}/{total}", "bytes 0-{last}/*", "bytes 0-5/{total}", "garbage", "bytes 0-{last}/1e9"]
)
def test_another_range_than_asked_for_is_refused(server: FileServer, store: Store, span: str) -> None:
    def lie(handler: FileHandler) -> bool:
        last = transfer.RANGE_BYTES - 1
        handler.answer(206, DATA[: last + 1], {"Content-Range": span.format(last=last, total=SIZE)})
        return True

    server.specials.append(lie)
    with pytest.raises(SourceError, match="another part"):
        fetch(server, store)


def test_a_busy_server_is_asked_again(server: FileServer, store: Store) -> None:
    server.first_time("/f", 429, {"Retry-After": "1"}, times=2)
    server.first_time("/f", 503, times=2)
    assert fetch(server, store) == DATA


def test_six_tries_without_progress_are_enough(server: FileServer, store: Store) -> None:
    server.first_time("/f", 503, times=100)
    with pytest.raises(SourceError, match="status 503"):
        fetch(server, store)
    assert len(server.requests) == 6


def test_a_redirect_is_followed_once_and_gets_no_login(server: FileServer, store: Store) -> None:
    with running_files() as registry:
        registry.first_time("/f", 307, {"Location": server.origin + "/f"}, times=100)

        async def run() -> None:
            async with OutsideClient(trusted=(registry.origin, server.origin)) as client:
                headers = {"Authorization": "Bearer secret", "X-Custom": "secret"}
                with await fetch_blob(
                    client, registry.origin + "/f", store, digest=DIGEST, size_bytes=SIZE, max_bytes=SIZE,
                    completed=lambda done, total: None, headers=headers,
                ) as blob:  # fmt: skip
                    blob.publish()

        asyncio.run(run())
        assert len(registry.requests) == 1
        assert registry.requests[0][1]["authorization"] == "Bearer secret"
    assert not any("secret" in value for _, headers in server.requests for value in headers.values())


def test_a_signed_address_that_ran_out_is_asked_for_anew(server: FileServer, store: Store) -> None:
    signed = iter(f"/signed{number}" for number in range(100))
    valid: list[str] = []

    def redirect(handler: FileHandler) -> bool:
        if handler.path == "/f":
            valid[:] = [next(signed)]
            server.files[valid[0]] = DATA
            handler.answer(307, b"", {"Location": valid[0]})
            return True
        if len(server.requests) % 3 == 0:
            valid.clear()
        if handler.path not in valid:
            handler.answer(403)
            return True
        return False

    server.specials.append(redirect)
    assert fetch(server, store, connections=1) == DATA


def test_a_redirect_inside_is_refused(server: FileServer, store: Store) -> None:
    with running_files() as inner:
        server.first_time("/f", 307, {"Location": inner.origin + "/f"})
        with pytest.raises(SourceError, match="isn't https"):
            fetch(server, store)
        assert inner.requests == []


def test_a_token_that_ran_out_is_renewed(server: FileServer, store: Store) -> None:
    def guard(handler: FileHandler) -> bool:
        if handler.headers.get("Authorization") == "Bearer 2":
            return False
        handler.answer(401, b"", {"WWW-Authenticate": "Bearer realm=x"})
        return True

    async def renew(headers: object) -> dict[str, str]:
        return {"Authorization": "Bearer 2"}

    server.specials.append(guard)
    assert fetch(server, store, headers={"Authorization": "Bearer 1"}, renew=renew) == DATA


def test_a_stalled_server_has_a_limit(server: FileServer, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oprel.net.bulk.STALL_LIMIT_S", 0.1)

    def stall(handler: FileHandler) -> bool:
        server.stopping.wait(20)
        handler.close_connection = True
        return True

    server.specials.append(stall)
    with pytest.raises(SourceError, match="stopped answering"):
        fetch(server, store)


def test_cancelling_ends_soon_and_keeps_what_came(server: FileServer, store: Store) -> None:
    def stall(handler: FileHandler) -> bool:
        if server.sent_bytes < 3 << 20:
            return False
        server.stopping.wait(20)
        handler.close_connection = True
        return True

    server.specials.append(stall)

    async def run() -> None:
        async with OutsideClient(trusted=(server.origin,)) as client:
            async with asyncio.timeout(1):
                await fetch_blob(
                    client, server.origin + "/f", store, digest=DIGEST, size_bytes=SIZE, max_bytes=SIZE,
                    completed=lambda done, total: None,
                )  # fmt: skip

    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(run(), 10))
    server.specials.clear()
    before = server.sent_bytes
    assert fetch(server, store) == DATA
    assert server.sent_bytes - before < SIZE


class FullDisk(Disk):
    """Has room for so many bytes, whatever it says beforehand."""

    def __init__(self, room: int, *, honest: bool = False) -> None:
        self.room = room
        self.honest = honest

    def write_at(self, descriptor: int, data: bytes | memoryview, offset: int) -> None:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(28, os.strerror(28))
        super().write_at(descriptor, data, offset)

    def free_bytes(self, path: Path) -> int:
        return self.room if self.honest else 1 << 40


def test_a_disk_that_is_too_small_is_noticed_beforehand(server: FileServer, tmp_path: Path) -> None:
    store = Store(tmp_path / "models", state_dir=tmp_path / "state", disk=FullDisk(SIZE, honest=True))
    with pytest.raises(NoSpaceError):
        fetch(server, store)
    assert leftovers(store) == []


def test_a_disk_that_fills_up_is_told_and_freed(server: FileServer, tmp_path: Path) -> None:
    store = Store(tmp_path / "models", state_dir=tmp_path / "state", disk=FullDisk(5 << 20))
    with pytest.raises(NoSpaceError, match="no space left"):
        fetch(server, store)
    assert (leftovers(store), blobs(store)) == ([], [])


def test_an_old_partial_gives_way_to_a_download_that_needs_its_space(server: FileServer, tmp_path: Path) -> None:
    class Tight(Disk):
        def free_bytes(self, path: Path) -> int:
            return 100 if (tmp_path / "state/partial").exists() and list(path.glob("*.part"))[1:] else 1 << 40

    store = Store(tmp_path / "models", state_dir=tmp_path / "state", disk=Tight())
    with store.resume_blob("older") as older:  # type: ignore[union-attr]
        older.begin(total=None, validator="")
        older.write_at(0, memoryview(b"x"))
    assert fetch(server, store) == DATA
    assert leftovers(store) == []


def test_two_processes_fetch_the_same_file(server: FileServer, store: Store) -> None:
    with store.resume_blob(str(DIGEST)) as other:  # type: ignore[union-attr]
        assert fetch(server, store) == DATA
        assert other.path.exists()


def test_partials_go_after_a_week(server: FileServer, store: Store) -> None:
    with store.resume_blob("abandoned") as blob:  # type: ignore[union-attr]
        blob.begin(total=None, validator="")
        blob.write_at(0, memoryview(b"x"))
    store.sweep(min_age_s=-1)
    assert leftovers(store) == [".journal", ".part"]
    for path in (store.state_dir / "partial").iterdir():
        os.utime(path, (1, 1))
    store.sweep()
    assert leftovers(store) == []
