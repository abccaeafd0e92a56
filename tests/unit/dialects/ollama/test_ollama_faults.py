"""What goes wrong: before the first line with its own status, after it with a last line; and nothing is left behind."""

from __future__ import annotations

import json
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest
from support.servers import wait_until

from oprel import errors
from oprel.dialects.ollama.errors import KINDS, ROWS, OllamaErrors
from oprel.testing import Script, scripted_model

if TYPE_CHECKING:
    from conftest import Serve

HI = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
_POST = b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
RUNNING = "an error was encountered while running the model: "


def test_an_engine_that_dies_in_a_stream_ends_it_with_an_error_and_no_done(serve: Serve) -> None:
    lines = serve(Script(text=("a", "b", "c"), dies_at=2)).lines("/api/chat", HI)
    assert [line["message"]["content"] for line in lines[:-1]] == ["a", "b"]
    assert list(lines[-1]) == ["error"]
    assert lines[-1]["error"].startswith(RUNNING)


@pytest.mark.parametrize("stream", [True, False])
def test_an_engine_that_dies_before_the_first_token_has_a_status(serve: Serve, stream: bool) -> None:
    served = serve(Script(dies_at=0))
    response = served.ask("/api/chat", {**HI, "stream": stream})
    assert response.status_code == 500
    assert response.json()["error"].startswith(RUNNING)
    charset = "" if stream else "; charset=utf-8"
    assert response.headers["content-type"] == f"application/json{charset}"


@pytest.mark.parametrize("broken", ["no_finish", "raises"])
def test_an_engine_that_breaks_its_contract_is_an_error_and_not_a_short_answer(serve: Serve, broken: Any) -> None:
    served = serve(Script(broken=broken))
    assert list(served.lines("/api/chat", HI)[-1]) == ["error"]
    assert served.ask("/api/chat", {**HI, "stream": False}).status_code == 500


def test_an_engine_that_does_not_start_says_why(serve: Serve) -> None:
    served = serve(Script(refusals=("model",) * 9))
    status, text = served.refused("/api/chat", HI)
    assert (status, "refused to start" in text) == (500, True)


def test_a_damaged_model_is_500_whatever_is_asked_of_it(serve: Serve) -> None:
    served = serve(None, scripted_model("tiny:latest", damage="its file was cut short", capabilities=frozenset()))
    for path, body in (
        ("/api/chat", HI),
        ("/api/generate", {"model": "tiny", "prompt": "x"}),
        ("/api/embed", {"model": "tiny", "input": "x"}),
    ):
        status, text = served.refused(path, body)
        assert (status, "its file was cut short" in text) == (500, True)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_stops_the_engine(serve: Serve, stream: bool) -> None:
    served = serve(Script(text=("word ",), endless=True, token_delay_s=0.005))
    body = json.dumps({**HI, "stream": stream}).encode()
    host, _, port = served.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as client:
        client.sendall(_POST % len(body) + body)
        wait_until(lambda: served.driver.engines and served.engine.running)
        if stream:
            assert client.recv(100)
    wait_until(lambda: served.engine.calls[0].ended)
    assert served.engine.calls[0].ended == "closed"
    (running,) = served.json("/api/ps", method="GET")["models"]
    assert running["oprel"]["slots_in_use"] == 0


def test_a_full_queue_is_503_in_ollamas_words(serve: Serve) -> None:
    served = serve(Script(text=("w",), endless=True, token_delay_s=0.005, slots=1), max_queue=1)
    host, _, port = served.url.removeprefix("http://").partition(":")
    body = json.dumps(HI).encode()
    clients = [socket.create_connection((host, int(port)), timeout=10) for _ in range(2)]
    try:
        for number, client in enumerate(clients):
            client.sendall(_POST % len(body) + body)
            if number == 0:
                wait_until(lambda: served.driver.engines and served.engine.running)
            else:
                wait_until(lambda: served.json("/api/ps", method="GET")["models"][0]["oprel"]["queued"] == 1)
        response = served.ask("/api/chat", HI)
        assert response.status_code == 503
        assert response.json()["error"] == "server busy, please try again.  maximum pending requests exceeded"
        assert int(response.headers["retry-after"]) >= 1
    finally:
        for client in clients:
            client.close()


def test_more_requests_than_slots_are_all_answered(serve: Serve) -> None:
    served = serve(Script(text=("a", "b"), token_delay_s=0.01, slots=2))
    answers: list[str] = []
    threads = [
        threading.Thread(
            target=lambda: answers.append(served.json("/api/chat", {**HI, "stream": False})["done_reason"])
        )
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert answers == ["stop"] * 6
    assert served.engine.most_running == 2


SAMPLES: dict[str, errors.OprelError] = {
    "invalid_request": errors.InvalidRequestError("m"),
    "unsupported": errors.UnsupportedError("m", capability="tools"),
    "invalid_name": errors.InvalidNameError("m", name="x"),
    "too_large": errors.PayloadTooLargeError("m", limit_bytes=1),
    "context_length": errors.ContextLengthError("m"),
    "authentication": errors.AuthenticationError("m"),
    "permission": errors.PermissionDeniedError("m"),
    "busy": errors.BusyError("m"),
    "client_gone": errors.ClientGoneError("m"),
    "memory": errors.InsufficientMemoryError("m", needed_bytes=2**31, available_bytes=2**30),
    "driver_unavailable": errors.DriverUnavailableError("m"),
    "engine_start": errors.EngineStartError("m"),
    "engine_failed": errors.EngineFailedError("m"),
    "engine_timeout": errors.EngineTimeoutError("m"),
    "backend": errors.BackendError("m"),
    "store": errors.StoreError("m"),
    "damaged": errors.ModelDamagedError("m", model="x"),
    "no_space": errors.NoSpaceError("m"),
    "template": errors.TemplateError("template: :1: unexpected EOF", line=1),
    "source": errors.SourceError("m"),
    "config": errors.ConfigError("m"),
    "internal": errors.OprelError("m"),
}


def test_every_kind_of_failure_has_a_row() -> None:
    def kinds(of: type[errors.OprelError]) -> set[str]:
        return {of.kind}.union(*(kinds(sub) for sub in of.__subclasses__() if sub.__module__ == errors.__name__))

    assert kinds(errors.OprelError) - {"not_found"} == set(KINDS) == set(SAMPLES)


@pytest.mark.parametrize(("kind", "error"), SAMPLES.items(), ids=SAMPLES)
def test_every_failure_is_one_object_with_its_status(kind: str, error: errors.OprelError) -> None:
    renderer = OllamaErrors("chat")
    head, body = renderer.whole(error)
    assert head.status == KINDS[kind].status
    assert list(json.loads(body)) == ["error"]
    assert renderer.chunk(error) == body + b"\n"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            SAMPLES["memory"],
            "model requires more system memory (2.0 GiB) than is available (1.0 GiB)",
        ),
        (errors.InsufficientMemoryError("no room"), "model requires more system memory: no room"),
        (SAMPLES["client_gone"], "request canceled"),
        (SAMPLES["invalid_name"], "invalid model name"),
        (SAMPLES["engine_failed"], RUNNING + "m"),
    ],
)
def test_texts_that_clients_look_for(error: errors.OprelError, text: str) -> None:
    assert OllamaErrors("chat").said(error)[1] == text


@pytest.mark.parametrize(
    ("endpoint", "status", "text"),
    [
        ("generate", 404, "model 'a/<b>' not found"),
        ("chat", 404, "model 'a/<b>' not found"),
        ("embed", 404, 'model "a/<b>" not found, try pulling it first'),
        ("embeddings", 404, 'model "a/<b>" not found, try pulling it first'),
        ("pull", 500, "pull model manifest: file does not exist"),
    ],
)
def test_a_model_that_is_not_there_has_the_endpoints_text(endpoint: Any, status: int, text: str) -> None:
    assert OllamaErrors(endpoint).said(errors.ModelNotFoundError("m", model="a/<b>")) == (status, text)


def test_rows_are_filled_without_looking_into_what_fills_them() -> None:
    from oprel.dialects.ollama.errors import refusal

    assert str(refusal("no_such_model", name="{x}")) == "model '{x}' not found"
    assert all(row.text and 400 <= row.status < 600 for row in ROWS.values())


def test_a_long_mistake_is_not_sent_back_whole(serve: Serve) -> None:
    status, text = serve().refused("/api/chat", {**HI, "think": "x" * 1_000_000})
    assert (status, len(text)) == (400, 4001)


def test_mistakes_leave_the_server_answering(serve: Serve) -> None:
    served = serve()
    mistakes: list[Any] = [b"", b"{", b"[]", b"\xff", {"model": 1}, {"model": "absent"}, {**HI, "options": []}]
    for mistake in mistakes:
        status, text = served.refused("/api/chat", mistake)
        assert 400 <= status < 500
        assert text
    assert served.json("/api/chat", {**HI, "stream": False})["done"] is True
