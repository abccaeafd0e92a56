"""The page of what drivers can is the tables of the dialects, held against what the drivers declare."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from oprel.dialects import anthropic, ollama, openai
from oprel.dialects.rules import Endpoint
from oprel.drivers.exllama import ExllamaV2Driver, ExllamaV3Driver
from oprel.drivers.llama_cpp import LlamaCppDriver
from oprel.drivers.openai import OpenAIDriver
from oprel.drivers.vllm import VllmDriver
from oprel.schema import ALL_SAMPLING, Capabilities

PAGE = Path(__file__).parents[3] / "docs" / "dialects" / "fields.md"
DRIVERS = (LlamaCppDriver, VllmDriver, ExllamaV2Driver, ExllamaV3Driver, OpenAIDriver)
ENDPOINTS: tuple[Endpoint, ...] = (*openai.ENDPOINTS, *anthropic.ENDPOINTS, *ollama.ENDPOINTS)
HEAD = f"| field | {' | '.join(f'`{driver.name}`' for driver in DRIVERS)} |\n|---|{'---|' * len(DRIVERS)}\n"


def rows() -> Iterator[str]:
    """One for each thing that an engine may lack."""
    fields: dict[str, dict[str, None]] = {}
    for endpoint in ENDPOINTS:
        for rule in endpoint.rules:
            if rule.needs:
                fields.setdefault(rule.needs, {})[f"`{rule.field}`"] = None
    for needed, names in fields.items():
        told = ["yes" if can(driver.can, needed) else "no" for driver in DRIVERS]
        yield f"| {', '.join(names)} | {' | '.join(told)} |"


def can(capabilities: Capabilities | None, needed: str) -> bool:
    assert capabilities is not None
    return needed in capabilities.sampling if needed in ALL_SAMPLING else bool(getattr(capabilities, needed))


def test_the_page_has_a_row_for_each_thing_that_drivers_may_lack() -> None:
    lines = PAGE.read_text("utf-8").splitlines()
    at = lines.index(HEAD.splitlines()[0])
    assert lines[at + 2 :] == list(rows())
