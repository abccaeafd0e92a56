"""What an engine can't do never reaches it: refused by name, or, for options, left out and told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from oprel.schema import Capabilities
from oprel.testing import Script, scripted_model

Serve = Callable[..., Any]
PLAIN = Capabilities(chat=True, complete=True, tokenize=True, sampling=frozenset({"temperature", "max_tokens"}))
HELLO = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "stream": False}


def test_options_that_the_engine_does_not_honour_are_left_out_and_told(serve: Serve) -> None:
    served = serve(Script(capabilities=PLAIN))
    options = {"temperature": 0.5, "top_k": 3, "num_predict": 2, "seed": 1}
    response = served.ask("/api/chat", {**HELLO, "options": options})
    assert response.status_code == 200
    assert (
        response.headers["x-oprel-warning"]
        == "parameter_ignored; the driver 'scripted' doesn't take: options.top_k, options.seed"
    )
    sampling = served.request.sampling
    assert (sampling.temperature, sampling.max_tokens, sampling.top_k, sampling.seed) == (0.5, 2, None, None)
    assert sampling.top_p is None, "a default that the engine doesn't know isn't sent either"


def test_a_raw_prompt_is_settled_too(serve: Serve) -> None:
    served = serve(Script(capabilities=PLAIN))
    asked = {"model": "tiny", "prompt": "Hi", "raw": True, "stream": False, "options": {"min_p": 0.1}}
    response = served.ask("/api/generate", asked)
    assert response.status_code == 200
    assert "options.min_p" in response.headers["x-oprel-warning"]
    assert served.request.sampling.min_p is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"format": "json"}, "json_schema"),
        ({"logprobs": True}, "logprobs"),
    ],
    ids=["format", "logprobs"],
)
def test_all_else_is_refused_by_name_before_the_engine_is_asked(
    serve: Serve, change: dict[str, Any], named: str
) -> None:
    served = serve(Script(capabilities=PLAIN))
    status, error = served.refused("/api/chat", {**HELLO, **change})
    assert status == 400
    assert named in error
    assert "'scripted'" in error
    assert served.engine.calls == []


THINKING = scripted_model("tiny:latest", capabilities=frozenset({"completion", "thinking"}))


@pytest.mark.parametrize(
    ("path", "asked"),
    [("/api/chat", HELLO), ("/api/generate", {"model": "tiny", "prompt": "Hi", "stream": False})],
)
def test_a_model_that_would_think_does_not_on_an_engine_that_can_not(
    serve: Serve, path: str, asked: dict[str, Any]
) -> None:
    """Nobody asked for it; who does is refused."""
    served = serve(Script(capabilities=PLAIN), THINKING)
    assert served.ask(path, asked).status_code == 200
    assert served.request.thinking is None
    status, error = served.refused(path, {**asked, "think": True})
    assert (status, "thinking" in error) == (400, True)


def test_show_tells_what_would_serve_a_model_and_what_serves_it(serve: Serve) -> None:
    served = serve(Script(capabilities=PLAIN, slots=3, context_tokens=99))
    before = served.json("/api/show", {"model": "tiny"})["oprel"]
    assert (before["driver"], before["loaded"], "problem" in before) == ("scripted", False, False)
    assert before["capabilities"] == ["chat", "complete", "tokenize"]
    assert before["sampling"] == ["max_tokens", "temperature"]
    assert before["plan"]["slots"] == 3
    assert before["plan"]["context_tokens"] == before["context_tokens"] == 99
    assert before["plan"]["bytes_by_device"] == {"cpu": 104_857_600}
    assert set(before["plan"]["reasons"]) == {"context", "slots", "device"}
    served.json("/api/chat", HELLO)
    assert served.json("/api/show", {"model": "tiny"})["oprel"]["loaded"] is True
