"""`WWW-Authenticate` as registries write it, and as nobody should."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oprel.sources.registry.challenge import Challenge, parse_challenge


@pytest.mark.parametrize(
    ("header", "challenge"),
    [
        (
            'Bearer realm="https://a/t",service="s",scope="repository:x:pull,push repository:y:pull"',
            Challenge("bearer", "https://a/t", "s", ("repository:x:pull,push", "repository:y:pull")),
        ),
        ("bearer realm=https://a/t", Challenge("bearer", "https://a/t")),
        ('Basic realm="models"', Challenge("basic", "models")),
        ('Basic realm="m", Bearer realm="https://a/t"', Challenge("bearer", "https://a/t")),
        (r'Bearer realm="a\"b"', Challenge("bearer", 'a"b')),
        ('Negotiate, Basic realm="m"', Challenge("basic", "m")),
        ("Negotiate", None),
        ("", None),
        ("Bearer", Challenge("bearer")),
    ],
)
def test_challenges(header: str, challenge: Challenge | None) -> None:
    assert parse_challenge(header) == challenge


@given(st.text(max_size=200) | st.text(alphabet='Bearealm="\\, =', max_size=8000))
def test_any_text_is_a_challenge_or_none(header: str) -> None:
    found = parse_challenge(header)
    assert found is None or len(found.realm) <= 4096
