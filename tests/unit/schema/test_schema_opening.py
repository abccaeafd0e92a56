"""What a model says first, before what its client says."""

from __future__ import annotations

from oprel.schema import Message, TextPart, with_opening
from oprel.testing import scripted_model


def said(role: str, text: str) -> Message:
    return Message(role, (TextPart(text),))  # type: ignore[arg-type]  # the tests' roles are roles


OWN = (said("user", "Hi"), said("assistant", "Yo"))
ASKED = (said("user", "Go"),)


def test_its_system_text_and_messages_come_first() -> None:
    model = scripted_model(system="S", messages=OWN)
    assert with_opening(model, ASKED) == (said("system", "S"), *OWN, *ASKED)


def test_a_client_that_begins_with_a_system_text_has_its_own() -> None:
    model = scripted_model(system="S", messages=OWN)
    given = (said("system", "mine"), *ASKED)
    assert with_opening(model, given) == (*OWN, *given)


def test_a_model_that_says_nothing_changes_nothing() -> None:
    assert with_opening(scripted_model(), ASKED) == ASKED
