"""POST /api/generate."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import pytest

from oprel.schema import (
    ALL_SAMPLING,
    Capabilities,
    ChatRequest,
    CompletionRequest,
    JsonObject,
    JsonSchema,
    Message,
    TextPart,
    Thinking,
    Usage,
)
from oprel.testing import Script, scripted_model

if TYPE_CHECKING:
    from conftest import Serve

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + (3).to_bytes(4, "big") * 2 + bytes(9)).decode()
THINKER = scripted_model("tiny:latest", capabilities=frozenset({"completion", "thinking"}))
BASE = scripted_model("tiny:latest", chat_template=None)


def asked(request: ChatRequest) -> list[tuple[str, str]]:
    return [(message.role, message.text) for message in request.messages]


def test_a_stream_has_a_line_for_each_token_and_a_last_one_with_the_figures(serve: Serve) -> None:
    lines = serve(Script(text=("Hel", "lo"))).lines("/api/generate", {"model": "Tiny", "prompt": "Hi"})
    *pieces, last = lines
    assert [piece["response"] for piece in pieces] == ["Hel", "lo"]
    assert [list(piece) for piece in pieces] == [["model", "created_at", "response", "done"]] * 2
    assert last["model"] == "Tiny"
    assert (last["response"], last["done"], last["done_reason"]) == ("", True, "stop")
    assert list(last) == [
        "model", "created_at", "response", "done", "done_reason", "context", "total_duration", "load_duration",
        "prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration",
    ]  # fmt: skip
    assert last["eval_count"] == 2
    assert bytes(last["context"]).decode() == "user: Hi\nHello"


def test_without_a_stream_everything_is_in_one_object(serve: Serve) -> None:
    served = serve(Script(text=("Hel", "lo"), thinking=("hm", "m")), THINKER)
    response = served.ask("/api/generate", {"model": "tiny", "prompt": "Hi", "stream": False})
    assert response.headers["content-type"] == "application/json; charset=utf-8"
    assert not response.content.endswith(b"\n")
    answer = response.json()
    assert (answer["response"], answer["thinking"], answer["done_reason"]) == ("Hello", "hmm", "stop")
    assert response.headers["x-oprel-driver"] == "scripted"
    assert response.headers["x-oprel-device"] == "cpu"


def test_zero_figures_are_left_out(serve: Serve) -> None:
    served = serve(Script(text=(), usage=Usage(0, 0)))
    answer = served.json("/api/generate", {"model": "tiny", "prompt": "x", "stream": False})
    assert "eval_count" not in answer
    assert "prompt_eval_count" not in answer
    assert answer["response"] == ""


def test_the_end_by_length_is_told(serve: Serve) -> None:
    body = {"model": "tiny", "prompt": "x", "stream": False, "options": {"num_predict": 1}}
    answer = serve(Script(text=("a", "b"))).json("/api/generate", body)
    assert (answer["response"], answer["done_reason"]) == ("a", "length")


@pytest.mark.parametrize("stream", [True, False])
def test_an_empty_prompt_loads_the_model_and_answers_in_one_object(serve: Serve, stream: bool) -> None:
    served = serve()
    response = served.ask("/api/generate", {"model": "tiny", "stream": stream, "keep_alive": "10m"})
    assert response.headers["content-type"] == "application/json; charset=utf-8"
    answer = response.json()
    assert list(answer) == ["model", "created_at", "response", "done", "done_reason"]
    assert (answer["response"], answer["done"], answer["done_reason"]) == ("", True, "load")
    assert len(served.driver.engines) == 1
    assert served.engine.calls == []
    (running,) = served.json("/api/ps", method="GET")["models"]
    assert running["name"] == "tiny:latest"


def test_keep_alive_0_without_a_prompt_unloads(serve: Serve) -> None:
    served = serve()
    unload = {"model": "tiny", "keep_alive": 0}
    assert served.json("/api/generate", unload)["done_reason"] == "unload"  # it wasn't loaded
    served.json("/api/generate", {"model": "tiny"})
    assert served.json("/api/generate", unload)["done_reason"] == "unload"
    assert served.engine.is_stopped
    assert served.refused("/api/generate", {"model": "absent", "keep_alive": 0}) == (404, "model 'absent' not found")


def test_the_prompt_becomes_a_conversation_with_the_models_own_messages(serve: Serve) -> None:
    model = scripted_model(
        "tiny:latest",
        system="Be kind.",
        messages=(Message("user", (TextPart("1+1?"),)), Message("assistant", (TextPart("2"),))),
        parameters=(("temperature", 0.1), ("stop", ["###"])),
    )
    served = serve(None, model)
    served.json("/api/generate", {"model": "tiny", "prompt": "2+2?", "stream": False})
    assert asked(served.request) == [("system", "Be kind."), ("user", "1+1?"), ("assistant", "2"), ("user", "2+2?")]
    assert (served.request.sampling.temperature, served.request.sampling.stop) == (0.1, ("###",))
    served.json("/api/generate", {"model": "tiny", "prompt": "x", "system": "Be rude.", "stream": False})
    assert asked(served.request)[0] == ("system", "Be rude.")


def test_defaults_are_ollamas_and_a_generation_without_a_limit_has_one_of_time(serve: Serve) -> None:
    served = serve(None, scripted_model("tiny:latest"), request_time_limit=77.0)
    served.json("/api/generate", {"model": "tiny", "prompt": "x", "stream": False})
    sampling = served.request.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (0.8, 40, 0.9, 0.0)
    assert (sampling.typical_p, sampling.repeat_penalty, sampling.repeat_last_n) == (1.0, 1.0, 64)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.0, 0.0)
    assert (sampling.max_tokens, sampling.time_limit_s) == (None, 77.0)
    served.json("/api/generate", {"model": "tiny", "prompt": "x", "stream": False, "options": {"num_predict": 3}})
    assert (served.request.sampling.max_tokens, served.request.sampling.time_limit_s) == (3, None)


def test_raw_sends_the_prompt_as_it_is_and_gives_no_context(serve: Serve) -> None:
    served = serve()
    answer = served.json("/api/generate", {"model": "tiny", "prompt": "<|x|>Hi", "raw": True, "stream": False})
    assert "context" not in answer
    assert served.request == CompletionRequest("<|x|>Hi", served.request.sampling)


@pytest.mark.parametrize("field", [{"template": "{{ .Prompt }}"}, {"system": "s"}, {"context": [1]}])
def test_raw_excludes_template_system_and_context(serve: Serve, field: dict[str, object]) -> None:
    body = {"model": "tiny", "prompt": "x", "raw": True, **field}
    assert serve().refused("/api/generate", body) == (
        400,
        "raw mode does not support template, system, or context",
    )


def test_context_comes_back_and_leads_on(serve: Serve) -> None:
    served = serve(Script(text=("one",)))
    first = served.json("/api/generate", {"model": "tiny", "prompt": "A", "stream": False})
    body = {"model": "tiny", "prompt": "B", "context": first["context"], "stream": False}
    second = served.json("/api/generate", body)
    assert served.request.prompt == "user: A\noneuser: B\n"
    assert bytes(second["context"]).decode() == "user: A\noneuser: B\none"


def test_a_model_without_a_template_gets_the_prompt_as_it_is(serve: Serve) -> None:
    served = serve(Script(text=("!",)), BASE)
    answer = served.json("/api/generate", {"model": "tiny", "prompt": "Once", "stream": False})
    assert served.request.prompt == "Once"
    assert bytes(answer["context"]).decode() == "Once!"


def test_suffix_needs_a_model_that_inserts(serve: Serve) -> None:
    body = {"model": "tiny", "prompt": "def f(", "suffix": "return 1"}
    assert serve().refused("/api/generate", body) == (
        400,
        "registry.ollama.ai/library/tiny:latest does not support insert",
    )


def test_images_need_a_model_that_sees(serve: Serve) -> None:
    body = {"model": "tiny", "prompt": "What is it?", "images": [PNG]}
    assert serve().refused("/api/generate", body) == (
        400,
        "registry.ollama.ai/library/tiny:latest does not support vision",
    )


def test_images_are_decoded_and_stand_before_the_prompt(serve: Serve) -> None:
    seeing = Script(capabilities=Capabilities(chat=True, vision=True, sampling=ALL_SAMPLING))
    served = serve(seeing, scripted_model("tiny:latest", capabilities=frozenset({"completion", "vision"})))
    served.json("/api/generate", {"model": "tiny", "prompt": "What?", "images": [PNG], "stream": False})
    image, text = served.request.messages[0].content
    assert (image.media_type, image.data, text) == ("image/png", base64.b64decode(PNG), TextPart("What?"))


def test_bad_base64_is_refused_in_gos_words(serve: Serve) -> None:
    body = {"model": "tiny", "prompt": "x", "images": ["iVBO-w0K"]}
    assert serve().refused("/api/generate", body) == (400, "illegal base64 data at input byte 4")


@pytest.mark.parametrize("empty", ["", None])
def test_an_empty_format_is_none(serve: Serve, empty: str | None) -> None:
    served = serve()
    served.json("/api/generate", {"model": "tiny", "prompt": "x", "format": empty, "stream": False})
    assert served.request.format is None


def test_formats(serve: Serve) -> None:
    served = serve()
    served.json("/api/generate", {"model": "tiny", "prompt": "x", "format": "json", "stream": False})
    assert served.request.format == JsonObject()
    schema = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {}}}
    served.json("/api/generate", {"model": "tiny", "prompt": "x", "format": schema, "stream": False})
    assert served.request.format == JsonSchema('{"type":"object","properties":{"b":{"type":"integer"},"a":{}}}')
    assert served.refused("/api/generate", {"model": "tiny", "prompt": "x", "format": "xml"}) == (
        500,
        r'invalid format: "\"xml\""; expected "json" or a valid JSON Schema object',
    )


def test_a_thinking_model_thinks_unless_it_is_told_not_to(serve: Serve) -> None:
    served = serve(Script(text=("answer",), thinking=("hm",)), THINKER)
    body = {"model": "tiny", "prompt": "x", "stream": False}
    assert served.json("/api/generate", body)["thinking"] == "hm"
    assert served.request.thinking == Thinking(True)
    assert "thinking" not in served.json("/api/generate", {**body, "think": False})
    assert served.request.thinking == Thinking(False)
    served.json("/api/generate", {**body, "think": "max"})
    assert served.request.thinking == Thinking(True, "max")


def test_thinking_lines_come_first(serve: Serve) -> None:
    lines = serve(Script(text=("yes",), thinking=("hm",)), THINKER).lines(
        "/api/generate", {"model": "tiny", "prompt": "x"}
    )
    assert [(line["response"], line.get("thinking")) for line in lines] == [("", "hm"), ("yes", None), ("", None)]


def test_logprobs(serve: Serve) -> None:
    served = serve(Script(text=("a", "b")))
    body = {"model": "tiny", "prompt": "x", "logprobs": True, "top_logprobs": 2}
    lines = served.lines("/api/generate", body)
    assert [[item["token"] for item in line["logprobs"]] for line in lines[:-1]] == [["a"], ["b"]]
    assert all(len(item["top_logprobs"]) <= 2 for line in lines[:-1] for item in line["logprobs"])
    whole = served.json("/api/generate", {**body, "stream": False})
    assert [item["token"] for item in whole["logprobs"]] == ["a", "b"]
    assert "logprobs" not in served.json("/api/generate", {"model": "tiny", "prompt": "x", "stream": False})
    for wrong in (-1, 21):
        assert served.refused("/api/generate", {**body, "top_logprobs": wrong}) == (
            400,
            "top_logprobs must be between 0 and 20",
        )


def test_what_was_ignored_is_told_in_a_header(serve: Serve) -> None:
    body = {"model": "tiny", "prompt": "x", "stream": False, "options": {"warmth": 1, "mirostat": 2}, "mood": "good"}
    response = serve().ask("/api/generate", body)
    assert response.headers["x-oprel-warning"] == "parameter_ignored; without effect here: options.warmth, mood"


def test_the_prompt_can_be_shown_instead(serve: Serve) -> None:
    answer = serve().json("/api/generate", {"model": "tiny", "prompt": "Hi", "_debug_render_only": True})
    assert answer["_debug_info"] == {"rendered_template": "user: Hi\n"}
    assert (answer["response"], answer["done"]) == ("", False)


def test_html_is_escaped(serve: Serve) -> None:
    response = serve(Script(text=("<b>&",))).ask("/api/generate", {"model": "tiny", "prompt": "x"})
    assert rb"\u003cb\u003e\u0026" in response.content


def test_load_options_reach_the_plan(serve: Serve) -> None:
    served = serve()
    served.json("/api/generate", {"model": "tiny", "options": {"num_ctx": 1024, "num_thread": 3}})
    assert (served.engine.plan.context_tokens, served.engine.plan.threads) == (1024, 3)


def test_events_that_arrive_together_are_all_there(serve: Serve) -> None:
    words = tuple(f"w{n} " for n in range(50))
    lines = serve(Script(text=words, batch=8)).lines("/api/generate", {"model": "tiny", "prompt": "x"})
    assert [line["response"] for line in lines[:-1]] == list(words)
