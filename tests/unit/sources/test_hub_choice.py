"""Which quantization is taken: from sizes and a machine, without either being there."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oprel.errors import InsufficientMemoryError, InvalidRequestError
from oprel.schema import Gpu, Hardware
from oprel.sources.hub import Budget, Choice, HubFile, Listing, Weights, choose_weights, sort_files
from oprel.sources.hub.files import label_of

GB = 1_000_000_000
# Sizes of Qwen2.5-7B's files.
SEVEN = {
    "Q2_K": 3.0, "Q3_K_M": 3.8, "Q4_0": 4.4, "Q4_K_M": 4.7, "Q5_K_M": 5.4, "Q6_K": 6.3, "Q8_0": 8.1, "F16": 15.2,
}  # fmt: skip


def weights(label: str, gb: float) -> Weights:
    return Weights(label, f"m-{label}", (HubFile(f"m-{label}.gguf", int(gb * GB)),))


def of(sizes: dict[str, float]) -> list[Weights]:
    return [weights(label, gb) for label, gb in sizes.items()]


def machine(*, ram_gb: float = 16, gpus_gb: tuple[float, ...] = ()) -> Hardware:
    ram = int(ram_gb * (1 << 30))
    gpus = tuple(
        Gpu(number, "GPU", "nvidia", int(gb * (1 << 30)), int(gb * (1 << 30)), "nvml")
        for number, gb in enumerate(gpus_gb)
    )
    return Hardware("Linux", "x86_64", 8, 16, ram, ram, gpus)


def choose(sizes: dict[str, float], hardware: Hardware, **more: object) -> Choice:
    limit = more.pop("max_memory_bytes", None)
    budget = Budget.of(hardware, max_memory_bytes=limit)  # type: ignore[arg-type]
    return choose_weights(of(sizes), repo="o/r", budget=budget, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ram_gb", "gpus_gb", "label"),
    [
        (64, (24.0,), "Q8_0"),
        (64, (8.0,), "Q5_K_M"),  # 7 GiB to use: Q6_K and its context don't fit
        (64, (9.0,), "Q6_K"),
        (64, (6.0, 6.0), "Q8_0"),  # two are one place
        (64, (4.0,), "Q4_K_M"),  # no GPU holds it: memory, at a CPU's speed
        (64, (), "Q4_K_M"),
        (16, (), "Q4_K_M"),
        (8, (), "Q4_0"),
        (7, (), "Q3_K_M"),
    ],
)
def test_seven_billion_parameters(ram_gb: float, gpus_gb: tuple[float, ...], label: str) -> None:
    assert choose(SEVEN, machine(ram_gb=ram_gb, gpus_gb=gpus_gb)).weights.label == label


def test_the_reason_tells_place_and_room() -> None:
    on_gpu = choose(SEVEN, machine(gpus_gb=(24.0,)))
    assert on_gpu.reason == (
        "Q8_0 (8.1 GB): the best that fits the GPU's free memory (24.7 GB), with 8192 tokens of context"
    )
    on_cpu = choose(SEVEN, machine(ram_gb=16))
    assert on_cpu.reason == (
        "Q4_K_M (4.7 GB): the best that fits 70% of this machine's memory (12.0 GB) and is quick enough on its CPU, "
        "with 8192 tokens of context"
    )


def test_a_small_model_may_be_q8_on_a_cpu() -> None:
    assert choose({"Q4_K_M": 0.4, "Q8_0": 0.6, "F16": 1.1}, machine()).weights.label == "Q8_0"


def test_nothing_that_fits_is_told_with_numbers_and_a_way_out() -> None:
    told = r"Q3_K_M, needs 5\.\d GB .*, and 3\.0 GB can be used.*o/r:Q3_K_M"
    with pytest.raises(InsufficientMemoryError, match=told) as e:
        choose(SEVEN, machine(ram_gb=4))
    assert "--allow-low-quality" in e.value.message
    assert e.value.needed_bytes > 3.8 * GB
    assert choose(SEVEN, machine(ram_gb=4), asked="q4_k_m").weights.label == "Q4_K_M"


def test_two_bits_are_the_last_resort_of_those_who_allow_them() -> None:
    assert choose(SEVEN, machine(ram_gb=16), allow_low_quality=True).weights.label == "Q4_K_M"
    assert choose(SEVEN, machine(ram_gb=6), allow_low_quality=True).weights.label == "Q2_K"


def test_a_limit_counts_in_place_of_the_machine() -> None:
    choice = choose(SEVEN, machine(ram_gb=64, gpus_gb=(24.0,)), max_memory_bytes=5_500_000_000)
    assert choice.weights.label == "Q3_K_M"
    with pytest.raises(InsufficientMemoryError):
        choose({"Q4_K_M": 4.7}, machine(ram_gb=64), max_memory_bytes=2 * GB)


def test_the_only_one_is_taken_whatever_it_needs() -> None:
    choice = choose({"Q6_K": 60.0}, machine(ram_gb=4))
    assert choice.reason == "Q6_K (60.0 GB): the only one that there is to take"


def test_full_precision_only_where_nothing_else_is() -> None:
    assert choose({"F16": 1.0, "F32": 2.0, "BF16": 1.0}, machine(gpus_gb=(24.0,))).weights.label == "F16"
    assert choose({"F16": 1.0, "Q3_K_S": 0.2}, machine(gpus_gb=(24.0,))).weights.label == "Q3_K_S"


def test_better_ones_alone_on_a_cpu_are_taken_at_their_smallest() -> None:
    assert choose({"Q8_0": 8.1, "Q6_K": 6.3}, machine(ram_gb=32)).weights.label == "Q6_K"


def test_what_comes_beside_needs_room_too() -> None:
    assert choose(SEVEN, machine(gpus_gb=(9.0,))).weights.label == "Q6_K"
    assert choose(SEVEN, machine(gpus_gb=(9.0,)), beside_bytes=GB).weights.label == "Q5_K_M"


def test_the_cache_is_counted_as_known() -> None:
    assert choose(SEVEN, machine(gpus_gb=(24.0,)), kv_bytes_per_token=1 << 21).weights.label == "Q6_K"


@given(
    sizes=st.dictionaries(st.sampled_from(list(SEVEN)), st.floats(0.1, 80), min_size=1),
    ram=st.floats(1, 512),
    gpu=st.floats(0, 80),
    low=st.booleans(),
)
def test_a_choice_is_one_of_those_that_are_there_and_allowed(
    sizes: dict[str, float], ram: float, gpu: float, low: bool
) -> None:
    hardware = machine(ram_gb=ram, gpus_gb=(gpu,))
    try:
        choice = choose(sizes, hardware, allow_low_quality=low)
    except InsufficientMemoryError as refused:
        assert refused.needed_bytes > refused.available_bytes
    except InvalidRequestError:
        assert not low
        assert set(sizes) == {"Q2_K"}
    else:
        assert choice.weights.label in sizes
        assert low or choice.weights.label != "Q2_K"


# -- names of files


@pytest.mark.parametrize(
    ("stem", "label"),
    [
        ("Qwen2.5-7B-Instruct-Q4_K_M", "Q4_K_M"),
        ("qwen2.5-7b-instruct-q4_k_m", "Q4_K_M"),
        ("codellama-7b-instruct.Q5_0", "Q5_0"),
        ("Phi-3-mini-4k-instruct-q4", "Q4"),
        ("Phi-3-mini-4k-instruct-fp16", "F16"),
        ("model-IQ4_XS", "IQ4_XS"),
        ("gpt-oss-20b-UD-Q4_K_XL", "UD-Q4_K_XL"),
        ("gpt-oss-20b-mxfp4", "MXFP4"),
        ("Model.i1-IQ2_XXS", "IQ2_XXS"),
        ("Q8-chat-3b-BF16", "BF16"),
        ("tiny", ""),
        ("eq4x", ""),
    ],
)
def test_the_label_in_a_name(stem: str, label: str) -> None:
    assert label_of(stem) == label


def sorted_files(*names: str) -> list[tuple[str, str, int]]:
    listing = Listing("o", "r", "c" * 40, tuple(HubFile(name, 1) for name in names))
    return [(each.label, each.stem, len(each.parts)) for each in sort_files(listing).weights]


def test_files_are_sorted_by_what_they_are() -> None:
    found = sorted_files(
        "a-Q4_K_M.gguf",
        "Q8_0/a-00001-of-00002.gguf",
        "Q8_0/a-00002-of-00002.gguf",
        "mmproj-a-f16.gguf",
        "imatrix.gguf",
        "a.imatrix.gguf",
        "a.imatrix",
        "a-imatrix-Q5_K_M.gguf",
        "config.json",
        "other/a-Q4_K_M.gguf",
    )
    assert sorted(found) == [
        ("", "a-Q4_K_M", 1),  # a second one of that label goes by its file's name
        ("Q4_K_M", "a-Q4_K_M", 1),
        ("Q5_K_M", "a-imatrix-Q5_K_M", 1),
        ("Q8_0", "a", 2),
    ]
