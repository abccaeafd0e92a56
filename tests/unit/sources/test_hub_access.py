"""Where the hub is, by which token, and what a search finds."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.hub import HubServer, running_hub

from oprel.errors import ConfigError, SourceError
from oprel.sources.hub import Hub, SearchHit, read_hub_access
from oprel.store import Catalog, Store


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with running_hub() as server:
        yield server


def test_the_hub_is_where_it_always_was_unless_somebody_says_otherwise() -> None:
    usual = read_hub_access({"HF_HOME": "/nowhere"})
    assert (usual.endpoint, usual.token, usual.is_configured) == ("https://huggingface.co", None, False)
    mirror = read_hub_access({"HF_HOME": "/nowhere", "HF_ENDPOINT": "http://10.0.0.5:8080/hub/"})
    assert (mirror.endpoint, mirror.is_configured) == ("http://10.0.0.5:8080/hub", True)
    with pytest.raises(ConfigError, match="HF_ENDPOINT"):
        read_hub_access({"HF_ENDPOINT": "ftp://x"})


def test_the_token_is_read_as_the_hubs_own_tools_do(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hf_file\n")
    home = {"HF_HOME": str(tmp_path)}
    assert read_hub_access(home).token == "hf_file"
    assert read_hub_access({"HF_TOKEN_PATH": str(tmp_path / "token")}).token == "hf_file"
    assert read_hub_access({**home, "HF_TOKEN": "hf_variable"}).token == "hf_variable"
    assert read_hub_access({**home, "HUGGING_FACE_HUB_TOKEN": "hf_old"}).token == "hf_old"
    assert read_hub_access({**home, "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}).token is None


def test_a_token_is_shown_nowhere() -> None:
    access = read_hub_access({"HF_TOKEN": "hf_secret"})
    assert "hf_secret" not in repr(access)
    with pytest.raises(ConfigError) as caught:
        read_hub_access({"HF_TOKEN": "hf_secret\u00e9"})
    assert "hf_secret" not in str(caught.value)


def search(hub: HubServer, query: str, tmp_path: Path, limit: int = 10) -> tuple[SearchHit, ...]:
    catalog = Catalog(Store(tmp_path / "models", state_dir=tmp_path / "state"))
    return asyncio.run(Hub(catalog, read_access=hub.access).search(query, limit=limit))


def test_a_search_finds_repositories_by_name(hub: HubServer, tmp_path: Path) -> None:
    for name in ("a/Tiny-GGUF", "b/tiny-too", "c/Other-GGUF"):
        hub.add(name, {"x-Q4_K_M.gguf" if name.endswith("GGUF") else "x.bin": b"x"})
    assert search(hub, "tiny & more?limit=9", tmp_path) == ()
    assert search(hub, "tiny", tmp_path) == (SearchHit("a/Tiny-GGUF", 100, 0, ("gguf",)),)
    assert [hit.id for hit in search(hub, "gguf", tmp_path, limit=1)] == ["a/Tiny-GGUF"]


@pytest.mark.parametrize("body", [b"", b"{}", b"[1]", b"[" * 5000])
def test_an_answer_that_is_none_is_one_sentence(hub: HubServer, tmp_path: Path, body: bytes) -> None:
    hub.special["/api/models"] = lambda handler: handler.answer(200, body)
    with pytest.raises(SourceError, match="answer to a search can't be read"):
        search(hub, "x", tmp_path)


def test_names_that_are_none_are_left_out(hub: HubServer, tmp_path: Path) -> None:
    hub.special["/api/models"] = lambda handler: handler.json(
        [{"id": "../x"}, {"id": "a/b\x1b[31m"}, {"id": 3}, {}, {"id": "a/b", "downloads": "many", "tags": 3}]
    )
    assert search(hub, "x", tmp_path) == (SearchHit("a/b"),)


@pytest.mark.parametrize(("failures", "asked"), [(1, 2), (9, 2)])
def test_a_search_asks_twice_for_somebody_waits_for_it(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int, asked: int
) -> None:
    monkeypatch.setattr("oprel.sources.retries.wait_before_retry", lambda state: 0.01)
    answers = iter([503] * failures)
    requests: list[int] = []

    def busy(handler: Any) -> None:
        requests.append(next(answers, 200))
        handler.answer(requests[-1], b"[]")

    hub.special["/api/models"] = busy
    if failures < asked:
        assert search(hub, "x", tmp_path) == ()
    else:
        with pytest.raises(SourceError, match="status 503"):
            search(hub, "x", tmp_path)
    assert len(requests) == asked
