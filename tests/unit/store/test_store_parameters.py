"""What a model may carry as its own: nothing that would be ignored when it runs."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oprel.errors import InvalidRequestError
from oprel.schema.sampling import from_model, load_from_model
from oprel.store.parameters import PARAMETERS, checked_parameters, parameter_of_text
from oprel.testing import scripted_model

# What documents call "not given", and what no engine here does.
_WITHOUT_EFFECT = {"num_keep", "draft_num_predict"}
_NOT_SAMPLING = {"driver"}  # the catalog reads it: tests of its own
_UNSET_BELOW = {"num_predict": 0, "seed": 0, "num_gpu": 0, "main_gpu": 0, "num_thread": 1, "num_batch": 1}


@given(st.sampled_from(sorted(set(PARAMETERS) - _WITHOUT_EFFECT - _NOT_SAMPLING)), st.data())
def test_what_is_taken_is_used(name: str, data: st.DataObject) -> None:
    values: dict[str, st.SearchStrategy[Any]] = {
        "int": st.integers(-(2**40), 2**40),
        "float": st.floats(-200, 200),
        "bool": st.booleans(),
        "strings": st.lists(st.text(min_size=1, max_size=9), min_size=1, max_size=4),
    }
    value = data.draw(values[PARAMETERS[name]])
    try:
        checked = checked_parameters({name: value})
    except InvalidRequestError:
        return
    model = scripted_model(parameters=tuple(checked.items()), context_tokens=None)
    used = {**from_model(model), **load_from_model(model)}
    assert used or value < _UNSET_BELOW[name]


@pytest.mark.parametrize("name", ["mirostat", "numa", "low_vram"])
def test_names_of_the_past_are_kept(name: str) -> None:
    assert checked_parameters({name: 1, "top_k": None}) == {name: 1}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("driver", 1),
        ("driver", "a b"),
        ("driver", ""),
        ("num_ctx", True),
        ("temperature", "hot"),
        ("use_mmap", 1),
        ("stop", 1),
        ("num_ctx", float("inf")),
        ("top_k", -1),
    ],
)
def test_what_no_engine_takes_is_refused(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError, match=f'option "{name}"'):
        checked_parameters({name: value})


def test_a_modelfile_names_a_driver() -> None:
    assert checked_parameters({"driver": parameter_of_text("driver", "vllm")}) == {"driver": "vllm"}
    with pytest.raises(InvalidRequestError, match="invalid name value"):
        parameter_of_text("driver", "../x")
