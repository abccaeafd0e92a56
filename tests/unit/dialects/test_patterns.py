"""Patterns that keep an engine's work small pass; those that have stopped engines don't."""

from __future__ import annotations

import contextlib
import re
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oprel.dialects.patterns import MAX_REPEATS, PatternError, checked_pattern

ANY = "[^\\x00-\\x1f\\x22\\x5c]"

HARMLESS = [
    ("", 1),
    ("^$", 1),
    ("abc", 1),
    (r"^\d{3}-\d{4}$", 4),
    (r"^[a-z]+(-[a-z]+)*$", 1),
    (r"^[a-zA-Z0-9._%+-]+@[a-zA-Z0-9.-]+\.[a-zA-Z]{2,}$", 2),
    (r"^(foo|far|bar)+$", 1),
    (r"^[A-Z][a-z]{0,500}$", 500),
    (r"^(?:\+?\d{1,3} )?\d{4,12}$", 12),
    (r"^#[0-9a-fA-F]{6}$", 6),
    (r"^[^\]\\]+$", 1),
    (r"^\S+ .+$", 1),
    (r"^(ab{2}){3}$", 6),
    (r"^é+\u00e9\x41$", 1),
    (r"^[\w.-]{1,64}$", 64),
    (r"a\.b\/c\-d", 1),
    (r"^a{0}b$", 1),
]

HOSTILE = {
    "only what JSON escapes": r"^\"\\$",
    "nested repeats of what may be empty": "^((a?){20}){20}$",
    "a repeat of what may be empty": "(a*)*",
    "an alternative that is empty": "(|a)+",
    "a bounded repeat that may be empty": "(a{0,5}){3}",
    "a group that goes on as it began": "(a+)+b",
    "the same with an optional separator": r"(\w+\s?)+",
    "a look-behind": "^(?<=x)*$",
    "a look-ahead": "^(?=x)x$",
    "a named group": "(?P<a>x)",
    "a back reference": r"(a)\1",
    "a word boundary": r"\bword\b",
    "a property class": r"\p{L}+",
    "a lazy quantifier": "a+?",
    "a possessive quantifier": "a++",
    "many repeats in one product": "^((a{11}){11}){11}$",
    "one repeat too long": f"a{{{MAX_REPEATS + 1}}}",
    "a number that doesn't end": "x{99999999999}",
    "a long ambiguous run": "a*a{500}",
    "many optional ones in a row": "a?" * 60,
    "two loops over the same": "[a-z]{0,500}[a-z]{0,500}",
    "too long": "a" * 1025,
    "too many groups": "(a)" * 17,
    "too many alternatives": "|".join("abcdefgh"[n % 8] + str(n) for n in range(65)),
    "a group that isn't closed": "(a",
    "a bracket that isn't closed": "[a",
    "a group that isn't opened": "a)",
    "a quantifier of nothing": "*a",
    "a brace of nothing": "a{x}",
    "a range that goes down": "[z-a]",
    "a repeat that ends before it begins": "a{3,2}",
    "an escape of nothing": "a\\",
    "half an escape": r"\u00",
    "a beginning in the middle": "a^b",
    "an end in the middle": "a$b",
    "an empty class": "[]",
    "a class of a range of classes": r"[\d-x]",
    "deep nesting": "(" * 500 + "a" + ")" * 500,
}


@pytest.mark.parametrize(("pattern", "repeats"), HARMLESS)
def test_a_harmless_pattern_passes_with_its_repeats(pattern: str, repeats: int) -> None:
    assert checked_pattern(pattern).repeats == repeats


@pytest.mark.parametrize("pattern", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(PatternError):
        checked_pattern(pattern)


REWRITTEN = {
    "classes by name": (r"^\d\w$", "^[0-9][0-9A-Z\\x5fa-z]$"),
    "escapes": (r"^a\.b\/c$", "^[a][\\x2e][b][\\x2f][c]$"),
    "characters by number": (r"^\x41\u00e9$", "^[A][é]$"),
    "no anchors": ("ab", f"^{ANY}*[a][b]{ANY}*$"),
    "one anchor": ("^ab", f"^[a][b]{ANY}*$"),
    "the other anchor": ("ab$", f"^{ANY}*[a][b]$"),
    "an anchor for each alternative": ("^a|b$", f"^(?:[a]{ANY}*|{ANY}*[b])$"),
    "nothing": ("", f"^{ANY}*$"),
    "the empty text": ("^$", "^$"),
    "any character": ("^.{3}$", f"^{ANY}{{3}}$"),
    "all but some": ("^[^a]$", "^[^\\x00-\\x1f\\x22\\x5ca]$"),
    "space and what JSON escapes": (r"^\s$", "^[\\x20]$"),
    "both kinds of group": ("^(a)(?:b)$", "^(?:[a])(?:[b])$"),
    "no repeat": ("^a{0}b{1}$", "^[b]{1}$"),
    "beyond ASCII": ("^[é-ü😀]+$", "^[é-ü😀]+$"),
}


@pytest.mark.parametrize(("pattern", "text"), REWRITTEN.values(), ids=REWRITTEN.keys())
def test_the_plainest_form(pattern: str, text: str) -> None:
    assert checked_pattern(pattern).text == text


@pytest.mark.parametrize("space", ["\u00a0", "\u2003", "\u3000", "\ufeff"])
def test_what_is_no_space_leaves_out_spaces_beyond_ascii(space: str) -> None:
    plain = checked_pattern(r"^\S$").text
    assert not re.search(plain, space)
    assert re.search(plain, "é") and re.search(plain, "\x85")


PATTERNS = st.text(alphabet="ab(|)[]?*+{}0123456789,^$\\.-dws:n ", max_size=40)


@given(PATTERNS)
def test_any_text_is_a_pattern_or_refused(pattern: str) -> None:
    """Nothing else is raised; what passes is within the bounds, and its plain form is its own plain form."""
    with contextlib.suppress(PatternError):
        found = checked_pattern(pattern)
        assert 1 <= found.repeats <= MAX_REPEATS
        assert re.compile(found.text)


@given(PATTERNS | st.sampled_from([pattern for pattern, _ in HARMLESS]), st.data())
def test_the_plain_form_matches_no_more(pattern: str, data: st.DataObject) -> None:
    try:
        plain = checked_pattern(pattern).text
    except PatternError:
        return
    text = data.draw(st.from_regex(re.compile(plain), fullmatch=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # sets that Python may read otherwise one day
        # As ECMA-262 reads it, whose classes are ASCII's.
        assert re.search(pattern, text, re.ASCII)
