"""Fixtures that all tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.models import embed_gguf, make_store, smollm2_gguf


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """A real chat model's GGUF file."""
    return smollm2_gguf()


@pytest.fixture(scope="session")
def embed_path() -> Path:
    """A real embedding model's GGUF file."""
    return embed_gguf()


@pytest.fixture(scope="session")
def real_models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with `smollm2:135m` and `all-minilm`; shared by the session, so only read it."""
    return make_store(tmp_path_factory.mktemp("real") / "models")
