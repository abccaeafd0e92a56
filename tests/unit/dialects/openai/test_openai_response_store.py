"""Responses are kept for their owner alone, over restarts, within bounds, the longest unused leaving first."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest

from oprel.dialects.openai.responses.keeping import Ids, Kept, ResponseStore, UnknownResponseError
from oprel.errors import StoreError


class Time:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def kept(text: str = "x", previous: str | None = None) -> Kept:
    item = {"type": "message", "role": "user", "content": text, "id": f"msg_{text}"}
    response = msgspec.json.encode({"output": [{**item, "role": "assistant"}]})
    return Kept(msgspec.Raw(response), [item], previous)


def fill(store: ResponseStore, count: int) -> list[str]:
    ids = [Ids().response for _ in range(count)]
    for made in ids:
        asyncio.run(store.put(made, kept()))
    return ids


def has(store: ResponseStore, response_id: str) -> bool:
    try:
        asyncio.run(store.get(response_id))
    except UnknownResponseError:
        return False
    return True


def test_nothing_is_made_before_it_is_needed(tmp_path: Path) -> None:
    ResponseStore(tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_only_the_owner_can_read_them(tmp_path: Path) -> None:
    (made,) = fill(ResponseStore(tmp_path / "r"), 1)
    assert stat.S_IMODE((tmp_path / "r").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "r" / f"{made}.json").stat().st_mode) == 0o600


def test_they_survive_a_restart_and_what_was_half_written_does_not(tmp_path: Path) -> None:
    (made,) = fill(ResponseStore(tmp_path), 1)
    (tmp_path / f"{made}.partial").write_text("{")
    again = ResponseStore(tmp_path)
    assert asyncio.run(again.get(made)) == kept()
    assert list(tmp_path.glob("*.partial")) == []


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text("mine")
    fill(ResponseStore(tmp_path, max_count=1), 3)
    assert (tmp_path / "notes.json").read_text() == "mine"


def test_the_longest_unused_leaves_first(tmp_path: Path) -> None:
    store = ResponseStore(tmp_path, max_count=2, now=Time())
    one, two = fill(store, 2)
    assert has(store, one)
    fill(store, 1)
    assert (has(store, one), has(store, two)) == (True, False)


def test_use_counts_after_a_restart_too(tmp_path: Path) -> None:
    time = Time()
    one, two = fill(store := ResponseStore(tmp_path, now=time), 2)
    assert has(store, one)
    again = ResponseStore(tmp_path, max_count=2, now=time)
    fill(again, 1)
    assert (has(again, one), has(again, two)) == (True, False)


def test_bytes_are_bounded(tmp_path: Path) -> None:
    store = ResponseStore(tmp_path, max_bytes=3 * len(msgspec.json.encode(kept())), now=Time())
    ids = fill(store, 5)
    assert [has(store, made) for made in ids] == [False, False, True, True, True]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 3 * len(msgspec.json.encode(kept()))


def test_age_is_bounded(tmp_path: Path) -> None:
    time = Time()
    (made,) = fill(store := ResponseStore(tmp_path, max_age_s=100, now=time), 1)
    time.now += 200
    assert not has(store, made)
    assert list(tmp_path.iterdir()) == []


def test_a_history_is_the_whole_chain(tmp_path: Path) -> None:
    store = ResponseStore(tmp_path)

    async def go() -> list[Any]:
        previous = None
        for text in "abc":
            made = Ids().response
            await store.put(made, kept(text, previous))
            previous = made
        assert previous is not None
        return [item["content"] for item in await store.history(previous, param="p")]

    assert asyncio.run(go()) == ["a", "a", "b", "b", "c", "c"]


def test_a_history_with_a_gap_says_what_is_missing(tmp_path: Path) -> None:
    store = ResponseStore(tmp_path)
    missing, made = Ids().response, Ids().response
    asyncio.run(store.put(made, kept("a", missing)))
    with pytest.raises(UnknownResponseError, match=missing) as raised:
        asyncio.run(store.history(made, param="previous_response_id"))
    assert raised.value.param == "previous_response_id"


def test_a_damaged_file_is_a_failure_with_its_name(tmp_path: Path) -> None:
    (made,) = fill(store := ResponseStore(tmp_path), 1)
    (tmp_path / f"{made}.json").write_text("{")
    with pytest.raises(StoreError, match=made):
        asyncio.run(store.get(made))


def test_ids_are_long_and_never_the_same() -> None:
    ids = Ids()
    assert len({ids.response, Ids().response, ids.item("msg"), ids.item("msg")}) == 4
    assert len(ids.response) == len("resp_") + 48


def test_many_at_once(tmp_path: Path) -> None:
    store = ResponseStore(tmp_path, max_count=5)

    async def go() -> None:
        await asyncio.gather(*(store.put(Ids().response, kept()) for _ in range(40)))

    asyncio.run(go())
    assert len(list(tmp_path.iterdir())) == 5
