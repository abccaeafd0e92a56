"""BERT, as its authors drew it: embeddings, layers of attention and a small network each, one vector for a text."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Bert", "Floats"]

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Bert:
    """`weights` by the names that GGUF files give them; a row of a matrix makes one value."""

    weights: dict[str, Floats]
    layers: int
    heads: int
    epsilon: float
    pools_mean: bool

    @property
    def size_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.weights.values())

    def vector(self, tokens: list[int], *, normalize: bool) -> tuple[float, ...]:
        states = self._embedded(tokens)
        for layer in range(self.layers):
            states = self._layer(states, f"blk.{layer}")
        vector = states.mean(axis=0) if self.pools_mean else states[0]
        if normalize:
            vector = vector / max(float(np.linalg.norm(vector)), 1e-12)
        return tuple(vector.tolist())

    def _embedded(self, tokens: list[int]) -> Floats:
        states = (
            self.weights["token_embd.weight"][tokens]
            + self.weights["position_embd.weight"][: len(tokens)]
            + self.weights["token_types.weight"][0]
        )
        return self._normed(states, "token_embd_norm")

    def _layer(self, states: Floats, name: str) -> Floats:
        attended = self._linear(self._attention(states, name), f"{name}.attn_output")
        states = self._normed(states + attended, f"{name}.attn_output_norm")
        inner = _gelu(self._linear(states, f"{name}.ffn_up"))
        return self._normed(states + self._linear(inner, f"{name}.ffn_down"), f"{name}.layer_output_norm")

    def _attention(self, states: Floats, name: str) -> Floats:
        count, width = states.shape
        query, key, value = (
            self._linear(states, f"{name}.attn_{part}").reshape(count, self.heads, -1).transpose(1, 0, 2)
            for part in ("q", "k", "v")
        )
        scores = query @ key.transpose(0, 2, 1) / np.float32(math.sqrt(width / self.heads))
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        return (shares @ value).transpose(1, 0, 2).reshape(count, width)

    def _linear(self, states: Floats, name: str) -> Floats:
        return states @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def _normed(self, states: Floats, name: str) -> Floats:
        centred = states - states.mean(axis=-1, keepdims=True)
        spread = np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + np.float32(self.epsilon))
        return centred / spread * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]


def _gelu(values: Floats) -> Floats:
    """By tanh, which differs from the exact one in the fourth digit."""
    return np.float32(0.5) * values * (1 + np.tanh(np.float32(0.7978845608) * (values + 0.044715 * values**3)))
