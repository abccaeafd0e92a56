"""Names and digests: Ollama's grammar, and nothing that leaves the store's folders."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from oprel.errors import InvalidNameError, InvalidRequestError
from oprel.store.names import Digest, ModelName, as_name_part

ROOT = Path("/models")
HEX = "ab" * 32


@pytest.mark.parametrize(
    ("written", "parts", "shown"),
    [
        ("smollm2", ("registry.ollama.ai", "library", "smollm2", "latest"), "smollm2:latest"),
        ("smollm2:135m", ("registry.ollama.ai", "library", "smollm2", "135m"), "smollm2:135m"),
        ("me/mine", ("registry.ollama.ai", "me", "mine", "latest"), "me/mine:latest"),
        ("hf.co/o/r:Q4_K_M", ("hf.co", "o", "r", "Q4_K_M"), "hf.co/o/r:Q4_K_M"),
        ("localhost:5000/a/b", ("localhost:5000", "a", "b", "latest"), "localhost:5000/a/b:latest"),
        ("https://hf.co/o/r:x", ("hf.co", "o", "r", "x"), "hf.co/o/r:x"),
        ("registry.ollama.ai/library/x:1", ("registry.ollama.ai", "library", "x", "1"), "x:1"),
        ("registry.ollama.ai/me/x:1", ("registry.ollama.ai", "me", "x", "1"), "me/x:1"),
        ("host/x", ("registry.ollama.ai", "host", "x", "latest"), "host/x:latest"),
        ("  spaced  ", ("registry.ollama.ai", "library", "spaced", "latest"), "spaced:latest"),
        ("_x._-:_y.", ("registry.ollama.ai", "library", "_x._-", "_y."), "_x._-:_y."),
        ("Foo:Bar", ("registry.ollama.ai", "library", "Foo", "Bar"), "Foo:Bar"),
    ],
)
def test_names_parse_as_ollama_parses_them(written: str, parts: tuple[str, ...], shown: str) -> None:
    name = ModelName.parse(written)
    assert name.parts == parts
    assert str(name) == shown
    assert ModelName.parse(shown) == name


@pytest.mark.parametrize(
    "written",
    [
        "", ":", "/", "a/", "/a", "a//b", "a:", ":b", "a/b/c/d", "..", "../x", "a/..", ".hidden", "-x", "a:b:c",
        "x@sha256:" + HEX, "a b", "a\n", "a\x00", "ns.dot/x", "C:\\x", "%2e%2e", "\uff0e\uff0e", "é", "a" * 81,
        "x:" + "t" * 81, "n" * 81 + "/x", "h" * 351 + "/n/x", "x" * 5000, "~/.ssh/id_rsa", "/etc/passwd", "file:///etc/passwd",
        "x:..",
    ],
)  # fmt: skip
def test_what_the_grammar_refuses(written: str) -> None:
    with pytest.raises(InvalidNameError) as failure:
        ModelName.parse(written)
    assert len(failure.value.message) < 400


def test_the_longest_names_are_accepted() -> None:
    name = ModelName.parse(f"{'h' * 350}/{'n' * 80}/{'m' * 80}:{'t' * 80}")
    assert [len(part) for part in name.parts] == [350, 80, 80, 80]


def test_a_name_cannot_be_built_around_the_parser() -> None:
    with pytest.raises(InvalidNameError):
        ModelName("host", "ns", "..", "tag")


@given(st.text() | st.text(alphabet="ab./:-_~\\%@ \n\x00", max_size=30))
@example("a/../b")
@example("..:..")
def test_any_string_is_refused_or_lands_inside_the_manifests(raw: str) -> None:
    try:
        name = ModelName.parse(raw)
    except InvalidNameError:
        return
    path = name.manifest_path(ROOT)
    assert path.is_relative_to(ROOT / "manifests")
    assert len(path.relative_to(ROOT / "manifests").parts) == 4
    assert ".." not in path.parts
    assert ModelName.parse(str(name)) == name


@pytest.mark.parametrize("written", [f"sha256:{HEX}", f"sha256-{HEX}"])
def test_both_spellings_of_a_digest(written: str) -> None:
    digest = Digest.parse(written)
    assert digest.blob_path(ROOT) == ROOT / "blobs" / f"sha256-{HEX}"
    assert str(digest) == f"sha256:{HEX}"


@pytest.mark.parametrize(
    "written",
    [
        "", HEX, "sha256:", f"sha256:{HEX}\n", f"sha256:{HEX.upper()}", f"sha256:{HEX}0", f"sha256:{HEX[1:]}",
        f"sha512:{HEX}", "sha256:../../../../etc/x", f"sha256:{'g' * 64}", f" sha256:{HEX}", f"sha256:{HEX[:-1]}\x00",
        f"sha256:{chr(0x660) * 64}",
    ],
)  # fmt: skip
def test_other_digests_are_refused(written: str) -> None:
    with pytest.raises(InvalidRequestError):
        Digest.parse(written)


@given(st.text() | st.from_regex(r"sha256[:-].{60,70}"))
def test_any_string_is_refused_or_is_one_blob(raw: str) -> None:
    try:
        digest = Digest.parse(raw)
    except InvalidRequestError:
        return
    assert digest.blob_path(ROOT).parent == ROOT / "blobs"


@given(st.text(max_size=200))
def test_any_file_name_can_become_a_part_of_a_name(raw: str) -> None:
    part = as_name_part(raw)
    assert ModelName.parse(f"x:{part}").tag == part
