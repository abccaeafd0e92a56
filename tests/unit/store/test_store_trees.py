"""Models that are folders: what is taken, what it becomes, and that nothing half is ever seen."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from support.tree_folders import write_folder, write_safetensors

from oprel.errors import InvalidNameError, InvalidRequestError, NoSpaceError, StoreError
from oprel.schema import Model
from oprel.store import Aliases, Catalog, Store, Trees
from oprel.store.disk import Disk
from oprel.store.tree_texts import TreeTexts


@pytest.fixture
def trees(tmp_path: Path) -> Trees:
    return Trees(tmp_path / "trees", state_dir=tmp_path / "state")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "source")


def taken(trees: Trees, folder: Path, name: str = "one") -> Model:
    trees.add(folder, name)
    model = trees.find(name)
    assert model is not None
    return model


# -- what it becomes


def test_a_folder_becomes_a_model(trees: Trees, folder: Path) -> None:
    model = taken(trees, folder)
    assert (model.name, model.format, model.damage) == ("one:latest", "safetensors", None)
    assert (model.architecture, model.families, model.quantization) == ("LlamaForCausalLM", ("llama",), "BF16")
    assert (model.parameter_count, model.context_tokens, model.embedding_length, model.layers) == (1024, 2048, 64, 2)
    assert model.kv_bytes_per_token == 2 * 2 * 2 * 2 * 16
    assert model.capabilities == {"completion", "tools"}
    assert model.chat_template is not None and model.pooling is None and not model.own_code
    place = trees.folder_of(model)
    assert Path(model.weights.path) == place / "model.safetensors"
    assert {Path(file.path).name: file.role for file in model.files} == {
        "model.safetensors": "weights",
        "config.json": "companion",
        "tokenizer.json": "companion",
        "tokenizer_config.json": "companion",
    }
    for file in model.files:
        assert hashlib.sha256(Path(file.path).read_bytes()).hexdigest() == file.digest
        assert Path(file.path).stat().st_size == file.size_bytes
    assert model.size_bytes == sum(file.size_bytes for file in model.files)
    assert trees.verify("one") is None


def test_the_manifest_is_in_the_form_that_all_have(trees: Trees, folder: Path) -> None:
    model = taken(trees, folder)
    path = trees.trees_dir / "manifests/registry.ollama.ai/library/one/latest"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == model.digest
    manifest = json.loads(path.read_bytes())
    assert (manifest["schemaVersion"], manifest["config"]["name"]) == (2, "config.json")
    assert [layer["name"] for layer in manifest["layers"]] == sorted(layer["name"] for layer in manifest["layers"])


def test_the_same_files_are_kept_once_under_any_name(trees: Trees, folder: Path, tmp_path: Path) -> None:
    first = taken(trees, folder)
    second = taken(trees, write_folder(tmp_path / "copy"), "me/two:v1")
    assert (first.digest, second.name) == (second.digest, "me/two:v1")
    assert len([path for path in trees.trees_dir.iterdir() if path.name != "manifests"]) == 1
    assert trees.delete("ONE")
    assert trees.find("one") is None
    assert trees.find("me/two:v1") == second
    assert trees.delete("me/two:v1")
    assert [path.name for path in trees.trees_dir.iterdir()] == ["manifests"]
    assert not trees.delete("me/two:v1")


def test_files_are_shared_with_the_originals(trees: Trees, folder: Path) -> None:
    model = taken(trees, folder)
    assert Path(model.weights.path).stat().st_ino == (folder / "model.safetensors").stat().st_ino


@pytest.mark.parametrize("name", ["ONE", "one:latest", "library/one", "registry.ollama.ai/library/one:latest"])
def test_names_follow_the_stores_rules(trees: Trees, folder: Path, name: str) -> None:
    model = taken(trees, folder)
    assert trees.find(name) == model
    assert trees.list() == (model,)


@pytest.mark.parametrize("name", ["../one", "a b", "", "one/../../two/x"])
def test_a_name_leads_nowhere_else(trees: Trees, folder: Path, name: str) -> None:
    assert trees.find(name) is None
    with pytest.raises(InvalidNameError):
        trees.add(folder, name)


FACTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a model with pictures": (
        {"vision_config": {"depth": 2}, "text_config": {"hidden_size": 32, "num_hidden_layers": 1}},
        {"embedding_length": 32, "layers": 1, "capabilities": frozenset({"completion", "tools", "vision"})},
    ),
    "packed weights": (
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"quantization": "GPTQ", "format": "safetensors"},
    ),
    "EXL2": ({"quantization_config": {"quant_method": "exl2"}}, {"format": "exl2", "quantization": "EXL2"}),
    "latent attention": (
        {"kv_lora_rank": 512, "qk_rope_head_dim": 64},
        {"kv_bytes_per_token": 2 * 2 * (512 + 64)},
    ),
    "code of its own": ({"auto_map": {"AutoModel": "modeling.Mine"}}, {"own_code": True}),
    "a classifier": (
        {"architectures": ["BertForSequenceClassification"]},
        {"pooling": "rank", "capabilities": frozenset({"embedding"})},
    ),
    "an encoder": ({"architectures": ["BertModel"]}, {"pooling": "mean", "capabilities": frozenset({"embedding"})}),
    "nothing but an architecture": (
        {key: None for key in ("hidden_size", "num_hidden_layers", "max_position_embeddings", "model_type")},
        {"layers": None, "context_tokens": None, "kv_bytes_per_token": None, "families": ()},
    ),
    "values of the wrong type": (
        {"hidden_size": "64", "num_hidden_layers": -1, "max_position_embeddings": True, "architectures": "x"},
        {"layers": None, "context_tokens": None, "embedding_length": None, "architecture": ""},
    ),
}


@pytest.mark.parametrize(("config", "facts"), FACTS.values(), ids=FACTS.keys())
def test_what_its_files_say(trees: Trees, tmp_path: Path, config: dict[str, Any], facts: dict[str, Any]) -> None:
    model = taken(trees, write_folder(tmp_path / "source", **config))
    assert model.damage is None
    assert {name: getattr(model, name) for name in facts} == facts


def test_packed_values_are_several_parameters(trees: Trees, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "source", quantization_config={"quant_method": "gptq", "bits": 4})
    write_safetensors(folder / "model.safetensors", {"a.qweight": ("I32", (4, 8)), "a.scales": ("F16", (8,))})
    assert taken(trees, folder).parameter_count == 4 * 8 * 8 + 8


def test_sentence_transformers_are_embedding_models(trees: Trees, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "source", template=None)
    (folder / "modules.json").write_text("[]")
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 256}')
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text('{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}')
    model = taken(trees, folder)
    assert (model.pooling, model.context_tokens, model.capabilities) == ("cls", 256, {"embedding"})
    assert (trees.folder_of(model) / "1_Pooling/config.json").is_file()


@pytest.mark.parametrize(
    ("generation", "parameters"),
    [
        (
            {"temperature": 0.6, "top_k": 20, "repetition_penalty": 1.05},
            {"temperature": 0.6, "top_k": 20, "repeat_penalty": 1.05},
        ),
        ({"temperature": 0.6, "do_sample": False}, {}),
        ({"temperature": "hot", "top_p": True, "top_k": -1, "min_p": 1e300}, {}),
    ],
)
def test_how_its_publisher_samples(
    trees: Trees, folder: Path, generation: dict[str, Any], parameters: dict[str, Any]
) -> None:
    (folder / "generation_config.json").write_text(json.dumps(generation))
    assert dict(taken(trees, folder).parameters) == parameters


@pytest.mark.parametrize("where", ["chat_template.jinja", "named", "chat_template.json"])
def test_a_chat_template_may_lie_in_several_places(trees: Trees, tmp_path: Path, where: str) -> None:
    folder = write_folder(tmp_path / "source", template=None)
    if where == "named":
        templates = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": templates}))
    else:
        text = "yes" if where.endswith("jinja") else json.dumps({"chat_template": "yes"})
        (folder / where).write_text(text)
    assert taken(trees, folder).chat_template == "yes"


def test_weights_in_parts(trees: Trees, tmp_path: Path) -> None:
    """The index says which they are; others beside them would be loaded twice."""
    folder = write_folder(tmp_path / "source")
    (folder / "model.safetensors").unlink()
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for name in (*names, "consolidated.safetensors"):
        write_safetensors(folder / name)
    index = {"weight_map": {"a": names[0], "b": names[1]}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    made = trees.add(folder, "one")
    model = trees.find("one")
    assert model is not None
    assert [Path(file.path).name for file in model.files if file.role == "weights"] == names
    assert made.left_out == ("consolidated.safetensors",)
    assert model.parameter_count == 2048
    (folder / names[1]).unlink()
    with pytest.raises(InvalidRequestError, match="isn't complete"):
        trees.add(folder, "two")


def test_what_no_engine_needs_is_left_out(trees: Trees, folder: Path) -> None:
    for name in ("README.md", "LICENSE", "picture.png", ".gitattributes", "onnx/model.onnx"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    made = trees.add(folder, "one")
    assert made.left_out == ("LICENSE", "README.md", "onnx/model.onnx", "picture.png")
    assert sorted(path.name for path in (trees.trees_dir / made.digest.hex).iterdir()) == [
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip


# -- what is refused


def spoil(folder: Path, how: str) -> None:
    weights = folder / "model.safetensors"
    match how:
        case "a pickle":
            (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
        case "a program":
            (folder / "modeling_mine.py").write_text("")
        case "a pickle below":
            (folder / "original").mkdir()
            (folder / "original/consolidated.00.pth").write_bytes(b"")
        case "a link to a file":
            (folder / "vocab.json").symlink_to("/etc/passwd")
        case "a link to a folder":
            (folder / "more").symlink_to("/etc")
        case "weights that are a link":
            weights.rename(folder.parent / "elsewhere")
            weights.symlink_to(folder.parent / "elsewhere")
        case "a pipe":
            os.mkfifo(folder / "merges.txt")
        case "a name with a line in it":
            (folder / "a\nb.json").write_text("{}")
        case "no config":
            (folder / "config.json").unlink()
        case "no weights":
            weights.unlink()
        case "a config that is a list":
            (folder / "config.json").write_text("[]")
        case "a config that is no JSON":
            (folder / "config.json").write_text("{" * 100_000)
        case "a huge config":
            (folder / "config.json").write_text('{"a": "' + "x" * (5 << 20) + '"}')
        case "weights cut short":
            weights.write_bytes(weights.read_bytes()[:-1])
        case "weights that are something else":
            weights.write_bytes(b"GGUF" + bytes(100))
        case "a header without an end":
            weights.write_bytes((1 << 60).to_bytes(8, "little") + b"{}")
        case "a tensor outside of its file":
            text = b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,99999]}}'
            weights.write_bytes(len(text).to_bytes(8, "little") + text + bytes(16))
        case "no tensors":
            weights.write_bytes((2).to_bytes(8, "little") + b"{}")


SPOILT = [
    "a pickle", "a program", "a pickle below", "a link to a file", "a link to a folder", "weights that are a link",
    "a pipe", "a name with a line in it", "no config", "no weights", "a config that is a list",
    "a config that is no JSON", "a huge config", "weights cut short", "weights that are something else",
    "a header without an end", "a tensor outside of its file", "no tensors",
]  # fmt: skip


@pytest.mark.parametrize("how", SPOILT)
def test_a_folder_that_is_refused_leaves_nothing(trees: Trees, folder: Path, how: str) -> None:
    spoil(folder, how)
    with pytest.raises((InvalidRequestError, StoreError)) as caught:
        trees.add(folder, "one")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert not trees.trees_dir.exists() or list(trees.trees_dir.iterdir()) == []


def test_a_file_is_no_folder(trees: Trees, folder: Path) -> None:
    with pytest.raises(InvalidRequestError, match="isn't a folder"):
        trees.add(folder / "config.json", "one")


def test_too_many_files_are_not_one_model(trees: Trees, folder: Path) -> None:
    for number in range(2001):
        (folder / f"{number}.json").touch()
    with pytest.raises(InvalidRequestError, match="more than 2000 files"):
        trees.add(folder, "one")


# -- what happens to it later


def test_a_manifest_of_somebody_elses_making_leads_nowhere(trees: Trees, folder: Path) -> None:
    taken(trees, folder)
    path = trees.trees_dir / "manifests/registry.ollama.ai/library/one/latest"
    manifest = json.loads(path.read_bytes())
    for name in ("../../../etc/passwd", "/etc/passwd", "a/../../b.json", "", ".", "a//b", "x" + "/x" * 9):
        manifest["layers"][0]["name"] = name
        path.write_bytes(json.dumps(manifest).encode())
        model = trees.find("one")
        assert model is not None and model.damage is not None
        assert not any("passwd" in file.path for file in model.files)


def test_damage_is_told_and_an_import_repairs_it(trees: Trees, folder: Path, tmp_path: Path) -> None:
    class Copying(Disk):
        def link(self, source: Path, target: Path) -> None:
            raise OSError("not here")

    trees = Trees(tmp_path / "trees", state_dir=tmp_path / "state", disk=Copying())
    model = taken(trees, folder)
    Path(model.weights.path).write_bytes(b"short")
    damaged = trees.find("one")
    assert damaged is not None and damaged.damage is not None and "instead of" in damaged.damage
    assert trees.list()[0].damage
    trees.add(folder, "one")
    repaired = trees.find("one")
    assert repaired is not None and (repaired.damage, repaired.files) == (None, model.files)
    assert trees.verify("one") is None


def test_what_was_changed_in_place_is_found_when_it_is_read(trees: Trees, folder: Path) -> None:
    model = taken(trees, folder)
    with Path(model.weights.path).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    found = trees.find("one")
    assert found is not None and found.damage is None
    assert "model.safetensors" in (trees.verify("one") or "")


class Stopped(Exception):
    pass


class StoppingDisk(Disk):
    """Ends the process, as it were, before its `at`th step that changes anything."""

    def __init__(self, at: int) -> None:
        self.left = at

    def step(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Stopped

    def make_folder(self, path: Path, *, mode: int = 0o777) -> None:
        self.step()
        super().make_folder(path, mode=mode)

    def create(self, path: Path) -> int:
        self.step()
        return super().create(path)

    def write(self, descriptor: int, data: bytes | memoryview) -> None:
        self.step()
        super().write(descriptor, data)

    def rename(self, source: Path, target: Path) -> None:
        self.step()
        super().rename(source, target)

    def sync(self, descriptor: int) -> None:
        self.step()
        super().sync(descriptor)


def test_whatever_ends_an_import_nothing_half_is_seen(folder: Path, tmp_path: Path) -> None:
    steps = 0
    while True:
        home = tmp_path / f"at-{steps}"
        trees = Trees(home / "trees", state_dir=home / "state", disk=StoppingDisk(steps))
        try:
            trees.add(folder, "one", texts=TreeTexts(system="S", licenses=("L",)))
        except Stopped:
            after = Trees(home / "trees", state_dir=home / "state")
            model = after.find("one")
            assert model is None or (model.damage is None and after.verify("one") is None)
            after.sweep(min_age_s=0)
            assert len([p for p in home.glob("trees/*") if p.name != "manifests"]) == (0 if model is None else 1)
            steps += 1
            continue
        break
    assert steps > 30
    assert (found := trees.find("one")) is not None
    assert (found.system, found.licenses) == ("S", ("L",))


def test_what_a_killed_import_left_is_swept(trees: Trees, folder: Path) -> None:
    kept = taken(trees, folder)
    staging = trees.trees_dir / ".oprel-1-00.partial"
    orphan = trees.trees_dir / ("0" * 64)
    for left in (staging, orphan):
        write_folder(left)
    assert trees.sweep() == 0, "they are too young to be sure"
    assert trees.sweep(min_age_s=0) == 2
    assert trees.verify("one") is None
    assert sorted(path.name for path in trees.trees_dir.iterdir()) == sorted(["manifests", kept.digest])


def test_a_sweep_spares_who_is_at_work(trees: Trees, folder: Path) -> None:
    seen: list[int] = []

    def progress(done: int, total: int) -> None:
        other = Trees(trees.trees_dir, state_dir=trees.trees_dir.parent / "state")
        seen.append(other.sweep(min_age_s=0))

    trees.add(folder, "one", progress=progress)
    assert seen and set(seen) == {0}
    assert trees.find("one")


def test_progress_counts_all_files(trees: Trees, folder: Path) -> None:
    told: list[tuple[int, int]] = []
    trees.add(folder, "one", progress=lambda done, total: told.append((done, total)))
    total = sum(path.stat().st_size for path in folder.iterdir())
    assert told[-1] == (total, total)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_progress_may_end_the_work(trees: Trees, folder: Path) -> None:
    def refuse(done: int, total: int) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        trees.add(folder, "one", progress=refuse)
    assert [path for path in trees.trees_dir.iterdir()] == []


def test_a_full_disk_is_told_beforehand(folder: Path, tmp_path: Path) -> None:
    class Full(Disk):
        def link(self, source: Path, target: Path) -> None:
            raise OSError("not here")

        def free_bytes(self, path: Path) -> int:
            return 10

    trees = Trees(tmp_path / "trees", state_dir=tmp_path / "state", disk=Full())
    with pytest.raises(NoSpaceError):
        trees.add(folder, "one")
    assert list(trees.trees_dir.iterdir()) == []


def test_only_the_user_may_look_in(trees: Trees, folder: Path) -> None:
    taken(trees, folder)
    assert stat.S_IMODE(trees.trees_dir.stat().st_mode) == 0o700


# -- in the catalog


@pytest.fixture
def catalog(trees: Trees, tmp_path: Path) -> Catalog:
    return Catalog(Store(tmp_path / "models", state_dir=tmp_path / "state"), shelves=(trees,))


def test_the_catalog_has_them(catalog: Catalog, trees: Trees, folder: Path) -> None:
    model = taken(trees, folder)
    assert catalog.find("One") == model
    assert catalog.list() == (model,)
    assert catalog.delete("one")
    assert catalog.list() == ()
    assert not catalog.delete("one")


def test_a_stored_model_and_its_alias_know_their_place(tmp_path: Path, trees: Trees, folder: Path) -> None:
    """The store before folders, folders before aliases."""
    from support.tiny_gguf import write_tiny_gguf

    store = Store(tmp_path / "models", state_dir=tmp_path / "state")
    store.import_gguf(write_tiny_gguf(tmp_path / "x.gguf"), "both")
    catalog = Catalog(store, aliases=Aliases.load(None), shelves=(trees,))
    taken(trees, folder, "both")
    shadowing = taken(trees, folder, "smollm2:135m")
    assert catalog.find("both").format == "gguf"
    assert catalog.find("smollm2:135m") == shadowing
    assert [model.name for model in catalog.list()].count("both:latest") == 1
