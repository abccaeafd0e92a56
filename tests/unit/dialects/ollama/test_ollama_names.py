"""What stands in a name beside the name."""

from __future__ import annotations

import pytest

from oprel.dialects.ollama.errors import Refusal
from oprel.dialects.ollama.names import displayed, local_name, qualified


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ("llama3", "llama3"),
        (" llama3:8b ", "llama3:8b"),
        ("llama3:local", "llama3"),
        ("llama3:8b:LOCAL", "llama3:8b"),
        ("hf.co/u/r:Q4_K_M", "hf.co/u/r:Q4_K_M"),
        ("in-the-cloud", "in-the-cloud"),
    ],
)
def test_the_name_to_look_up(raw: str, name: str) -> None:
    assert local_name(raw) == name


@pytest.mark.parametrize("raw", ["x:cloud", "x:8b-cloud", "x:8b:CLOUD"])
def test_there_is_no_cloud(raw: str) -> None:
    with pytest.raises(Refusal) as refused:
        local_name(raw)
    assert (refused.value.row.status, str(refused.value)) == (
        403,
        "ollama cloud is disabled: remote model is unavailable",
    )


@pytest.mark.parametrize("raw", ["x:local:cloud", "x:cloud:local"])
def test_local_and_cloud_exclude_each_other(raw: str) -> None:
    with pytest.raises(Refusal) as refused:
        local_name(raw)
    assert str(refused.value) == f'use either :local or :cloud, not both: "{raw}"'


def test_names_are_shown_with_a_tag_and_qualified_with_all_parts() -> None:
    assert displayed("llama3") == "llama3:latest"
    assert qualified("llama3") == "registry.ollama.ai/library/llama3:latest"
    assert qualified("hf.co/u/r:Q4") == "hf.co/u/r:Q4"
    assert displayed("not a name") == "not a name"
