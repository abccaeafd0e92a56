"""An answer is told apart into thoughts and text, however it was cut into pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oprel.drivers.templated.thoughts import ThoughtSplitter

MARKS = ("<think>", "</think>")


def split(pieces: list[str], *, is_inside: bool = False) -> tuple[str, str]:
    splitter = ThoughtSplitter(MARKS, is_inside=is_inside)
    found = [each for piece in pieces for each in splitter.feed(piece)] + splitter.end()
    assert all(text for _, text in found)
    return "".join(t for is_thought, t in found if is_thought), "".join(t for is_thought, t in found if not is_thought)


@pytest.mark.parametrize(
    ("text", "thought", "said"),
    [
        ("Hello", "", "Hello"),
        ("<think>a</think>b", "a", "b"),
        ("\n<think>\n a b \n</think>\n\n b ", "a b", "b "),
        ("<think>a < b </ c</think>d", "a < b </ c", "d"),
        ("<think></think>\n\nd", "", "d"),
        ("<think>never ends </thin", "never ends </thin", ""),
        ("a <think>b</think>", "", "a <think>b</think>"),
        ("  spaces stay ", "", "  spaces stay "),
        ("<thinker", "", "<thinker"),
        ("<thin", "", "<thin"),
        ("<think>a</think>b<think>c</think>", "a", "b<think>c</think>"),
        ("", "", ""),
        ("<think>a</think>  ", "a", ""),
    ],
)
def test_a_thought_at_the_beginning_is_split_off(text: str, thought: str, said: str) -> None:
    assert split([text]) == (thought, said)
    assert split(list(text)) == (thought, said)


def test_a_prompt_that_opens_the_thought_leaves_only_its_end_to_the_answer() -> None:
    assert split(["\n hm", "m </th", "ink> yes"], is_inside=True) == ("hmm", "yes")
    assert split(["yes"], is_inside=True) == ("yes", "")


def test_where_the_answer_begins_is_known() -> None:
    splitter = ThoughtSplitter(MARKS)
    text = " <think>\nhm</think>\n\n"
    splitter.feed(text)
    assert (splitter.has_answer, splitter.consumed) == (False, len(text))
    splitter.feed("yes")
    assert (splitter.has_answer, splitter.consumed) == (True, len(text))


_TEXT = st.lists(st.sampled_from(["<think>", "</think>", "<", "</", "think", ">", " ", "\n", "a", "é"]), max_size=14)


@given(_TEXT.map("".join), st.data(), st.booleans())
def test_any_cut_gives_the_same(text: str, data: st.DataObject, is_inside: bool) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert split(pieces, is_inside=is_inside) == split([text], is_inside=is_inside)
