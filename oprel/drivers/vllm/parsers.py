"""Which of vLLM's parsers reads a model's tool calls and thoughts: told by the marks in its chat template."""

from __future__ import annotations

import re

__all__ = ["reasoning_parser", "tool_parser"]

# DeepSeek's marks are written with the wide vertical line and the lower block.
_CALLS = "<\uff5ctool\u2581calls\u2581begin\uff5c>"
_ASSISTANT = "<\uff5cAssistant\uff5c>"

# First match wins. A mark is what the template writes around a call, and so what the model writes.
_TOOLS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (name, re.compile(pattern, re.DOTALL))
    for name, pattern in (
        ("mistral", r"\[TOOL_CALLS\]"),
        ("openai", r"<\|channel\|>"),
        ("deepseek_v3", rf"{_CALLS}.*```json"),
        ("deepseek_v31", _CALLS),
        ("kimi_k2", r"<\|tool_calls_section_begin\|>"),
        ("minimax_m2", r"<minimax:tool_call>"),
        ("glm45", r"<tool_call>.*<arg_key>"),
        ("qwen3_coder", r"<tool_call>.*<function="),
        ("hermes", r"<tool_call>"),
        ("llama3_json", r"<\|python_tag\|>|Environment: ipython"),
        ("granite", r"<\|tool_call\|>"),
        ("functiongemma", r"<start_function_call>"),
        ("phi4_mini_json", r"functools\["),
    )
)
_REASONING: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (name, re.compile(pattern, re.DOTALL))
    for name, pattern in (
        ("openai_gptoss", r"<\|channel\|>"),
        ("mistral", r"\[THINK\]"),
        ("kimi_k2", r"<\|tool_calls_section_begin\|>.*</think>"),
        ("minimax_m2", r"<minimax:tool_call>.*<think>"),
        ("glm45", r"<arg_key>.*</think>|</think>.*<arg_key>"),
        ("deepseek_v3", rf"{_ASSISTANT}.*\bthinking\b"),
        ("deepseek_r1", rf"{_ASSISTANT}.*<think>"),
        ("qwen3", r"enable_thinking.*</think>|</think>.*enable_thinking"),
        ("deepseek_r1", r"<think>.*</think>|split\(['\"]</think>['\"]\)"),
    )
)


def tool_parser(template: str) -> str | None:
    """None: the template has no place for tools, or marks calls in a way that isn't known."""
    return _first(_TOOLS, template) if "tools" in template else None


def reasoning_parser(template: str) -> str | None:
    """None: the model doesn't think, or in a way that isn't known."""
    return _first(_REASONING, template)


def _first(table: tuple[tuple[str, re.Pattern[str]], ...], template: str) -> str | None:
    return next((name for name, pattern in table if pattern.search(template)), None)
