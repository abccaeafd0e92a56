"""That the vectors mean something, and that words are cut as the model was taught."""

from __future__ import annotations

from pathlib import Path

import pytest
from oprel_driver_numpy_bert.bert import Bert
from oprel_driver_numpy_bert.files import read_model
from oprel_driver_numpy_bert.words import WordPieces

from oprel.schema import Model

PIECES = ["[UNK]", "[CLS]", "[SEP]", "▁play", "ing", "▁the", "▁!", "▁中", "▁cafe", "s", "▁"]


@pytest.fixture(scope="module")
def loaded(model: Model) -> tuple[Bert, WordPieces]:
    return read_model(Path(model.weights.path))


@pytest.fixture
def words() -> WordPieces:
    return WordPieces(PIECES, begin=1, end=2, unknown=0, lowercase=True)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("The playing!", ["▁the", "▁play", "ing", "▁!"]),
        ("CAFÉS", ["▁cafe", "s"]),
        ("the中the", ["▁the", "▁中", "▁the"]),
        ("xyz the", ["[UNK]", "▁the"]),
        ("playxyz", ["[UNK]"]),
        ("  \n", []),
        ("the\0!", ["▁the", "▁!"]),
        ("p" * 101, ["[UNK]"]),
    ],
)
def test_words_are_cut_into_their_longest_pieces(words: WordPieces, text: str, pieces: list[str]) -> None:
    assert [PIECES[token] for token in words.tokens(text)] == pieces


def test_a_text_stands_between_marks_and_comes_back(words: WordPieces) -> None:
    row = words.row("the playing")
    assert (row[0], row[-1]) == (1, 2)
    assert words.text(row) == "the playing"


def test_alike_texts_have_near_vectors(loaded: tuple[Bert, WordPieces]) -> None:
    bert, words = loaded
    cat, kitten, market = (
        bert.vector(words.row(text), normalize=True) for text in ("a cat", "a kitten", "the stock market")
    )
    assert sum(x * y for x, y in zip(cat, cat, strict=True)) == pytest.approx(1, abs=1e-5)
    near, far = (sum(x * y for x, y in zip(cat, other, strict=True)) for other in (kitten, market))
    assert near > 0.6 > 0.4 > far
