"""POST /api/embed and /api/embeddings."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest

from oprel.dialects.ollama import embed
from oprel.dialects.ollama.errors import Refusal
from oprel.testing import Script, scripted_model

if TYPE_CHECKING:
    from conftest import Serve

MODEL = scripted_model("mini:latest", capabilities=frozenset({"embedding"}))


def length(vector: list[float]) -> float:
    return math.sqrt(sum(value * value for value in vector))


def test_vectors_come_in_order_and_have_length_1(serve: Serve) -> None:
    served = serve(None, MODEL)
    answer = served.json("/api/embed", {"model": "mini", "input": ["one", "two", ""]})
    assert list(answer) == ["model", "embeddings", "total_duration", "load_duration", "prompt_eval_count"]
    assert [length(vector) for vector in answer["embeddings"]] == pytest.approx([1, 1, 1], abs=1e-6)
    alone = served.json("/api/embed", {"model": "mini", "input": "two"})
    assert alone["embeddings"] == [answer["embeddings"][1]]


def test_dimensions_cut_and_make_length_1_again(serve: Serve) -> None:
    served = serve(None, MODEL)
    whole = served.json("/api/embed", {"model": "mini", "input": "one"})["embeddings"][0]
    cut = served.json("/api/embed", {"model": "mini", "input": "one", "dimensions": 3})["embeddings"][0]
    assert length(cut) == pytest.approx(1, abs=1e-6)
    assert cut == pytest.approx([value / length(whole[:3]) for value in whole[:3]], abs=1e-6)
    for useless in (0, -1, 8, 99):
        body = {"model": "mini", "input": "one", "dimensions": useless}
        assert served.json("/api/embed", body)["embeddings"] == [whole]


@pytest.mark.parametrize("nothing", [{}, {"input": ""}, {"input": []}, {"input": None}])
def test_without_input_the_model_is_loaded(serve: Serve, nothing: dict[str, Any]) -> None:
    served = serve(None, MODEL)
    assert served.json("/api/embed", {"model": "mini", **nothing}) == {"model": "mini", "embeddings": []}
    assert len(served.driver.engines) == 1
    assert served.engine.calls == []


@pytest.mark.parametrize("wrong", [1, {"a": 1}, ["a", 1], [["a"]], True])
def test_other_inputs_are_refused(serve: Serve, wrong: object) -> None:
    assert serve(None, MODEL).refused("/api/embed", {"model": "mini", "input": wrong}) == (400, "invalid input type")


def test_long_inputs_are_cut_between_the_tokenizers_marks(serve: Serve) -> None:
    # The scripted tokenizer: a mark (256) and then the bytes.
    served = serve(Script(context_tokens=8), MODEL)
    served.json("/api/embed", {"model": "mini", "input": ["abc", "abcdefghij"]})
    assert served.request.inputs == ("abc", (256, *b"abcdefg"))
    served.json("/api/embed", {"model": "mini", "input": "abcdefghij", "options": {"num_ctx": 5}})
    assert served.request.inputs == ((256, *b"abcd"),)


def test_what_may_not_be_cut_is_refused(serve: Serve) -> None:
    served = serve(Script(context_tokens=8), MODEL)
    body = {"model": "mini", "input": ["a", "abcdefghij"], "truncate": False}
    assert served.refused("/api/embed", body) == (400, "the input length exceeds the context length")
    body = {"model": "mini", "input": "abc", "options": {"num_ctx": 1}}
    assert served.refused("/api/embed", body) == (400, "input after truncation exceeds maximum context length")


def test_a_model_that_makes_text_answers_501(serve: Serve) -> None:
    text = "This server does not support embeddings. Start it with `--embeddings`"
    served = serve()
    assert served.refused("/api/embed", {"model": "tiny", "input": "x"}) == (501, text)
    assert served.refused("/api/embeddings", {"model": "tiny", "prompt": "x"}) == (501, text)
    assert served.driver.starts == []


def test_the_old_endpoint_leaves_vectors_as_they_are(serve: Serve) -> None:
    served = serve(None, MODEL)
    answer = served.json("/api/embeddings", {"model": "mini", "prompt": "one"})
    assert list(answer) == ["embedding"]
    assert served.request.normalize is False
    assert served.json("/api/embeddings", {"model": "mini", "prompt": ""}) == {"embedding": []}


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_no_vector_has_what_is_no_number(odd: float) -> None:
    with pytest.raises(Refusal, match="embedding contains NaN or Inf values"):
        embed._written([(1.0, odd, 2.0)], 0)
    with pytest.raises(Refusal, match="embedding contains NaN or Inf values"):
        embed._written([(1.0, odd, -odd)], 2)


def test_numbers_are_written_as_short_as_a_float32_needs() -> None:
    assert embed._written([(0.1, -1.0, 1.0071029e-05), (0.0,)], 0) == b"[0.1,-1,1.0071029e-05],[0]"
