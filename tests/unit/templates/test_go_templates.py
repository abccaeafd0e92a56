"""The interpreter answers as Go's own text/template does: what it printed for each case was written down once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from oprel.templates import TemplateError, parse

_FILE = json.loads((Path(__file__).parent / "go_answers.json").read_text(encoding="utf-8"))
DATA = _FILE["data"]
CASES = [tuple(row) for row in _FILE["answers"]]


@pytest.mark.parametrize(("source", "said"), [(s, said) for s, kind, said in CASES if kind == "ok"])
def test_what_go_renders_is_rendered_the_same(source: str, said: str) -> None:
    assert parse(source).render(DATA) == said


@pytest.mark.parametrize(("source", "said"), [(s, said) for s, kind, said in CASES if kind == "error"])
def test_what_go_can_not_execute_fails_at_the_same_line(source: str, said: str) -> None:
    template = parse(source)
    with pytest.raises(TemplateError) as failed:
        template.render(DATA)
    assert failed.value.line == int(said.split(":")[2])


@pytest.mark.parametrize(("source", "said"), [(s, said) for s, kind, said in CASES if kind == "parse"])
def test_what_go_does_not_parse_is_refused_in_its_words(source: str, said: str) -> None:
    with pytest.raises(TemplateError) as failed:
        parse(source)
    assert failed.value.message == said
