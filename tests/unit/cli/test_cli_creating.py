"""`oprel create`: what a Modelfile names is found, read and sent; what it says reaches the server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.servers import ScriptedServer, scripted_server
from support.tiny_gguf import CHAT_VALUES, gguf_bytes, write_tiny_gguf
from support.tree_folders import write_folder

from oprel.store import Catalog, Store, Trees

if TYPE_CHECKING:
    from conftest import Oprel

ADAPTER = {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """The one that this user's settings name."""
    return Store(tmp_path / ".oprel" / "models", state_dir=tmp_path / ".oprel" / "state")


@pytest.fixture
def server(store: Store, tmp_path: Path) -> Iterator[ScriptedServer]:
    trees = Trees(tmp_path / ".oprel" / "trees", state_dir=tmp_path / ".oprel" / "state")
    with scripted_server(catalog=Catalog(store, shelves=[trees])) as server:
        yield server


@pytest.fixture
def other(tmp_path: Path) -> Iterator[ScriptedServer]:
    """A server with a store of its own."""
    elsewhere = Store(tmp_path / "elsewhere" / "models", state_dir=tmp_path / "elsewhere" / "state")
    with scripted_server(catalog=Catalog(elsewhere)) as server:
        yield server


def write(folder: Path, text: str, name: str = "Modelfile") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(text)
    return path


def found(server: ScriptedServer, name: str) -> Any:
    model = server.services.catalog.find(name)
    assert model.damage is None
    return model


def test_a_model_is_made_of_files_beside_the_modelfile(
    oprel: Oprel, server: ScriptedServer, store: Store, tmp_path: Path
) -> None:
    folder = tmp_path / "made"
    modelfile = write(
        folder,
        "FROM ./weights.gguf\nADAPTER lora.gguf\nSYSTEM Be brief.\nPARAMETER stop <|a|>\nPARAMETER stop <|b|>\n"
        "PARAMETER num_ctx 512\nMESSAGE user Hi\nMESSAGE assistant Yo\nLICENSE MIT\nPARAMETER mirostat 1\n",
    )
    weights = write_tiny_gguf(folder / "weights.gguf")
    (folder / "lora.gguf").write_bytes(gguf_bytes(ADAPTER))
    done = oprel("create", "mine", "-f", str(modelfile), server=server)
    assert done.code == 0, done.err
    assert "warning: parameter mirostat is deprecated" in done.err
    assert "writing manifest" in done.err and "success" in done.err
    model = found(server, "mine")
    assert model.system == "Be brief."
    assert dict(model.parameters) == {"num_ctx": 512, "stop": ("<|a|>", "<|b|>")}
    assert [(message.role, message.text) for message in model.messages] == [("user", "Hi"), ("assistant", "Yo")]
    assert model.licenses == ("MIT",)
    assert [file.role for file in model.files] == ["weights", "adapter"]
    assert Path(model.weights.path).stat().st_ino == weights.stat().st_ino, "linked, not copied"


def test_files_are_sent_to_a_server_with_another_store(oprel: Oprel, other: ScriptedServer, tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "weights.gguf")
    write(tmp_path, "FROM weights.gguf")
    done = oprel("create", "mine", server=other)
    assert done.code == 0, done.err
    assert found(other, "mine").weights.path.startswith(str(tmp_path / "elsewhere"))


def test_from_a_model_and_from_stdin(oprel: Oprel, server: ScriptedServer, store: Store, tmp_path: Path) -> None:
    store.import_gguf(write_tiny_gguf(tmp_path / "base.gguf"), "base")
    done = oprel("create", "child", "-f", "-", server=server, piped="FROM base\nSYSTEM S")
    assert done.code == 0, done.err
    assert (found(server, "child").system, found(server, "child").parent) == ("S", "base:latest")


def test_a_folder_of_gguf_files_is_taken_with_its_projector(
    oprel: Oprel, server: ScriptedServer, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    write(tmp_path, "FROM ./folder")
    folder.mkdir()
    write_tiny_gguf(folder / "weights.gguf")
    (folder / "mmproj.gguf").write_bytes(gguf_bytes({"general.architecture": "clip"}))
    assert oprel("create", "mine", server=server).code == 0
    assert [file.role for file in found(server, "mine").files] == ["projector", "weights"]


def test_a_folder_of_safetensors_is_imported(oprel: Oprel, server: ScriptedServer, tmp_path: Path) -> None:
    write_folder(tmp_path / "folder")
    write(tmp_path, "FROM ./folder")
    done = oprel("create", "mine", server=server)
    assert done.code == 0, done.err
    assert found(server, "mine").format == "safetensors"
    write(tmp_path, "FROM ./folder\nSYSTEM x\nPARAMETER top_k 3\nMESSAGE user Hi\nLICENSE MIT")
    done = oprel("create", "mine", server=server)
    assert done.code == 0, done.err
    model = found(server, "mine")
    assert (model.system, model.licenses, dict(model.parameters)["top_k"]) == ("x", ("MIT",), 3)
    assert [message.text for message in model.messages] == ["Hi"]
    write(tmp_path, "FROM ./folder\nTEMPLATE x")
    done = oprel("create", "mine", server=server)
    assert done.code == 1
    assert "TEMPLATE can't be honoured for a folder of safetensors" in done.err


def test_home_is_expanded(oprel: Oprel, server: ScriptedServer, tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "weights.gguf")
    assert oprel("create", "m", "-f", str(write(tmp_path / "x", "FROM ~/weights.gguf")), server=server).code == 0


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("FROM ./missing.gguf", "FROM ./missing.gguf: there is no such file or folder"),
        ("FROM /etc/passwd", "'/etc/passwd' isn't a GGUF file"),
        ("FROM ./w.gguf\nADAPTER ./secret", "secret' isn't a GGUF file"),
        ("FROM ./w.gguf\nADAPTER ./missing", "ADAPTER ./missing: there is no such file"),
        ("FROM ./w.gguf\nADAPTER ./adapters", "safetensors can't be used on a GGUF model; convert it with"),
        ("FROM ./adapters", "no safetensors and no GGUF files are in this folder"),
        ("FROM ./w.gguf\nDRAFT ./w.gguf", "DRAFT must not reference the same local path as FROM: ./w.gguf"),
        ("FROM ./w.gguf\nDRAFT ./d.gguf", "draft models are not supported: leave out DRAFT"),
        ("FROM ~nobody-of-this-name/x", "can't be a path"),
        ("FROM x\nPARAMETER nonsense 1", "unknown parameter 'nonsense'"),
        ("FROM x\nREQUIRES soon", "requires must be a valid semver (e.g. 0.14.0)"),
        ("SYSTEM x", "no FROM line"),
        ("FROM x\nBAD y", "(line 2): command must be one of"),
        ("FROM ./w.gguf\nRENDERER qwen3-coder", "renderer 'qwen3-coder' can't be honoured"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    oprel: Oprel, server: ScriptedServer, store: Store, tmp_path: Path, text: str, error: str
) -> None:
    write_tiny_gguf(tmp_path / "w.gguf")
    (tmp_path / "secret").write_text("-----BEGIN PRIVATE KEY-----")
    (tmp_path / "adapters").mkdir()
    write(tmp_path, text)
    done = oprel("create", "mine", server=server)
    assert done.code == 1
    assert error in done.err
    assert "Traceback" not in done.err
    assert store.models_dir.joinpath("manifests").exists() is False


def test_without_a_modelfile(oprel: Oprel, server: ScriptedServer) -> None:
    done = oprel("create", "mine", server=server)
    assert (done.code, done.err) == (1, "oprel: no Modelfile or safetensors files found: name one with -f\n")
    assert "'other' isn't a file" in oprel("create", "mine", "-f", "other", server=server).err


def test_a_quantization_is_asked_for(
    oprel: Oprel, server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    write_tiny_gguf(tmp_path / "w.gguf", {**CHAT_VALUES, "general.file_type": 1})
    write(tmp_path, "FROM ./w.gguf")
    done = oprel("create", "mine", "--quantize", "q8_0", server=server)
    assert done.code == 1
    assert "quantizing needs llama-quantize" in done.err
