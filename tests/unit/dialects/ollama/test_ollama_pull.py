"""POST /api/pull."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from oprel.errors import InvalidNameError, ModelNotFoundError, SourceError
from oprel.sources import PullProgress, PullWish

if TYPE_CHECKING:
    from conftest import Serve

DIGEST = "sha256:" + "ab" * 32
STEPS = [
    PullProgress("pulling manifest"),
    PullProgress("pulling abababababab", DIGEST, 100, 0),
    PullProgress("pulling abababababab", DIGEST, 100, 100),
    PullProgress("success"),
]


def test_progress_comes_line_by_line(serve: Serve) -> None:
    served = serve()
    served.puller.steps = STEPS
    assert served.lines("/api/pull", {"name": "llama3", "insecure": True}) == [
        {"status": "pulling manifest"},
        {"status": "pulling abababababab", "digest": DIGEST, "total": 100},
        {"status": "pulling abababababab", "digest": DIGEST, "total": 100, "completed": 100},
        {"status": "success"},
    ]
    assert served.puller.asked == [("llama3", True)]


def test_a_note_for_people_comes_under_our_own_key(serve: Serve) -> None:
    served = serve()
    served.puller.steps = [PullProgress("pulling manifest", note="Q4_K_M: it fits"), PullProgress("success")]
    body = {"model": "o/r", "oprel": {"allow_low_quality": True, "max_memory_mb": 700}}
    assert served.lines("/api/pull", body) == [
        {"status": "pulling manifest", "oprel": {"note": "Q4_K_M: it fits"}},
        {"status": "success"},
    ]
    assert served.puller.wishes == [PullWish(allow_low_quality=True, max_memory_bytes=700 << 20)]


def test_a_limit_below_nothing_is_refused(serve: Serve) -> None:
    served = serve()
    response = served.ask("/api/pull", {"model": "o/r", "oprel": {"max_memory_mb": -1}})
    assert response.status_code == 400
    assert "max_memory_mb" in response.json()["error"]
    assert served.puller.asked == []


def test_without_a_stream_only_the_last_word_comes(serve: Serve) -> None:
    served = serve()
    served.puller.steps = STEPS
    response = served.ask("/api/pull", {"model": "llama3", "stream": False})
    assert response.content == b'{"status":"success"}'
    assert response.headers["content-type"] == "application/json"


@pytest.mark.parametrize("steps", [STEPS[:1], []])
def test_an_unknown_model_is_a_line_in_a_stream_and_500_without_one(serve: Serve, steps: list[PullProgress]) -> None:
    served = serve()
    served.puller.steps = steps
    served.puller.failure = ModelNotFoundError("no", model="llama9")
    text = "pull model manifest: file does not exist"
    assert served.lines("/api/pull", {"model": "llama9"})[-1] == {"error": text}
    assert served.refused("/api/pull", {"model": "llama9", "stream": False}) == (500, text)


def test_other_failures_say_what_happened(serve: Serve) -> None:
    served = serve()
    served.puller.steps = STEPS[:2]
    served.puller.failure = SourceError("the registry answered 502")
    assert served.lines("/api/pull", {"model": "m"})[-1] == {"error": "the registry answered 502"}
    assert served.refused("/api/pull", {"model": "m", "stream": False}) == (500, "the registry answered 502")


@pytest.mark.parametrize("body", [{}, {"model": " "}, {"model": "a b"}])
def test_a_name_that_is_none_is_refused(serve: Serve, body: dict[str, Any]) -> None:
    served = serve()
    served.puller.failure = InvalidNameError("no", name="a b")
    assert served.refused("/api/pull", body) == (400, "invalid model name")
    assert served.refused("/api/pull", {**body, "stream": False}) == (400, "invalid model name")
