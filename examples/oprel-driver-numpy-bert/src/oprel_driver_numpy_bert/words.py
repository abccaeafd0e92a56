"""WordPiece: a text becomes words, a word becomes the longest pieces that the vocabulary has."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator

__all__ = ["WordPieces"]

_WORD = "\u2581"  # GGUF files mark the beginning of a word with it
_LONGEST_WORD = 100


class WordPieces:
    """`pieces` are the vocabulary in its order."""

    def __init__(self, pieces: list[str], *, begin: int, end: int, unknown: int, lowercase: bool) -> None:
        self.size = len(pieces)
        self._pieces = pieces
        self._ids = {piece: number for number, piece in enumerate(pieces)}
        self._begin, self._end, self._unknown = begin, end, unknown
        self._lowercase = lowercase

    def row(self, text: str) -> list[int]:
        """With the marks that the model was trained with around it."""
        return [self._begin, *self.tokens(text), self._end]

    def tokens(self, text: str) -> list[int]:
        return [token for word in _words(text, lowercase=self._lowercase) for token in self._of_word(word)]

    def text(self, tokens: Iterable[int]) -> str:
        """What was said, as far as the vocabulary tells: its spaces are a guess, its accents are gone."""
        pieces = (self._pieces[token] for token in tokens if token not in (self._begin, self._end))
        return "".join(pieces).replace(_WORD, " ").strip()

    def _of_word(self, word: str) -> list[int]:
        if len(word) > _LONGEST_WORD:
            return [self._unknown]
        found: list[int] = []
        rest = _WORD + word
        while rest:
            length = next((n for n in range(len(rest), 0, -1) if rest[:n] in self._ids and rest[:n] != _WORD), 0)
            if not length:
                return [self._unknown]
            found.append(self._ids[rest[:length]])
            rest = rest[length:]
        return found


def _words(text: str, *, lowercase: bool) -> Iterator[str]:
    """Runs between spaces, with every punctuation mark and every Chinese character a word of its own."""
    if lowercase:
        plain = unicodedata.normalize("NFD", text.lower())
        text = "".join(char for char in plain if unicodedata.category(char) != "Mn")
    word = ""
    for char in text:
        category = unicodedata.category(char)
        if char.isspace():
            yield from (word,) if word else ()
            word = ""
        elif category.startswith("C") or char in "\0\N{REPLACEMENT CHARACTER}":
            continue
        elif category.startswith("P") or _is_symbol(char) or _is_chinese(char):
            yield from (word,) if word else ()
            yield char
            word = ""
        else:
            word += char
    yield from (word,) if word else ()


def _is_symbol(char: str) -> bool:
    """ASCII that isn't a letter or a digit counts as punctuation, as in the original."""
    return char.isascii() and not char.isalnum()


def _is_chinese(char: str) -> bool:
    return "\u4e00" <= char <= "\u9fff" or "\u3400" <= char <= "\u4dbf" or "\uf900" <= char <= "\ufaff"
