"""The host on the real libraries' own Python, with only their forward pass and compiled code replaced.

`OPREL_TEST_EXLLAMA_SOURCES` names the folder of the unpacked wheels, `OPREL_TEST_EXLLAMA_CPU_PYTHON` an interpreter
with a CPU build of torch and what they import (`support.exllama_cpu`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.exllama_cpu import ANSWER, install, write_real_model
from support.exllama_host import RunningHost, Stream, running_host

PYTHON = os.environ.get("OPREL_TEST_EXLLAMA_CPU_PYTHON", "")
SOURCES = os.environ.get("OPREL_TEST_EXLLAMA_SOURCES", "")

pytestmark = pytest.mark.skipif(
    not (PYTHON and SOURCES),
    reason="OPREL_TEST_EXLLAMA_SOURCES and OPREL_TEST_EXLLAMA_CPU_PYTHON don't name the real libraries' Python",
)
TOKENS = 17


@pytest.fixture(scope="module", params=["exllamav2", "exllamav3"])
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHost]:
    folder = tmp_path_factory.mktemp(request.param)
    model = write_real_model(folder / "model", PYTHON)
    python = install(folder / "real", PYTHON, Path(SOURCES))
    with running_host(folder, engine=request.param, model=model, python=python) as host:
        yield host


def test_a_whole_answer(host: RunningHost) -> None:
    stream = host.chat("hé 🙂")
    assert (stream.text, stream.reason, stream.error) == (ANSWER, "stop", None)
    assert "🙂" in stream.pieces
    assert stream.usage is not None
    assert stream.usage["completion_tokens"] == TOKENS


@pytest.mark.parametrize("limit", range(1, TOKENS + 1))
def test_every_limit_is_exact_and_cuts_no_character(host: RunningHost, limit: int) -> None:
    stream = host.complete("hello", max_tokens=limit)
    assert ANSWER.startswith(stream.text)
    assert stream.usage is not None
    assert stream.usage["completion_tokens"] == limit
    assert stream.reason == ("stop" if limit == TOKENS else "length")


@pytest.mark.parametrize("stop", ["a prince", "ce 🙂 w", "laughed", "O", "."])
def test_stop_strings(host: RunningHost, stop: str) -> None:
    stream = host.complete("hello", stop=[stop])
    assert (stream.text, stream.reason) == (ANSWER[: ANSWER.index(stop)], "stop")


def test_what_only_looked_like_a_stop_string(host: RunningHost) -> None:
    assert host.complete("hello", stop=["laughed. And"]).text == ANSWER


def test_logprobs(host: RunningHost) -> None:
    stream = host.complete("hello", logprobs=2, stop=["laughed. And"])
    rows = [row for choice in stream.choices for row in (choice["logprobs"] or {}).get("content", ())]
    assert b"".join(bytes(row["bytes"]) for row in rows).decode() == ANSWER
    assert all(row["logprob"] == row["top_logprobs"][0]["logprob"] <= 0 for row in rows)
    assert all(len(row["top_logprobs"]) == 2 for row in rows)


def test_sampling(host: RunningHost) -> None:
    texts = [host.complete("hello", temperature=1.5, top_p=0.99, seed=seed, max_tokens=12).text for seed in (4, 4, 5)]
    assert texts[0] == texts[1] != texts[2]
    settings = {
        "repeat_penalty": 1.1,
        "repeat_last_n": 64,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.1,
        "min_p": 0.1,
    }
    assert host.complete("hello", temperature=0.5, top_k=5, max_tokens=3, **settings).error is None


def test_a_bias(host: RunningHost) -> None:
    (token,) = host.post("/tokenize", content="^").json()["tokens"]
    assert host.complete("hello", logit_bias={str(token): 50}, max_tokens=2).text == "^^"


def test_text_and_tokens(host: RunningHost) -> None:
    text = "Hello, wörld! 🙂<|im_end|>"
    tokens = host.post("/tokenize", content=text).json()["tokens"]
    assert tokens[-1] == 3
    assert host.post("/detokenize", tokens=tokens).json() == {"content": text}


def test_a_schema(host: RunningHost) -> None:
    if not host.client.get("/props").json()["capabilities"]["json_schema"]:
        pytest.skip("no filter library is installed there")
    schema = {"type": "object", "properties": {"a": {"enum": ["x"]}}, "required": ["a"], "additionalProperties": False}
    wanted = {"type": "json_schema", "json_schema": {"schema": schema}}
    stream = host.complete("hello", response_format=wanted, max_tokens=40)
    assert stream.text.replace(" ", "").replace("\n", "") == '{"a":"x"}'
    assert stream.reason == "stop"


def test_the_whole_context_can_be_used(host: RunningHost) -> None:
    """No assertion of the library's is tripped where the cache ends."""
    for prompt in (512 - TOKENS, 511):
        ids = host.post("/tokenize", content="^").json()["tokens"] * prompt
        stream = host.complete(ids)
        assert stream.error is None
        assert stream.usage is not None
        assert stream.usage["completion_tokens"] == 512 - prompt


def test_several_at_once(host: RunningHost) -> None:
    streams: list[Stream] = []
    threads = [threading.Thread(target=lambda n=n: streams.append(host.complete(f"{n} " * n))) for n in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [stream.text for stream in streams] == [ANSWER] * 6


def test_leaving_frees_it(host: RunningHost) -> None:
    body = {"prompt": "hello", "max_tokens": 400, "stream": True, "temperature": 0, "logit_bias": {"3": -100}}
    with host.client.stream("POST", "/v1/completions", json=body) as answer:
        lines = answer.iter_lines()
        assert next(lines)
    assert host.complete("hello", max_tokens=2).text == "Once upon"
    assert host.health()[1]["busy"] == 0
