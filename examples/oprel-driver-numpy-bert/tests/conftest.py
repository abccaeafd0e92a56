"""A model to test with: any BERT in a GGUF file, named by `NUMPY_BERT_GGUF`."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from oprel.schema import Model, ModelFile


@pytest.fixture(scope="session")
def model() -> Model:
    path = os.environ.get("NUMPY_BERT_GGUF") or pytest.skip("NUMPY_BERT_GGUF names no file")
    return model_of(Path(path))


def model_of(path: Path) -> Model:
    size = path.stat().st_size
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Model(
        name="minilm",
        digest=digest,
        format="gguf",
        files=(ModelFile("weights", str(path), digest, size),),
        size_bytes=size,
        modified_at=0.0,
        architecture="bert",
        parameter_count=22_565_376,
        context_tokens=512,
        embedding_length=384,
        layers=6,
        pooling="mean",
        capabilities=frozenset({"embedding"}),
    )
