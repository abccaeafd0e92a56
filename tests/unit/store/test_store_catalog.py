"""The catalog: Ollama's models as they are, aliases over them, and one broken model that harms no other."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.ollama_store import OllamaStore
from support.tiny_gguf import CHAT_VALUES, EMBED_VALUES, gguf_bytes, write_tiny_gguf
from support.tree_folders import write_folder

from oprel.config import Settings
from oprel.errors import InvalidNameError, InvalidRequestError, ModelDamagedError, ModelNotFoundError
from oprel.schema import Model
from oprel.store import Aliases, Catalog, GgufMetadata, SkippedArray, Store, Trees, read_gguf

CHAT = gguf_bytes()
TOOLS = "{% if tools %}{{ tools }}{% endif %}<think>{{ m }}</think>"


@pytest.fixture
def main(tmp_path: Path) -> OllamaStore:
    return OllamaStore(tmp_path / "models")


def catalog_of(folder: Path, *extra: Path, aliases: str = "") -> Catalog:
    (folder / "aliases.toml").write_text(f"[aliases]\n{aliases}")
    store = Store(folder / "models", state_dir=folder / "state")
    return Catalog(store, aliases=Aliases.load(folder / "aliases.toml"), extra_dirs=extra)


def test_the_real_models(real_models_dir: Path, tmp_path: Path) -> None:
    catalog = Catalog(Store(real_models_dir, state_dir=tmp_path))
    chat, embed = catalog.find("SmolLM2:135M"), catalog.find("all-minilm")
    assert (chat.name, chat.format, chat.architecture, chat.families) == ("smollm2:135m", "gguf", "llama", ("llama",))
    assert (chat.parameter_size, chat.quantization, chat.context_tokens) == ("134.52M", "Q4_1", 8192)
    assert chat.capabilities == {"completion"}
    assert chat.chat_template is not None
    assert Path(chat.weights.path).stat().st_size == chat.weights.size_bytes
    assert (embed.capabilities, embed.pooling, embed.embedding_length) == ({"embedding"}, "mean", 384)
    assert {model.name for model in catalog.list()} == {"smollm2:135m", "all-minilm:latest"}
    assert catalog.metadata(chat).values["tokenizer.ggml.tokens"] == SkippedArray("string", 49152)
    tokens = catalog.metadata(chat, full=True).values["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    assert len(tokens) == 49152


@pytest.mark.parametrize(("written", "driver"), [('"vllm"', "vllm"), ('"auto"', None), ('""', None), ("7", None)])
def test_a_modelfile_may_choose_the_driver(main: OllamaStore, tmp_path: Path, written: str, driver: str | None) -> None:
    """By a parameter, which Ollama passes over."""
    main.add("chosen", [("model", CHAT), ("params", f'{{"driver":{written}}}'.encode())])
    model = catalog_of(tmp_path).find("chosen")
    assert (model.damage, model.driver) == (None, driver)


def test_all_layers_of_an_ollama_model_are_read(main: OllamaStore, tmp_path: Path) -> None:
    path = main.add(
        "me/full:7b",
        [
            ("model", CHAT),
            ("template", b"{{ .System }}{{ if .Tools }}{{ .Tools }}{{ end }}{{ .Suffix }}"),
            ("system", "You are café.".encode()),
            ("params", b'{"stop":["<a>","<b>"],"temperature":0.5,"num_ctx":4096}'),
            ("messages", b'[{"role":"user","content":"Hi"},{"role":"assistant","content":"Ho"}]'),
            ("license", b"MIT"),
            ("license", b"BSD"),
            ("embed", b"ignored"),
        ],
        config={
            "model_format": "gguf",
            "model_family": "llama",
            "model_families": ["llama", "clip"],
            "model_type": "7.2B",
            "file_type": "unknown",
            "rootfs": {"type": "layers"},
        },
        origin="parent:latest",
    )
    model = catalog_of(tmp_path).find("me/full:7b")
    manifest = json.loads(path.read_bytes())
    assert model.damage is None
    assert model.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert model.size_bytes == sum(layer["size"] for layer in [manifest["config"], *manifest["layers"]])
    assert model.modified_at == path.stat().st_mtime
    assert model.template is not None
    assert model.system == "You are café."
    assert dict(model.parameters) == {"stop": ("<a>", "<b>"), "temperature": 0.5, "num_ctx": 4096}
    assert [(message.role, message.text) for message in model.messages] == [("user", "Hi"), ("assistant", "Ho")]
    assert model.licenses == ("MIT", "BSD")
    assert (model.families, model.parameter_size, model.parent) == (("llama", "clip"), "7.2B", "parent:latest")
    assert model.quantization == "Q4_1"  # the config doesn't know, the file does
    assert model.capabilities == {"completion", "insert", "tools"}  # the Go template's, which is the one that is used


CAPABILITIES: dict[str, tuple[list[tuple[str, bytes]], set[str]]] = {
    "chat": ([("model", CHAT)], {"completion"}),
    "embedding": ([("model", gguf_bytes(EMBED_VALUES))], {"embedding"}),
    "an encoder without pooling": (
        [("model", gguf_bytes({k: v for k, v in EMBED_VALUES.items() if "pooling" not in k}))],
        {"embedding"},
    ),
    "tools and thinking in Jinja": (
        [("model", gguf_bytes({**CHAT_VALUES, "tokenizer.chat_template": TOOLS}))],
        {"completion", "tools", "thinking"},
    ),
    "tools and thinking in Go": (
        [
            ("model", gguf_bytes({k: v for k, v in CHAT_VALUES.items() if "template" not in k})),
            ("template", b"{{- if .Tools }}{{ end }}{{ range .Messages }}{{ .Thinking }}{{ end }}"),
        ],
        {"completion", "tools", "thinking"},
    ),
    "vision by projector": (
        [("model", CHAT), ("projector", gguf_bytes({"general.architecture": "clip"}))],
        {"completion", "vision"},
    ),
    "audio by projector": (
        [("model", CHAT), ("projector", gguf_bytes({"general.architecture": "clip", "clip.has_audio_encoder": True}))],
        {"completion", "vision", "audio"},
    ),
    "vision in the file": (
        [("model", gguf_bytes({**CHAT_VALUES, "llama.vision.block_count": 2}))],
        {"completion", "vision"},
    ),
}


@pytest.mark.parametrize(("layers", "expected"), CAPABILITIES.values(), ids=CAPABILITIES.keys())
def test_capabilities(main: OllamaStore, tmp_path: Path, layers: list[tuple[str, bytes]], expected: set[str]) -> None:
    main.add("m", layers)
    assert catalog_of(tmp_path).find("m").capabilities == expected


def test_a_model_without_any_template_shows_that(main: OllamaStore, tmp_path: Path) -> None:
    main.add("base", [("model", gguf_bytes({k: v for k, v in CHAT_VALUES.items() if "template" not in k}))])
    model = catalog_of(tmp_path).find("base")
    assert model.damage is None
    assert model.chat_template is None
    assert model.template is None


Breakage = Callable[[OllamaStore, Path], object]


def _weights_path(main: OllamaStore, manifest: Path) -> Path:
    layers = json.loads(manifest.read_bytes())["layers"]
    return main.blob_path(next(layer["digest"] for layer in layers if layer["mediaType"].endswith("model")))


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def _edit(manifest: Path, **changes: object) -> None:
    manifest.write_text(json.dumps({**json.loads(manifest.read_bytes()), **changes}))


def _config(main: OllamaStore, manifest: Path) -> Path:
    return main.blob_path(json.loads(manifest.read_bytes())["config"]["digest"])


BREAKAGE: dict[str, Breakage] = {
    "an empty manifest": lambda main, manifest: manifest.write_bytes(b""),
    "a zeroed manifest": lambda main, manifest: manifest.write_bytes(bytes(400)),
    "half a manifest": lambda main, manifest: _cut(manifest),
    "a list of manifests": lambda main, manifest: manifest.write_bytes(b'{"schemaVersion":2,"manifests":[]}'),
    "a manifest that is a number": lambda main, manifest: manifest.write_bytes(b"7"),
    "a deep manifest": lambda main, manifest: manifest.write_bytes(b'{"config":' + b"[" * 100_000),
    "a digest that leads away": lambda main, manifest: _edit(
        manifest, layers=[{"mediaType": "x", "digest": "sha256:../../../../etc/passwd", "size": 1}]
    ),
    "a size below zero": lambda main, manifest: _edit(
        manifest, layers=[{"mediaType": "x", "digest": "sha256:" + "0" * 64, "size": -1}]
    ),
    "a thousand and one layers": lambda main, manifest: _edit(
        manifest, layers=[{"mediaType": "x", "digest": "sha256:" + "0" * 64, "size": 1}] * 1001
    ),
    "no weights": lambda main, manifest: _edit(manifest, layers=[]),
    "the weights are missing": lambda main, manifest: _weights_path(main, manifest).unlink(),
    "the weights are cut short": lambda main, manifest: _cut(_weights_path(main, manifest)),
    "the weights are something else": lambda main, manifest: _weights_path(main, manifest).write_bytes(
        b"?" * len(CHAT)
    ),
    "the config is missing": lambda main, manifest: _config(main, manifest).unlink(),
    "the config is no JSON": lambda main, manifest: _config(main, manifest).write_bytes(
        b"?" * _config(main, manifest).stat().st_size
    ),
}


# What a look at each use doesn't show: small files are read once, and only a digest can tell one byte from another.
READ_ONCE = {"the weights are something else", "the config is missing", "the config is no JSON"}


@pytest.mark.parametrize("damage", BREAKAGE.values(), ids=BREAKAGE.keys())
def test_damage_is_told_and_harms_no_other(main: OllamaStore, tmp_path: Path, damage: Breakage) -> None:
    _assert_damage_is_told(main, catalog_of(tmp_path), damage, is_seen_before=False)


@pytest.mark.parametrize("name", [name for name in BREAKAGE if name not in READ_ONCE])
def test_damage_is_told_when_it_comes_later(main: OllamaStore, tmp_path: Path, name: str) -> None:
    _assert_damage_is_told(main, catalog_of(tmp_path), BREAKAGE[name], is_seen_before=True)


def _assert_damage_is_told(main: OllamaStore, catalog: Catalog, damage: Breakage, *, is_seen_before: bool) -> None:
    manifest = main.add("broken", [("model", CHAT)], config={"model_format": "gguf", "which": "broken"})
    main.add("good", [("model", gguf_bytes(EMBED_VALUES))])
    if is_seen_before:
        assert all(model.damage is None for model in catalog.list())
    damage(main, manifest)
    listed = {model.name: model for model in catalog.list()}
    assert listed["good:latest"].damage is None
    broken = catalog.find("broken")
    assert broken.damage is not None
    assert "broken:latest" in broken.damage
    assert broken.damage.endswith(".")
    assert listed["broken:latest"].damage == broken.damage
    briefly = {model.name: model.damage for model in catalog.list(described=False)}
    assert briefly == {"good:latest": None, "broken:latest": broken.damage}
    with pytest.raises(ModelDamagedError):
        catalog.metadata(broken)


def test_a_repaired_model_is_whole_again(main: OllamaStore, tmp_path: Path) -> None:
    manifest = main.add("m", [("model", CHAT)])
    catalog = catalog_of(tmp_path)
    weights = _weights_path(main, manifest)
    weights.unlink()
    assert catalog.find("m").damage is not None
    weights.write_bytes(CHAT)
    assert catalog.find("m").damage is None


def test_a_stub_of_a_remote_model_is_not_usable(main: OllamaStore, tmp_path: Path) -> None:
    main.add("far", [], config={"remote_host": "https://far.example", "remote_model": "far:1t"})
    damage = catalog_of(tmp_path).find("far").damage
    assert damage is not None
    assert "far.example" in damage


def test_names_are_found_without_regard_to_case(main: OllamaStore, tmp_path: Path) -> None:
    main.add("hf.co/Owner/Repo-GGUF:Q4_K_M", [("model", CHAT)])
    main.add("Mixed:Case", [("model", CHAT)])
    catalog = catalog_of(tmp_path)
    assert catalog.find("mixed:CASE").name == "Mixed:Case"
    assert catalog.find("HF.CO/owner/repo-gguf:q4_k_m").name == "hf.co/Owner/Repo-GGUF:Q4_K_M"
    assert catalog.find("owner/repo-gguf").name == "hf.co/Owner/Repo-GGUF:Q4_K_M"


@pytest.mark.parametrize("name", ["nothing", "nothing:1b", "a/b", "pypi:nothing", "hf.co/a/b", "registry.example/a/b"])
def test_what_is_not_here_is_not_found(main: OllamaStore, tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelNotFoundError) as failure:
        catalog_of(tmp_path).find(name)
    assert failure.value.model == name


@pytest.mark.parametrize("name", ["", "../x", "a/b/c/d", "pypi:", "pypi:../x", "pypi:a/../../b", "/etc/passwd"])
def test_what_is_no_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidNameError):
        catalog_of(tmp_path).find(name)


def test_other_stores_are_read_and_never_written(main: OllamaStore, tmp_path: Path) -> None:
    other = OllamaStore(tmp_path / "ollama")
    other.add("theirs", [("model", CHAT)])
    other.add("both", [("model", CHAT)])
    main.add("both", [("model", gguf_bytes(EMBED_VALUES))])
    before = {path: path.stat().st_mtime_ns for path in other.root.rglob("*")}
    catalog = catalog_of(tmp_path, other.root, tmp_path / "missing")
    assert {model.name for model in catalog.list()} == {"theirs:latest", "both:latest"}
    assert catalog.find("theirs").weights.path.startswith(str(other.root))
    assert catalog.find("both").is_embedding  # the store that Oprel writes comes first
    digest = catalog.find("theirs").weights.digest
    for written in (digest, f"sha256:{digest}", f"sha256-{digest}"):
        assert catalog.blob_path(written) == other.blob_path(digest)
    assert catalog.blob_path("0" * 64) == main.blob_path("0" * 64)
    with pytest.raises(InvalidRequestError):
        catalog.blob_path("../x")
    assert {path: path.stat().st_mtime_ns for path in other.root.rglob("*")} == before


def test_settings_make_a_catalog(main: OllamaStore, tmp_path: Path) -> None:
    main.add("m", [("model", CHAT)])
    settings = Settings(models_dir=main.root, state_dir=tmp_path / "state")
    assert Catalog.from_settings(settings).find("m").name == "m:latest"


def test_newest_comes_first(main: OllamaStore, tmp_path: Path) -> None:
    for number, name in enumerate(("b", "a", "c")):
        os.utime(main.add(name, [("model", CHAT)]), (1000 + number, 1000 + number))
    assert [model.name for model in catalog_of(tmp_path).list()] == ["c:latest", "a:latest", "b:latest"]


def test_strange_files_in_a_store_are_passed_over(main: OllamaStore, tmp_path: Path) -> None:
    main.add("m", [("model", CHAT)])
    for path in ("manifests/.DS_Store", "manifests/h/x", "manifests/h/n/m/.hidden", "manifests/h/n/m/t/deeper/x"):
        (main.root / path).parent.mkdir(parents=True, exist_ok=True)
        (main.root / path).write_text("?")
    names = [model.name for model in catalog_of(tmp_path).list() if model.damage is None]
    assert names == ["m:latest"]


ALIAS = '"starter:1b" = "pypi:some-package"\n"hub" = "Owner/Repo-GGUF"\n'


def test_an_alias_finds_what_its_source_was_stored_as(main: OllamaStore, tmp_path: Path) -> None:
    main.add("pypi/some-package/Model.Q4:1.0", [("model", CHAT)])
    main.add("hf.co/owner/repo-gguf:Q8_0", [("model", CHAT)])
    catalog = catalog_of(tmp_path, aliases=ALIAS)
    for name in ("starter:1b", "Starter:1B", "pypi:some_package", "pypi/some-package/Model.Q4:1.0"):
        model = catalog.find(name)
        assert model.name == "pypi/some-package/Model.Q4:1.0"
        assert model.aliases == ("starter:1b",)
    assert catalog.find("pypi:some-package==1.0/Model.Q4.gguf").name == "pypi/some-package/Model.Q4:1.0"
    assert catalog.find("hub").aliases == ("hub:latest",)
    assert catalog.find("hub:q8_0").name == "hf.co/owner/repo-gguf:Q8_0"
    listed = {model.name: model.aliases for model in catalog.list()}
    assert listed == {"pypi/some-package/Model.Q4:1.0": ("starter:1b",), "hf.co/owner/repo-gguf:Q8_0": ("hub:latest",)}
    for name in ("pypi:some-package==2.0", "pypi:some-package/Other.gguf", "hub:q4_0"):
        with pytest.raises(ModelNotFoundError):
            catalog.find(name)


def test_an_installed_model_beats_an_alias(main: OllamaStore, tmp_path: Path) -> None:
    main.add("pypi/some-package/Model:1.0", [("model", CHAT)])
    main.add("starter:1b", [("model", CHAT)])
    catalog = catalog_of(tmp_path, aliases=ALIAS)
    assert catalog.find("starter:1b").name == "starter:1b"
    assert catalog.find("pypi:some-package").aliases == ()
    assert all(not model.aliases for model in catalog.list())


def test_an_alias_means_the_newest_whole_version(main: OllamaStore, tmp_path: Path) -> None:
    os.utime(main.add("pypi/some-package/M:1.0", [("model", CHAT)]), (1000, 1000))
    newest = main.add("pypi/some-package/M:2.0", [("model", gguf_bytes(EMBED_VALUES))])
    catalog = catalog_of(tmp_path, aliases=ALIAS)
    assert catalog.find("starter:1b").name == "pypi/some-package/M:2.0"
    _weights_path(main, newest).unlink()
    assert catalog.find("starter:1b").name == "pypi/some-package/M:1.0"


def test_an_alias_with_a_digest_means_only_that_file(main: OllamaStore, tmp_path: Path) -> None:
    main.add("pypi/some-package/M:1.0", [("model", CHAT)])
    digest = hashlib.sha256(CHAT).hexdigest()
    right = f'"a" = {{ source = "pypi:some-package", sha256 = "{digest}" }}\n'
    wrong = f'"b" = {{ source = "pypi:some-package", sha256 = "{"0" * 64}" }}\n'
    catalog = catalog_of(tmp_path, aliases=right + wrong)
    assert catalog.find("a").aliases == ("a:latest",)
    with pytest.raises(ModelNotFoundError):
        catalog.find("b")


def test_five_hundred_models_are_listed_quickly(main: OllamaStore, tmp_path: Path) -> None:
    for number in range(500):
        main.add(f"m{number}", [("model", CHAT), ("system", f"You are {number}.".encode())])
    catalog = catalog_of(tmp_path)
    catalog.list()
    begin = time.perf_counter()
    models = catalog.list()
    assert time.perf_counter() - begin < 1.0  # 0.03 s on a quiet machine
    assert len(models) == 500


@pytest.fixture
def headers(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files whose headers are read, each time that they are."""
    read: list[Path] = []

    def counted(path: Path, *, model: str = "") -> GgufMetadata:
        read.append(path)
        return read_gguf(path, model=model)

    monkeypatch.setattr("oprel.store.metadata_cache.read_gguf", counted)
    return read


def test_headers_are_parsed_once_for_all_starts(main: OllamaStore, tmp_path: Path, headers: list[Path]) -> None:
    main.add("m", [("model", CHAT), ("projector", gguf_bytes({"general.architecture": "clip"}))])
    main.add("same", [("model", CHAT), ("system", b"another")])
    first = catalog_of(tmp_path).list()
    assert len(headers) == len(set(headers)) == 2
    assert catalog_of(tmp_path).list() == first
    assert len(headers) == 2


def test_a_store_never_seen_is_listed_without_reading_headers(
    main: OllamaStore, tmp_path: Path, headers: list[Path]
) -> None:
    """Names, sizes, and what Ollama's configs say; a folder's files aren't read either."""
    config = {"model_format": "gguf", "model_family": "llama", "model_type": "7B", "file_type": "Q4_0"}
    for number in range(20):
        weights = gguf_bytes({"general.architecture": "llama", "n": number})
        main.add(f"m{number}", [("model", weights), ("template", b"{{ .Prompt }}")], config=config)
    store = Store(tmp_path / "models", state_dir=tmp_path / "state")
    trees = Trees(tmp_path / "trees", state_dir=tmp_path / "state")
    trees.add(write_folder(tmp_path / "folder"), "tree")
    catalog = Catalog(store, shelves=(Trees(tmp_path / "trees", state_dir=tmp_path / "state"),))
    briefly = {model.name: model for model in catalog.list(described=False)}
    assert headers == []
    assert (briefly["m0:latest"].parameter_size, briefly["m0:latest"].quantization) == ("7B", "Q4_0")
    assert briefly["tree:latest"].architecture == ""
    whole = {model.name: model for model in catalog.list()}
    assert len(headers) == 20
    assert [(model.name, model.digest, model.size_bytes, model.files) for model in briefly.values()] == [
        (model.name, model.digest, model.size_bytes, model.files) for model in whole.values()
    ]
    assert whole["tree:latest"].architecture == "LlamaForCausalLM"
    assert {model.name: model for model in catalog.list(described=False)} == whole, "what is known is told"


@pytest.mark.parametrize("state", ["rubbish in the cache", "a cache that can't be written"])
def test_the_cache_may_be_lost(main: OllamaStore, tmp_path: Path, state: str) -> None:
    main.add("m", [("model", CHAT)])
    cache = tmp_path / "state" / "gguf"
    if state == "rubbish in the cache":
        catalog_of(tmp_path).find("m")
        for path in cache.iterdir():
            path.write_bytes(b"\xc1rubbish")
    else:
        cache.parent.mkdir()
        cache.write_text("a file")
    assert catalog_of(tmp_path).find("m").damage is None


def test_a_changed_manifest_is_read_again(main: OllamaStore, tmp_path: Path) -> None:
    main.add("m", [("model", CHAT)])
    catalog = catalog_of(tmp_path)
    before: Model = catalog.find("m")
    main.add("m", [("model", gguf_bytes(EMBED_VALUES))])
    after = catalog.find("m")
    assert before.digest != after.digest
    assert after.is_embedding


def test_an_import_is_seen_at_once(tmp_path: Path) -> None:
    catalog = catalog_of(tmp_path)
    assert catalog.list() == ()
    catalog.store.import_gguf(write_tiny_gguf(tmp_path / "x.gguf"), "x")
    assert [model.name for model in catalog.list()] == ["x:latest"]


def test_a_pattern_stands_for_a_model_that_is_here_and_for_nothing_else(main: OllamaStore, tmp_path: Path) -> None:
    """What is installed or an alias comes first; the name that a pattern stands for isn't looked up as a pattern."""
    main.add("small", [("model", CHAT)])
    main.add("gpt-3", [("model", CHAT), ("system", b"mine")])
    catalog = catalog_of(tmp_path, aliases='"gpt-*" = "small"\n"x*" = "gpt-9"\n')
    assert catalog.find("gpt-4o-mini").name == "small:latest"
    assert catalog.find("gpt-3").name == "gpt-3:latest"
    with pytest.raises(ModelNotFoundError, match=r"'x1'.*'gpt-9'"):
        catalog.find("x1")
    with pytest.raises(ModelNotFoundError):
        catalog.find("gpt-4o-mini", patterns=False)
    with pytest.raises(ModelNotFoundError, match="oprel pull llama9"):
        catalog.find("llama9")
