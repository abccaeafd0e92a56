"""A stand-in for the few things of torch that an ExLlama host asks for: small tensors, and a CUDA device on paper."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fake_engine import SCRIPT

from torch import cuda

__all__ = ["Tensor", "cuda", "float", "log_softmax", "long", "tensor", "topk", "zeros"]
__version__ = "2.11.0+fake"

_number = float
long = "torch.int64"
float = "torch.float32"

if SCRIPT["torch_error"]:
    raise ImportError(SCRIPT["torch_error"])


class _Device:
    type = "cpu"


class Tensor:
    device = _Device()

    def __init__(self, values: Any) -> None:
        self.values = values

    @property
    def shape(self) -> tuple[int, ...]:
        found, values = [], self.values
        while isinstance(values, list):
            found.append(len(values))
            values = values[0] if values else None
        return tuple(found)

    def dim(self) -> int:
        return len(self.shape)

    def tolist(self) -> Any:
        return self.values

    def item(self) -> Any:
        values = self.values
        while isinstance(values, list):
            (values,) = values
        return values

    def float(self) -> Tensor:
        return self

    def __float__(self) -> Any:
        return _number(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __getitem__(self, at: Any) -> Tensor:
        values = self.values
        for place in at if isinstance(at, tuple) else (at,):
            values = values[place]
        return Tensor(values)

    def __setitem__(self, at: int, value: Any) -> None:
        self.values[at] = value


def tensor(values: Any, dtype: str | None = None) -> Tensor:
    return Tensor(values)


def zeros(size: Sequence[int], dtype: str | None = None) -> Tensor:
    (length,) = size
    return Tensor([0.0] * length)


def log_softmax(values: Tensor, dim: int) -> Tensor:
    assert dim == -1
    rows = []
    for row in values.values:
        most = max(row)
        total = math.log(sum(math.exp(value - most) for value in row)) + most
        rows.append([value - total for value in row])
    return Tensor(rows)


def topk(values: Tensor, k: int, dim: int) -> tuple[Tensor, Tensor]:
    assert dim == -1
    best = [sorted(range(len(row)), key=lambda n, row=row: -row[n])[:k] for row in values.values]
    return Tensor([[row[n] for n in places] for row, places in zip(values.values, best, strict=True)]), Tensor(best)
