"""A stand-in for lm-format-enforcer 0.11: it holds the model to the one text that the script has for a schema."""

from __future__ import annotations

from typing import Any

from fake_engine import TURN_END, held_text

__all__ = ["JsonSchemaParser", "TokenEnforcer"]


class JsonSchemaParser:
    def __init__(self, json_schema: dict[str, Any] | bool) -> None:
        if json_schema is True:
            json_schema = {}
        if not isinstance(json_schema, dict) or json_schema.get("type") == "objekt":
            raise ValueError(f"unsupported type: {json_schema}")
        self.text = held_text(json_schema)


class _Allowed:
    def __init__(self, allowed_tokens: list[int]) -> None:
        self.allowed_tokens = allowed_tokens


class TokenEnforcer:
    def __init__(self, tokenizer_data: Any, parser: JsonSchemaParser) -> None:
        assert tokenizer_data is not None
        self.text = parser.text

    def get_allowed_tokens(self, token_sequence: list[int]) -> _Allowed:
        place = len(token_sequence)
        return _Allowed([self.text[place]] if place < len(self.text) else [TURN_END])
