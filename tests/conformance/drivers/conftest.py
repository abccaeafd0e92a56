"""A server on each driver, for the rules that all of them keep; see tests/support/driven.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.driven import Driven, exllama_driven, fake_vllm_driven, llama_cpp_driven, remote_driven


@pytest.fixture(scope="session")
def on_llama_cpp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driven]:
    with llama_cpp_driven(tmp_path_factory.mktemp("llama-cpp")) as driven:
        yield driven


@pytest.fixture(scope="session")
def on_a_remote(on_llama_cpp: Driven, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driven]:
    with remote_driven(tmp_path_factory.mktemp("remote"), on_llama_cpp) as driven:
        yield driven


@pytest.fixture(scope="session")
def on_a_fake_vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driven]:
    with fake_vllm_driven(tmp_path_factory.mktemp("vllm")) as driven:
        yield driven


@pytest.fixture(scope="session")
def on_exllamav2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driven]:
    with exllama_driven(tmp_path_factory.mktemp("exl2"), "exllamav2") as driven:
        yield driven


@pytest.fixture(scope="session")
def on_exllamav3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driven]:
    with exllama_driven(tmp_path_factory.mktemp("exl3"), "exllamav3") as driven:
        yield driven
