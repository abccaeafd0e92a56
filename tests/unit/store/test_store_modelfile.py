"""Modelfiles: Ollama's grammar, its errors to the letter, and a text that comes back as it was."""

from __future__ import annotations

import codecs

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oprel.errors import InvalidRequestError
from oprel.store.modelfile import Instruction, Modelfile, quoted

COMMANDS = (
    'command must be one of "from", "license", "template", "system", "adapter", "draft", "renderer", "parser", '
    '"parameter", "message", or "requires"'
)


def values(text: str | bytes) -> list[tuple[str, str, str]]:
    return [(each.word, each.key, each.value) for each in Modelfile.parse(text).instructions]


def test_every_instruction_is_read_in_any_case_with_comments_and_blanks_between() -> None:
    parsed = Modelfile.parse(
        "# a comment\n\n"
        "FROM  llama3.2\n"
        "  # another\n"
        "from ./mmproj.gguf\r\n"
        "Adapter ./lora.gguf\n"
        "DRAFT ./draft.gguf\n"
        "TEMPLATE {{ .Prompt }}\n"
        "system You are terse. # not a comment\n"
        "PARAMETER temperature 0.5\n"
        "PARAMETER stop <|a|>\n"
        'PARAMETER stop "two words "\n'
        "parameter num_ctx 4096\n"
        "PARAMETER use_mmap F\n"
        "MESSAGE user Hi\n"
        "MESSAGE assistant Hello: there\n"
        "LICENSE MIT\n"
        "LICENSE Apache\n"
        "RENDERER qwen3-coder\n"
        "PARSER qwen3-coder\n"
        "REQUIRES v0.14.0"
    )
    assert parsed.sources == ("llama3.2", "./mmproj.gguf")
    assert parsed.adapter == "./lora.gguf"
    assert parsed.drafts == ("./draft.gguf",)
    assert parsed.template == "{{ .Prompt }}"
    assert parsed.system == "You are terse. # not a comment"
    assert parsed.parameters == {
        "temperature": 0.5, "stop": ["<|a|>", "two words "], "num_ctx": 4096, "use_mmap": False
    }  # fmt: skip
    assert parsed.messages == (("user", "Hi"), ("assistant", "Hello: there"))
    assert parsed.licenses == ("MIT", "Apache")
    assert (parsed.renderer, parsed.parser, parsed.requires) == ("qwen3-coder", "qwen3-coder", "0.14.0")


@pytest.mark.parametrize(
    ("written", "read"),
    [
        pytest.param("plain  text \t", "plain  text", id="trimmed"),
        pytest.param('"in quotes"', "in quotes", id="quotes"),
        pytest.param('" edges "', " edges ", id="edges"),
        pytest.param('"""one\ntwo"""', "one\ntwo", id="several lines"),
        pytest.param('"one\ntwo"', "one\ntwo", id="several lines in plain quotes"),
        pytest.param('"""\nafter a newline\n"""', "\nafter a newline\n", id="newlines inside stay"),
        pytest.param('"""say "hi" """', 'say "hi" ', id="quotes inside"),
        pytest.param('"a\\n\\"b"', 'a\\n\\"b', id="no escapes"),
        pytest.param("'single'", "'single'", id="single quotes are letters"),
        pytest.param('say "hi"', 'say "hi"', id="a quote inside opens nothing"),
        pytest.param('""', "", id="empty"),
        pytest.param('""""""', "", id="empty in three"),
        pytest.param('"a" and\nb"', 'a" and\nb', id="text after a closing quote swallows lines"),
        pytest.param('"""a"""b\nc"""', 'a"""b\nc', id="and after three"),
        pytest.param('"""a\r\nb"""', "a\r\nb", id="line ends within quotes are kept"),
        pytest.param("a\x00b\u200bc\x1b[0m", "abc[0m", id="what can't be printed is dropped"),
        pytest.param("a\tb", "a\tb", id="a tab stays"),
        pytest.param('"""\n\n"""', "\n\n", id="only newlines"),
    ],
)
def test_values_are_read_by_the_rules_of_quotes(written: str, read: str) -> None:
    assert values(f"FROM x\nSYSTEM {written}\nLICENSE z") == [
        ("from", "", "x"), ("system", "", read), ("license", "", "z")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "no FROM line"),
        ("# only a comment", "no FROM line"),
        ("SYSTEM hi", "no FROM line"),
        ("FROM x\nBADCOMMAND param1 value1", f"(line 2): {COMMANDS}"),
        ("FROM x\n\n\nIN-STRUCTION y", f"(line 4): {COMMANDS}"),
        ("FROM x\r\nBAD y", f"(line 2): {COMMANDS}"),
        ('FROM x\nSYSTEM """a\nb"""\nBAD y', f"(line 4): {COMMANDS}"),
        ("FROM\nSYSTEM x", f"(line 1): {COMMANDS}"),
        ("1 x", f"(line 1): {COMMANDS}"),
        ("FROM x\nMESSAGE user2 hi", "unexpected EOF: user"),
        ("FROM x\nMESSAGE tool hi", '(line 2): message role must be one of "system", "user", or "assistant"'),
        ("FROM x\nMESSAGE User hi", '(line 2): message role must be one of "system", "user", or "assistant"'),
        ("FROM x\nMESSAGE user\nhi", "unexpected EOF: user"),
        ("FROM x\nPARAMETER num_ctx\n4", "unexpected EOF: num_ctx"),
        ("FROM x\nPARAMETER num_ctx", "unexpected EOF"),
        ("FROM", "unexpected EOF"),
        ('FROM x\nSYSTEM "open', "unexpected EOF"),
        ('FROM x\nSYSTEM """open\nand on', "unexpected EOF"),
        ('FROM x\nSYSTEM """"', "unexpected EOF"),
    ],
)
def test_errors_are_told_to_the_letter(text: str, error: str) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        Modelfile.parse(text)
    assert raised.value.message == error


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("PARAMETER nonsense 1", "unknown parameter 'nonsense'"),
        ("PARAMETER  num_ctx 1", "unknown parameter ''"),
        ("PARAMETER numa true", "unknown parameter 'numa'"),
        ("PARAMETER tfs_z 1", "unknown parameter 'tfs_z'"),
        ("PARAMETER num_ctx four", "invalid int value [four]"),
        ("PARAMETER num_ctx 1.5", "invalid int value [1.5]"),
        ("PARAMETER num_ctx 1_0", "invalid int value [1_0]"),
        ("PARAMETER temperature hot", "invalid float value [hot]"),
        ("PARAMETER temperature nan", "invalid float value [nan]"),
        ("PARAMETER use_mmap yes", "invalid bool value [yes]"),
    ],
)
def test_parameters_have_types(line: str, error: str) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        _ = Modelfile.parse(f"FROM x\n{line}").parameters
    assert raised.value.message == error


def test_deprecated_parameters_are_skipped_with_a_warning() -> None:
    parsed = Modelfile.parse("FROM x\nPARAMETER mirostat 1\nPARAMETER low_vram true\nPARAMETER top_k 3")
    assert parsed.parameters == {"top_k": 3}
    assert parsed.warnings == (
        "warning: parameter mirostat is deprecated",
        "warning: parameter low_vram is deprecated",
    )


@pytest.mark.parametrize("version", ["x", "1.02.0", "", "1.2.3.4", "vv1.0.0", "1.2-rc", "1.0.0\u0663"])
def test_a_version_that_is_none_is_refused(version: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"^requires must be a valid semver \(e\.g\. 0\.14\.0\)$"):
        _ = Modelfile.parse(f"FROM x\nREQUIRES {version}").requires


@pytest.mark.parametrize("version", ["1", "0.14", "0.14.0", "v0.14.0", "1.2.3-rc.1+b7"])
def test_a_version_is_taken_without_its_v(version: str) -> None:
    assert Modelfile.parse(f"FROM x\nREQUIRES {version}").requires == version.removeprefix("v")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16-le", "utf-16-be"])
def test_a_byte_order_mark_tells_the_encoding(encoding: str) -> None:
    mark = {"utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}.get(encoding, b"")
    assert values(mark + "FROM x\nSYSTEM Grüße 🦙".encode(encoding)) == [
        ("from", "", "x"), ("system", "", "Grüße 🦙")
    ]  # fmt: skip


def test_a_value_is_quoted_only_where_it_must_be() -> None:
    assert quoted('{{ if eq .Role "user" }}') == '{{ if eq .Role "user" }}'
    assert quoted("a\nb") == '"a\nb"'
    assert quoted('a\n"b"') == '"""a\n"b""""'
    assert quoted(" a") == '" a"'
    assert quoted('"a') == '""""a"""'
    assert quoted("") == '""'


_printable = st.characters(exclude_categories=("C", "Z"), include_characters=" \t\n\r\"'#")
_text = st.text(_printable, max_size=60).filter(
    lambda text: '"""' not in text and all(character.isprintable() or character in "\t\n\r" for character in text)
)
_instructions = st.one_of(
    st.builds(Instruction, st.sampled_from(["license", "template", "system", "adapter", "requires", "draft"]), _text),
    st.builds(Instruction, st.just("parameter"), _text, st.from_regex(r"\A[A-Za-z0-9_]{1,12}\Z")),
    st.builds(Instruction, st.just("message"), _text, st.sampled_from(["system", "user", "assistant"])),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(_instructions, max_size=8), st.integers(0, 8))
def test_what_is_written_is_read_back(instructions: list[Instruction], at: int) -> None:
    instructions.insert(at, Instruction("from", "x"))
    modelfile = Modelfile(tuple(instructions))
    assert Modelfile.parse(str(modelfile)) == modelfile
    assert Modelfile.parse(str(modelfile).encode()) == modelfile


_SHREDS = [
    *("FROM ", "from", "PARAMETER ", "stop ", "num_ctx ", "MESSAGE ", "user ", "SYSTEM ", "REQUIRES ", "x", "1"),
    *('"', '"""', "\n", "\r", "#", " ", "\t", "\ufeff", "\x00"),
]


@settings(max_examples=400, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.text(max_size=200),
        st.lists(
            st.sampled_from(_SHREDS),
            max_size=30,
        ).map("".join),
    )
)
def test_nothing_but_our_error_comes_of_any_text(text: str | bytes) -> None:
    try:
        parsed = Modelfile.parse(text)
        _ = parsed.requires, parsed.parameters, parsed.messages, parsed.warnings
    except InvalidRequestError:
        return
    assert parsed.sources


def test_a_large_quoted_text_is_read_in_one_pass() -> None:
    text = 'FROM x\nLICENSE """' + "line\n" * 400_000 + '"""'
    assert len(Modelfile.parse(text).licenses[0]) == 5 * 400_000
