"""POST /api/push, and what a web page may not ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from oprel.errors import ModelNotFoundError, SourceError
from oprel.sources import PullProgress

if TYPE_CHECKING:
    from conftest import Serve

DIGEST = "sha256:" + "ab" * 32
STEPS = [
    PullProgress("retrieving manifest"),
    PullProgress("pushing abababababab", DIGEST, 100, 100),
    PullProgress("pushing manifest"),
    PullProgress("success"),
]
PAGE = {
    "error": "a web page can't have models sent to or fetched from registries: use the command line or another client"
}


def test_progress_comes_line_by_line(serve: Serve) -> None:
    served = serve()
    served.puller.steps = STEPS
    assert served.lines("/api/push", {"name": "reg.example/n/m", "insecure": True}) == [
        {"status": "retrieving manifest"},
        {"status": "pushing abababababab", "digest": DIGEST, "total": 100, "completed": 100},
        {"status": "pushing manifest"},
        {"status": "success"},
    ]
    assert served.puller.asked == [("reg.example/n/m", True)]


def test_without_a_stream_only_the_last_word_comes(serve: Serve) -> None:
    served = serve()
    served.puller.steps = STEPS
    response = served.ask("/api/push", {"model": "reg.example/n/m", "stream": False})
    assert response.content == b'{"status":"success"}'
    assert response.headers["content-type"] == "application/json"


@pytest.mark.parametrize("body", [{"model": ""}, {"name": " "}])
def test_a_model_is_required(serve: Serve, body: dict[str, Any]) -> None:
    assert serve().refused("/api/push", body) == (400, "model is required")


def test_a_model_that_is_not_here(serve: Serve) -> None:
    served = serve()
    served.puller.steps = [PullProgress("retrieving manifest"), PullProgress("couldn't retrieve manifest")]
    served.puller.failure = ModelNotFoundError("no", model="m")
    assert served.lines("/api/push", {"model": "m"}) == [
        {"status": "retrieving manifest"},
        {"status": "couldn't retrieve manifest"},
        {"error": "model 'm' not found"},
    ]


def test_a_refusal_of_the_registry(serve: Serve) -> None:
    served = serve()
    served.puller.failure = SourceError("unauthorized: access denied")
    assert served.refused("/api/push", {"model": "m", "stream": False}) == (500, "unauthorized: access denied")


@pytest.mark.parametrize("headers", [{"Origin": "http://localhost:3000"}, {"Sec_Fetch_Site": "same-origin"}])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/push", {"model": "reg.example/n/m"}),
        ("/api/push", {"model": "m"}),
        ("/api/pull", {"model": "reg.example/n/m"}),
        ("/api/pull", {"model": "m", "insecure": True}),
    ],
)
def test_no_page_reaches_registries(serve: Serve, headers: dict[str, str], path: str, body: dict[str, Any]) -> None:
    """Not even one whose origin may use the server otherwise."""
    served = serve()
    response = served.ask(path, body, **headers)
    assert (response.status_code, response.json()) == (403, PAGE)
    assert served.puller.asked == []


@pytest.mark.parametrize("model", ["llama3", "pypi:some-model", "hf.co/owner/repo"])
def test_a_page_of_this_machine_may_pull_from_the_usual_places(serve: Serve, model: str) -> None:
    served = serve()
    served.puller.steps = [PullProgress("success")]
    assert served.ask("/api/pull", {"model": model}, Origin="http://localhost:3000").status_code == 200
