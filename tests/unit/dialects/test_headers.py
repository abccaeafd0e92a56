"""Headers tell what happened, and nothing that a client sent can break out of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from oprel.dialects.clients import client_key
from oprel.dialects.headers import json_headers, oprel_headers, warning_header
from oprel.schema import events

GPU = events.Warning("gpu_fallback", "the GPU failed: the model runs on the CPU")


def told(*warnings: events.Warning) -> Any:
    plan = SimpleNamespace(driver="llama_cpp", device="gpu+cpu")
    return SimpleNamespace(plan=plan, warnings=warnings, load_s=1.25, queued_s=0.0003)


def test_driver_device_and_each_warning_once() -> None:
    other = events.Warning("unknown_field", "'x' is not known")
    assert oprel_headers(told(GPU), (other, GPU)) == (
        (b"x-oprel-driver", b"llama_cpp"),
        (b"x-oprel-device", b"gpu+cpu"),
        (b"server-timing", b"load;dur=1250.0, queue;dur=0.3"),
        (b"x-oprel-warning", b"gpu_fallback; the GPU failed: the model runs on the CPU"),
        (b"x-oprel-warning", b"unknown_field; 'x' is not known"),
    )


def test_the_time_to_the_first_token_is_told_where_there_are_tokens() -> None:
    timing = dict(oprel_headers(told(), first_s=0.5))[b"server-timing"]
    assert timing == b"load;dur=1250.0, queue;dur=0.3, first;dur=500.0"


def test_what_a_client_sent_stays_inside_its_header() -> None:
    name, value = warning_header(events.Warning("c", "a\r\nset-cookie: x=1\0é\t"))
    assert name == b"x-oprel-warning"
    assert value == rb"c; a\x0d\x0aset-cookie: x=1\x00\xe9\x09"


def test_headers_are_bounded() -> None:
    many = tuple(events.Warning("c", str(number) * 1000) for number in range(100))
    headers = oprel_headers(told(), many)
    assert len(headers) == 3 + 16
    assert all(len(value) < 500 for _, value in headers)


def test_json_headers_tell_the_length() -> None:
    assert dict(json_headers(b"{}")) == {b"content-type": b"application/json", b"content-length": b"2"}


def scope(**headers: str) -> Any:
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"client": ("10.0.0.1", 5), "headers": pairs}


def test_a_client_is_known_by_its_key_and_program_and_keeps_its_secret() -> None:
    key = client_key(scope(authorization="Bearer secret", user_agent="a"))
    assert key == client_key(scope(authorization="Bearer secret", user_agent="a"))
    assert key != client_key(scope(authorization="Bearer other", user_agent="a"))
    assert key != client_key(scope(authorization="Bearer secret", user_agent="b"))
    assert key.startswith("10.0.0.1 ")
    assert "secret" not in key
    assert client_key({"headers": []}).startswith("local ")  # type: ignore[arg-type]
