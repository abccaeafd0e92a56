"""The cases that compatible servers are known to get wrong, by their number; one test each. Those that belong to other
dialects, to the gate before the routes, or to routes that aren't there (blobs, create) are tested where those are."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from oprel.errors import ModelNotFoundError
from oprel.schema import ToolCall
from oprel.sources import PullProgress
from oprel.testing import Script, scripted_model

if TYPE_CHECKING:
    from conftest import Serve, Served

MINI = scripted_model("mini:latest", capabilities=frozenset({"embedding"}))
TINY = scripted_model("tiny:latest", capabilities=frozenset({"completion", "tools", "thinking"}))
PLAIN = scripted_model("plain:latest")
GEN = {"model": "tiny", "prompt": "Hi"}
CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
WHOLE = {"stream": False}


@pytest.fixture
def served(serve: Serve) -> Served:
    script = Script(text=("a", "b"), thinking=("hm",), tool_calls=(ToolCall("f", '{"x":1}'),), cached_tokens=1)
    return serve(None, MINI, TINY, PLAIN, scripts={"tiny:latest": script, "plain:latest": Script()})


@pytest.mark.parametrize(
    "content_type", [None, "application/x-www-form-urlencoded", "text/plain", "multipart/form-data"]
)
def test_01_json_whatever_the_content_type(served: Served, content_type: str | None) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    response = served.client.post("/api/chat", content=json.dumps({**CHAT, **WHOLE}), headers=headers)
    assert response.json()["done"] is True


@pytest.mark.parametrize("stream", [{}, {"stream": None}, {"stream": True}])
def test_02_streaming_is_the_default(served: Served, stream: dict[str, Any]) -> None:
    assert len(served.lines("/api/generate", {**GEN, **stream})) > 1
    assert len(served.lines("/api/chat", {**CHAT, **stream})) > 1


@pytest.mark.parametrize(("path", "body"), [("/api/generate", {"model": "tiny"}), ("/api/chat", {"model": "tiny"})])
@pytest.mark.parametrize("reason", ["load", "unload"])
def test_03_loads_and_unloads_are_one_object_even_when_streaming(
    served: Served, path: str, body: dict[str, Any], reason: str
) -> None:
    response = served.ask(path, {**body, "stream": True, **({"keep_alive": 0} if reason == "unload" else {})})
    assert response.headers["content-type"].startswith("application/json")
    assert response.json()["done_reason"] == reason


def test_04_an_empty_prompt_waits_until_the_model_is_loaded(serve: Serve) -> None:
    served = serve(Script(start_delay_s=0.2))
    served.json("/api/generate", {"model": "tiny"})
    assert len(served.driver.engines) == 1


def test_05_unloading_what_is_not_loaded_is_fine_and_what_is_not_there_is_not(served: Served) -> None:
    assert served.json("/api/generate", {"model": "tiny", "keep_alive": 0})["done_reason"] == "unload"
    assert served.refused("/api/generate", {"model": "none", "keep_alive": 0})[0] == 404


@pytest.mark.parametrize(
    ("path", "body", "refusal"),
    [
        ("/api/generate", {"prompt": "x"}, (404, "model '' not found")),
        ("/api/chat", {"messages": []}, (400, "model is required")),
        ("/api/embed", {"input": "x"}, (404, "model '' not found")),
        ("/api/embeddings", {"prompt": "x"}, (400, "model is required")),
        ("/api/show", {}, (400, "model is required")),
        ("/api/generate", {"model": "x", "prompt": "x"}, (404, "model 'x' not found")),
        ("/api/chat", {"model": "x", "messages": []}, (404, "model 'x' not found")),
        ("/api/embed", {"model": "x", "input": "x"}, (404, 'model "x" not found, try pulling it first')),
        ("/api/embeddings", {"model": "x", "prompt": "x"}, (404, 'model "x" not found, try pulling it first')),
        ("/api/show", {"model": "x"}, (404, "model 'x:latest' not found")),
        ("/api/generate", {"model": "a b", "prompt": "x"}, (400, "invalid model name")),
        ("/api/chat", {"model": "a b"}, (400, "invalid model name")),
        ("/api/embed", {"model": "a b"}, (400, "invalid model name")),
        ("/api/embeddings", {"model": "a b"}, (400, "invalid model name")),
        ("/api/generate", {"model": "mini", "prompt": "x"}, (400, '"mini" does not support generate')),
        ("/api/chat", {"model": "mini"}, (400, '"mini" does not support chat')),
    ],
)
def test_06_each_endpoint_has_its_own_words(served: Served, path: str, body: Any, refusal: tuple[int, str]) -> None:
    assert served.refused(path, body) == refusal


def test_07_name_is_a_word_for_model_in_some_places_only(served: Served) -> None:
    assert served.json("/api/show", {"name": "tiny"})["details"]
    assert served.refused("/api/generate", {"name": "tiny", "prompt": "x"})[0] == 404
    assert served.refused("/api/chat", {"name": "tiny"})[0] == 400
    assert served.refused("/api/embed", {"name": "mini", "input": "x"})[0] == 404


def test_08_the_model_is_echoed_as_it_was_asked_and_listed_with_its_tag(served: Served) -> None:
    assert served.json("/api/chat", {**CHAT, **WHOLE, "model": "TiNy"})["model"] == "TiNy"
    assert {item["name"] for item in served.json("/api/tags", method="GET")["models"]} == {
        "tiny:latest", "mini:latest", "plain:latest",
    }  # fmt: skip
    assert served.json("/api/ps", method="GET")["models"][0]["name"] == "tiny:latest"


def test_09_digests_have_a_prefix_in_progress_only(served: Served) -> None:
    digest = "sha256:" + "0" * 64
    served.puller.steps = [PullProgress("pulling 000000000000", digest, 1, 1), PullProgress("success")]
    assert served.lines("/api/pull", {"model": "x"})[0]["digest"] == digest
    assert ":" not in served.json("/api/tags", method="GET")["models"][0]["digest"]


def test_10_nothing_is_an_empty_list(served: Served) -> None:
    served.catalog.models.clear()
    assert served.ask("/api/tags", method="GET").content == b'{"models":[]}'
    assert served.ask("/api/ps", method="GET").content == b'{"models":[]}'


def test_13_errors_have_a_status_before_the_first_line_and_a_line_after_it(serve: Serve) -> None:
    assert serve(Script(dies_at=0)).ask("/api/chat", CHAT).status_code == 500
    late = serve(Script(dies_at=1)).ask("/api/chat", CHAT)
    assert late.status_code == 200
    assert "error" in json.loads(late.content.splitlines()[-1])


def test_14_an_unknown_model_is_a_line_of_a_pull_or_500(served: Served) -> None:
    served.puller.failure = ModelNotFoundError("no", model="x")
    assert served.lines("/api/pull", {"model": "x"}) == [{"error": "pull model manifest: file does not exist"}]
    assert served.refused("/api/pull", {"model": "x", **WHOLE})[0] == 500


def test_15_a_pull_without_a_stream_answers_its_last_status(served: Served) -> None:
    served.puller.steps = [PullProgress("pulling manifest"), PullProgress("success")]
    assert served.json("/api/pull", {"model": "x", **WHOLE}) == {"status": "success"}


@pytest.mark.parametrize("good", [1, 0.5, -1, "5m", "300ms", "-1s", "1h30m", None])
def test_16_keep_alive_takes_numbers_and_durations(served: Served, good: object) -> None:
    assert served.json("/api/generate", {"model": "plain", "keep_alive": good})["done_reason"] == "load"


@pytest.mark.parametrize("bad", ["5", "", True])
def test_16_keep_alive_refuses_numbers_in_strings(served: Served, bad: object) -> None:
    assert served.refused("/api/generate", {"model": "plain", "keep_alive": bad})[0] == 400


def test_17_durations_are_whole_nanoseconds_and_zeros_are_left_out(served: Served) -> None:
    answer = served.json("/api/chat", {**CHAT, **WHOLE})
    assert all(isinstance(answer[name], int) and answer[name] > 0 for name in answer if name.endswith("_duration"))
    loaded = served.json("/api/chat", {"model": "tiny"})
    assert not any(name.endswith(("_duration", "_count")) for name in loaded)
    assert loaded["message"]["content"] == ""


def test_18_19_tool_calls_come_whole_with_objects_as_arguments(served: Served) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    lines = served.lines("/api/chat", {**CHAT, "tools": tools})
    (calling,) = [line for line in lines if "tool_calls" in line["message"]]
    (call,) = calling["message"]["tool_calls"]
    assert call["function"] == {"index": 0, "name": "f", "arguments": {"x": 1}}
    assert call["id"].startswith("call_")
    assert lines[-1]["done_reason"] == "stop"


def test_20_21_thinking_is_on_for_models_that_can_and_has_its_own_key(served: Served) -> None:
    assert served.json("/api/chat", {**CHAT, **WHOLE})["message"]["thinking"] == "hm"
    assert served.json("/api/generate", {**GEN, **WHOLE})["thinking"] == "hm"
    assert "thinking" not in served.json("/api/chat", {**CHAT, **WHOLE, "think": False})["message"]
    refused = served.refused("/api/chat", {**CHAT, "model": "plain", "think": True})
    assert refused == (400, '"plain" does not support thinking')


def test_22_unknown_options_are_ignored_and_wrong_types_are_500(served: Served) -> None:
    assert served.json("/api/chat", {**CHAT, **WHOLE, "options": {"warmth": 1, "stop": "x"}})["done"]
    assert served.refused("/api/chat", {**CHAT, "options": {"num_ctx": "x"}}) == (
        500,
        'option "num_ctx" must be of type integer',
    )


def test_25_embeddings_have_length_1_in_the_new_endpoint_and_an_empty_input_loads(served: Served) -> None:
    (vector,) = served.json("/api/embed", {"model": "mini", "input": "x"})["embeddings"]
    assert sum(value * value for value in vector) == pytest.approx(1, abs=1e-5)
    served.json("/api/embeddings", {"model": "mini", "prompt": "x"})
    assert served.request.normalize is False
    assert served.json("/api/embed", {"model": "mini"})["embeddings"] == []


def test_26_context_is_returned_unless_raw_and_taken_back(served: Served) -> None:
    first = served.json("/api/generate", {**GEN, **WHOLE})
    second = served.json("/api/generate", {**GEN, **WHOLE, "context": first["context"]})
    assert second["context"][: len(first["context"])] == first["context"]
    assert "context" not in served.json("/api/generate", {**GEN, **WHOLE, "raw": True})


def test_27_a_long_conversation_loses_its_oldest_turns(serve: Serve) -> None:
    served = serve(Script(context_tokens=30))
    turns = [("system", "s"), ("user", "old " * 40), ("user", "new")]
    body = {"model": "tiny", **WHOLE, "messages": [{"role": role, "content": text} for role, text in turns]}
    served.json("/api/chat", body)
    assert [message.text for message in served.request.messages] == ["s", "new"]


@pytest.mark.parametrize("name", ["TINY", "tiny:LATEST", "Tiny:latest"])
def test_28_names_match_in_any_case(served: Served, name: str) -> None:
    for path, body in (("/api/chat", CHAT), ("/api/generate", GEN), ("/api/show", {})):
        assert served.ask(path, {**body, "model": name}).status_code == 200


def test_30_streams_have_no_blank_lines(served: Served) -> None:
    assert b"" not in served.ask("/api/chat", CHAT).content.splitlines()
