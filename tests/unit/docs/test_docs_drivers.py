"""What the driver docs quote is in the files that they name, and what they tell people to type exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from oprel.cli.program import _parser
from oprel.testing import check, fixtures
from oprel.testing.contract import DriverContract
from oprel.testing.served import ServedContract

REPOSITORY = Path(__file__).parents[3]
PAGES = sorted((REPOSITORY / "docs" / "drivers").glob("*.md"))
EXAMPLE = REPOSITORY / "examples" / "oprel-driver-numpy-bert"
BLOCK = re.compile(r"(?:<!-- (?P<mark>[^\n]*) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)```", re.DOTALL)

Block = tuple[str, str, str, str]


def blocks() -> list[Block]:
    return [
        (page.name, block["mark"] or "", block["language"], block["text"])
        for page in PAGES
        for block in BLOCK.finditer(page.read_text())
    ]


@pytest.mark.parametrize(("page", "mark", "language", "text"), [b for b in blocks() if b[1].startswith("file: ")])
def test_what_is_quoted_is_in_its_file(page: str, mark: str, language: str, text: str) -> None:
    assert text in (REPOSITORY / mark.removeprefix("file: ")).read_text()


@pytest.mark.parametrize(("page", "mark", "language", "text"), [b for b in blocks() if b[2] == "python"])
def test_python_is_quoted_or_compiles(page: str, mark: str, language: str, text: str) -> None:
    assert mark
    if mark == "run":
        compile(text, page, "exec")


def commands() -> list[str]:
    return [line for *_, language, text in blocks() if language == "sh" for line in text.splitlines() if line]


@pytest.mark.parametrize("command", [line for line in commands() if line.startswith("oprel ")])
def test_commands_exist(command: str) -> None:
    assert _parser().parse_args(shlex.split(command, comments=True)[1:]).command


@pytest.mark.parametrize("command", [line for line in commands() if line.startswith("pytest")])
def test_options_of_the_plugin_exist(command: str, pytestconfig: pytest.Config) -> None:
    for option in re.findall(r"--(oprel-[\w-]+)", command):
        pytestconfig.getoption(option.replace("-", "_"))


def test_folders_that_are_named_are_there() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_example_imports_only_what_drivers_may() -> None:
    """`oprel.drivers` and `oprel.schema`; its tests `oprel.testing` as well."""
    for path in EXAMPLE.rglob("*.py"):
        allowed = {"drivers", "schema"} | ({"testing"} if "tests" in path.parts else set())
        for module in re.findall(r"^\s*(?:from|import) oprel\.(\w+)", path.read_text(), re.MULTILINE):
            assert module in allowed, f"{path.name} imports oprel.{module}"


def test_the_public_names_of_testing_are_where_the_docs_say() -> None:
    assert callable(check.check_driver)
    assert fixtures.oprel_cassette is not None
    for contract in (DriverContract, ServedContract):
        rules = [name for name in dir(contract) if name.startswith("test_")]
        assert len(rules) > 15
