"""The most that a vLLM can do, whatever the model."""

from __future__ import annotations

from oprel.schema import ALL_SAMPLING, Capabilities

__all__ = ["MOST"]

MOST = Capabilities(
    chat=True,
    complete=True,
    embed=True,
    vision=True,
    audio=True,
    tools=True,
    thinking=True,
    json_schema=True,
    logprobs=True,
    lora=True,
    tokenize=True,
    sampling=ALL_SAMPLING - {"typical_p", "repeat_last_n"},  # its requests have no field for these
)
