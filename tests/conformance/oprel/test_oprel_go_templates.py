"""SmolLM2 under two names, with its own Jinja template and with a Go template of a manifest that says the same: real
answers are the same, through both dialects, and both names share one engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.models import CHAT_MODEL, make_store
from support.ollama_store import OllamaStore
from support.servers import TEST_DRIVER, RealServer, real_server

from oprel.store import ModelName

pytestmark = pytest.mark.skipif(TEST_DRIVER != "llama_cpp", reason="the store is of GGUF files")

GO = "smollm2-go:latest"
TOOLS = "smollm2-tools:latest"
TURNS = """\
{{- if not .System }}<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
{{ end }}
{{- range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}{{ range .ToolCalls }}<tool_call>{{ json .Function }}</tool_call>{{ end }}<|im_end|>
{{ end }}<|im_start|>assistant
"""
WITH_TOOLS = "{{ if .Tools }}<|im_start|>system\nCall one of: {{ .Tools }}<|im_end|>\n{{ end }}" + TURNS
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
                       "required": ["city"]},
    },
}  # fmt: skip
QUESTION = [{"role": "user", "content": "Name three colours of the rainbow."}]
LIMIT_S = 60


def _add(models_dir: Path, name: str, template: str) -> None:
    """The manifest of the chat model with one more layer."""
    store = OllamaStore(models_dir)
    manifest = json.loads(ModelName.parse(CHAT_MODEL).manifest_path(models_dir).read_bytes())
    for kind, data in (("template", template.encode()), ("params", b'{"stop":["<|im_end|>"],"temperature":0}')):
        digest, size = store.blob(data)
        media_type = f"application/vnd.ollama.image.{kind}"
        manifest["layers"].append({"mediaType": media_type, "digest": digest, "size": size})
    store.manifest(name, json.dumps(manifest).encode())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    models_dir = make_store(tmp_path_factory.mktemp("go") / "models", embed=False, linked=True)
    _add(models_dir, GO, TURNS)
    _add(models_dir, TOOLS, WITH_TOOLS)
    with real_server("--driver", TEST_DRIVER, "--parallel", "2", "--context", "2048", models_dir=models_dir) as running:
        yield running


@pytest.fixture
def client(server: RealServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=LIMIT_S) as client:
        yield client


def posted(client: httpx.Client, path: str, body: dict[str, Any]) -> Any:
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def chatted(client: httpx.Client, model: str, **more: Any) -> Any:
    options = {"temperature": 0, "num_predict": 24, "seed": 1}
    return posted(client, "/api/chat", {"model": model, "messages": QUESTION, "options": options, **more})


def test_the_prompt_is_that_of_the_jinja_template(client: httpx.Client) -> None:
    shown = [
        chatted(client, model, stream=False, _debug_render_only=True)["_debug_info"]["rendered_template"]
        for model in (CHAT_MODEL, GO)
    ]
    assert shown[0] == shown[1]


def test_ollamas_dialect_answers_the_same(client: httpx.Client) -> None:
    own, other = (chatted(client, model, stream=False) for model in (CHAT_MODEL, GO))
    assert own["message"]["content"].strip()
    assert other["message"] == own["message"]
    assert (other["prompt_eval_count"], other["eval_count"]) == (own["prompt_eval_count"], own["eval_count"])
    lines = client.post("/api/chat", json={
        "model": GO, "messages": QUESTION, "options": {"temperature": 0, "num_predict": 24, "seed": 1},
    }).text.splitlines()  # fmt: skip
    pieces = [json.loads(line)["message"]["content"] for line in lines]
    assert len(pieces) > 5
    assert "".join(pieces) == own["message"]["content"]


def test_openais_dialect_answers_the_same(client: httpx.Client) -> None:
    body = {"messages": QUESTION, "temperature": 0, "max_tokens": 24, "seed": 1}
    own, other = (posted(client, "/v1/chat/completions", {"model": m, **body}) for m in (CHAT_MODEL, GO))
    assert other["choices"] == own["choices"]
    assert other["usage"]["completion_tokens"] == own["usage"]["completion_tokens"]
    streamed = client.post("/v1/chat/completions", json={"model": GO, "stream": True, **body}).text
    chunks = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    said = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    assert said == own["choices"][0]["message"]["content"]


def test_a_prompt_alone_answers_the_same(client: httpx.Client) -> None:
    body = {"prompt": QUESTION[0]["content"], "options": {"temperature": 0, "num_predict": 16}, "stream": False}
    own, other = (posted(client, "/api/generate", {"model": model, **body}) for model in (CHAT_MODEL, GO))
    assert (other["response"], other["context"]) == (own["response"], own["context"])
    same = posted(client, "/api/generate", {"model": CHAT_MODEL, "template": TURNS, **body})
    assert same["response"] == own["response"]


def test_both_names_share_an_engine(client: httpx.Client) -> None:
    for model in (CHAT_MODEL, GO, TOOLS):
        chatted(client, model, stream=False)
    running = client.get("/api/ps").json()["models"]
    assert len(running) == 1


def test_show_tells_which_template_is_used(client: httpx.Client) -> None:
    own, other = (posted(client, "/api/show", {"model": model}) for model in (CHAT_MODEL, GO))
    assert (own["oprel"]["template"], other["oprel"]["template"]) == ("jinja", "go")
    assert other["template"] == TURNS
    assert posted(client, "/api/show", {"model": TOOLS})["capabilities"] == ["completion", "tools"]


def test_a_call_that_must_be_made_is_made(client: httpx.Client) -> None:
    body = {
        "model": TOOLS,
        "messages": [{"role": "user", "content": "How is the weather in Paris?"}],
        "tools": [WEATHER],
        "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
        "temperature": 0,
        "max_tokens": 60,
    }
    [choice] = posted(client, "/v1/chat/completions", body)["choices"]
    assert choice["finish_reason"] == "tool_calls"
    [call] = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"])["city"] in ("Paris", "Rome")


def test_a_call_is_found_behind_its_mark(client: httpx.Client) -> None:
    """The model is led to it by an answer that has begun; it has only to say the same again."""
    said = '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>'
    messages = [{"role": "user", "content": f"Repeat exactly: {said}"}, {"role": "assistant", "content": said}] * 3
    body = {"model": TOOLS, "messages": [*messages, messages[0]], "tools": [WEATHER], "stream": False,
            "options": {"temperature": 0, "num_predict": 60}}  # fmt: skip
    message = posted(client, "/api/chat", body)["message"]
    [call] = message["tool_calls"]
    assert call["function"] == {"index": 0, "name": "get_weather", "arguments": {"city": "Paris"}}
    assert "<tool_call>" not in message["content"]


def test_a_format_is_kept(client: httpx.Client) -> None:
    schema = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"]}
    answer = chatted(client, GO, stream=False, format=schema)
    assert json.loads(answer["message"]["content"])["colour"] in ("red", "blue")


def test_a_conversation_that_is_too_long_loses_its_oldest_turns(client: httpx.Client) -> None:
    long = [{"role": role, "content": "word " * 300} for role in ("user", "assistant") * 5]
    response = client.post("/api/chat", json={
        "model": GO, "messages": [*long, *QUESTION], "options": {"num_predict": 4}, "stream": False,
    })  # fmt: skip
    assert response.status_code == 200, response.text
    assert "prompt_truncated" in response.headers["x-oprel-warning"]
    assert response.json()["prompt_eval_count"] < 2048
