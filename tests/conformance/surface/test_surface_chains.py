"""What one request makes, the next ones find, until one takes it away: each answer as its document describes it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from support.surface import CHAT, surface_server
from support.tiny_gguf import gguf_bytes

from oprel.testing.strict import Observed, departures


class Client:
    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=20)

    def close(self) -> None:
        self._client.close()

    def __call__(self, method: str, path: str, body: Any = None, content: bytes | None = None) -> httpx.Response:
        answer = self._client.request(method, path, json=body, content=content)
        kind = answer.headers.get("content-type", "")
        seen = Observed(method, path, answer.status_code, kind, body=answer.content, is_whole=True)
        assert list(departures(seen)) == []
        return answer


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with surface_server(tmp_path_factory.mktemp("chains")) as server:
        client = Client(server.url)
        yield client
        client.close()


def test_a_response_is_kept_until_it_is_deleted(ask: Client) -> None:
    made = ask("POST", "/v1/responses", {"model": CHAT, "input": "hi"}).json()
    path = f"/v1/responses/{made['id']}"
    assert ask("GET", path).json() == made
    assert len(ask("GET", f"{path}/input_items").json()["data"]) == 1
    following = ask("POST", "/v1/responses", {"model": CHAT, "input": "and?", "previous_response_id": made["id"]})
    assert following.status_code == 200
    assert ask("POST", f"{path}/cancel").status_code == 400
    assert ask("DELETE", path).json()["deleted"]
    assert [ask(method, path).status_code for method in ("GET", "DELETE")] == [404, 404]


def test_a_model_of_a_blob_is_there_until_it_is_deleted(ask: Client) -> None:
    data = gguf_bytes()
    blob = f"/api/blobs/sha256:{hashlib.sha256(data).hexdigest()}"
    digest = blob.rpartition("/")[2]
    assert ask("POST", blob, content=data).status_code in (200, 201)
    assert ask("HEAD", blob).status_code == 200
    made = {"model": "made", "files": {"made.gguf": digest}, "system": "Be brief."}
    assert ask("POST", "/api/create", made).status_code == 200
    assert ask("POST", "/api/show", {"model": "made"}).json()["system"] == "Be brief."
    assert ask("POST", "/api/copy", {"source": "made", "destination": "copied"}).status_code == 200
    assert ask("DELETE", "/api/delete", {"model": "made"}).status_code == 200
    assert ask("POST", "/api/show", {"model": "made"}).status_code == 404
    assert ask("POST", "/api/chat", {"model": "copied", "messages": [{"role": "user", "content": "hi"}]}).is_success
    names = [model["name"] for model in ask("GET", "/api/tags").json()["models"]]
    assert "copied:latest" in names
    assert "made:latest" not in names


def test_what_is_nowhere_is_neither_fetched_nor_sent(ask: Client) -> None:
    for stream in (False, True):
        pulled = ask("POST", "/api/pull", {"model": "nothing", "stream": stream})
        pushed = ask("POST", "/api/push", {"model": CHAT, "stream": stream})
        assert [pulled.status_code, pushed.status_code] == ([200, 200] if stream else [500, 500])
        assert "error" in pulled.text
        assert "error" in pushed.text
