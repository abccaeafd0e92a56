"""The stand-ins against the real libraries' sources, where those are at hand: names, parameters, keys of results.

`OPREL_TEST_EXLLAMA_SOURCES` names a folder with the unpacked wheels of exllamav2 0.3.2 and exllamav3 1.6.5. They are
read as text: neither can be imported without a GPU.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

STAND_INS = Path(__file__).parents[3] / "support" / "fake_exllama"
SOURCES = Path(os.environ.get("OPREL_TEST_EXLLAMA_SOURCES", "/nonexistent"))

pytestmark = pytest.mark.skipif(
    not (SOURCES / "exllamav2" / "config.py").is_file() or not (SOURCES / "exllamav3" / "version.py").is_file(),
    reason="OPREL_TEST_EXLLAMA_SOURCES names no folder with the sources of exllamav2 and exllamav3",
)

# (stand-in, its class or function, the real one's file): every parameter of the stand-in's must be the real one's.
V2, V3 = "exllamav2/exllamav2", "exllamav3/exllamav3"
PAIRS = [
    (f"{V2}/__init__.py", "ExLlamaV2Config.__init__", "exllamav2/config.py"),
    (f"{V2}/__init__.py", "ExLlamaV2Config.arch_compat_overrides", "exllamav2/config.py"),
    (f"{V2}/__init__.py", "ExLlamaV2.load", "exllamav2/model.py"),
    (f"{V2}/__init__.py", "ExLlamaV2.load_autosplit", "exllamav2/model.py"),
    (f"{V2}/__init__.py", "ExLlamaV2Cache.__init__", "exllamav2/cache.py"),
    (f"{V2}/__init__.py", "ExLlamaV2Tokenizer.__init__", "exllamav2/tokenizer/tokenizer.py"),
    (f"{V2}/attn.py", "assert_paged_attn", "exllamav2/attn.py"),
    (f"{V2}/generator/__init__.py", "ExLlamaV2DynamicGenerator.__init__", "exllamav2/generator/dynamic.py"),
    (f"{V2}/generator/__init__.py", "ExLlamaV2DynamicJob.__init__", "exllamav2/generator/dynamic.py"),
    (f"{V2}/generator/filters.py", "ExLlamaV2Filter.__init__", "exllamav2/generator/filters/base.py"),
    (f"{V3}/__init__.py", "Config.from_directory", "exllamav3/model/config.py"),
    (f"{V3}/__init__.py", "Model.from_config", "exllamav3/model/model.py"),
    (f"{V3}/__init__.py", "Model.warmup", "exllamav3/model/model.py"),
    (f"{V3}/__init__.py", "Generator.__init__", "exllamav3/generator/generator.py"),
    (f"{V3}/__init__.py", "Job.__init__", "exllamav3/generator/job.py"),
    (f"{V3}/__init__.py", "Tokenizer.from_config", "exllamav3/tokenizer/tokenizer.py"),
    (f"{V3}/__init__.py", "ComboSampler.__init__", "exllamav3/generator/sampler/presets.py"),
    (f"{V3}/__init__.py", "LLGuidanceFilter.__init__", "exllamav3/generator/filter/llguidance.py"),
]


def functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, node
        elif isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef):
                    yield f"{node.name}.{inner.name}", inner


def parameters(path: Path, name: str) -> dict[str, str | None]:
    """Names, with their defaults as text."""
    found = dict(functions(ast.parse(path.read_text(encoding="utf-8"))))[name].args
    plain = found.args
    defaults = [None] * (len(plain) - len(found.defaults)) + [ast.unparse(d) for d in found.defaults]
    told = {argument.arg: default for argument, default in zip(plain, defaults, strict=True)}
    for argument, default in zip(found.kwonlyargs, found.kw_defaults, strict=True):
        told[argument.arg] = ast.unparse(default) if default is not None else None
    return told


@pytest.mark.parametrize(("stand_in", "name", "real"), PAIRS, ids=[name for _, name, _ in PAIRS])
def test_every_parameter_is_the_real_one_s(stand_in: str, name: str, real: str) -> None:
    ours, theirs = parameters(STAND_INS / stand_in, name), parameters(SOURCES / real, name)
    assert set(ours) <= set(theirs)
    needed = {argument for argument, default in theirs.items() if default is None}
    assert needed <= set(ours), "what the real one insists on, the stand-in must too"


def test_load_of_exllamav3_passes_everything_on() -> None:
    """`Model.load(*args, **kwargs)` is `load_gen`'s."""
    ours = parameters(STAND_INS / V3 / "__init__.py", "Model.load")
    assert set(ours) <= set(parameters(SOURCES / "exllamav3/model/model.py", "Model.load_gen"))


def test_the_cache_of_exllamav3() -> None:
    ours = set(parameters(STAND_INS / V3 / "__init__.py", "Cache.__init__")) - {"k_bits", "v_bits"}
    assert ours <= set(parameters(SOURCES / "exllamav3/cache/cache.py", "Cache.__init__"))
    quantized = parameters(SOURCES / "exllamav3/cache/quant.py", "CacheLayer_quant.__init__")
    assert {"k_bits", "v_bits"} <= set(quantized)


@pytest.mark.parametrize(
    ("path", "tokenizer"),
    [("exllamav2/tokenizer/tokenizer.py", "ExLlamaV2Tokenizer"), ("exllamav3/tokenizer/tokenizer.py", "Tokenizer")],
)
def test_the_tokenizers(path: str, tokenizer: str) -> None:
    stand_in = STAND_INS / "common" / "fake_engine.py"
    for method in ("encode", "decode", "get_id_to_piece_list"):
        ours = parameters(stand_in, f"FakeTokenizer.{method}")
        assert set(ours) <= set(parameters(SOURCES / path, f"{tokenizer}.{method}"))


def test_the_sampler_s_settings_of_exllamav2() -> None:
    def fields(path: Path) -> set[str]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        (sampler,) = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "ExLlamaV2Sampler"]
        (settings,) = [n for n in sampler.body if isinstance(n, ast.ClassDef) and n.name == "Settings"]
        return {n.target.id for n in settings.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}

    assert fields(STAND_INS / V2 / "generator/__init__.py") <= fields(SOURCES / "exllamav2/generator/sampler.py")


@pytest.mark.parametrize("path", ["exllamav2/generator/dynamic.py", "exllamav3/generator/job.py"])
def test_the_keys_of_results(path: str) -> None:
    """All that the host reads from a result stands in the real sources."""
    from oprel.drivers.exllama.probe import HOST

    host = Path(HOST).read_text(encoding="utf-8")
    body = host[host.index("    def _read(self, work: Work") : host.index("    # The tokenizer\n")]
    read = set(re.findall(r'(?:result|held|part)(?:\.get\(|\[)"(\w+)"', body)) | {"logits", "token_ids"}
    assert len(read) > 12
    real = (SOURCES / path).read_text(encoding="utf-8")
    if "exllamav3" in path:  # results of stage "error" are made there
        real += (SOURCES / "exllamav3/generator/generator.py").read_text(encoding="utf-8")
    missing = {key for key in read if f'"{key}"' not in real}
    assert missing <= ({"error"} if "exllamav2" in path else set())


def test_what_is_imported_is_there() -> None:
    for path, names in {
        "exllamav2/__init__.py": ("ExLlamaV2Cache_Q4", "ExLlamaV2Cache_Q6", "ExLlamaV2Cache_Q8", "ExLlamaV2Tokenizer"),
        "exllamav2/generator/__init__.py": ("ExLlamaV2DynamicGenerator", "ExLlamaV2DynamicJob", "ExLlamaV2Sampler"),
        "exllamav2/generator/filters/__init__.py": ("ExLlamaV2Filter",),
        "exllamav3/__init__.py": ("CacheLayer_quant", "Generator", "Job", "LLGuidanceFilter", "Tokenizer"),
        "exllamav3/generator/sampler/presets.py": ("class ComboSampler",),
        "exllamav3/generator/filter/llguidance.py": ("llguidance_available",),
    }.items():
        text = (SOURCES / path).read_text(encoding="utf-8")
        assert all(name in text for name in names), path
