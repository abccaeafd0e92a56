"""A registry that knows its users by their keys, as Ollama's does: when it is signed for, with which key, and how."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.file_server import FileHandler
from support.model_registry import ModelRegistry, running_registry
from support.registry_places import Place, lines_of
from support.tiny_gguf import write_tiny_gguf

from oprel.config import Settings
from oprel.errors import SourceError, StoreError
from oprel.net.outside import OutsideClient
from oprel.server.compose import key_files, make_catalog, make_puller
from oprel.sources.registry import Login, MachineKey, Reach
from oprel.sources.registry.proof import DeniedError, Proof
from oprel.store import ModelName

WEIGHTS = bytes(range(256)) * 100


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oprel.net.outside.getproxies", dict)


@pytest.fixture
def registry() -> Iterator[ModelRegistry]:
    """Reading needs nothing there, as with Ollama's public models; writing needs a known key."""
    with running_registry() as registry:
        registry.needs_token = registry.is_public = True
        registry.accounts = set()
        yield registry


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return tmp_path / "state/id_ed25519"


@pytest.fixture
def place(tmp_path: Path, key: Path) -> Place:
    return Place(tmp_path, keys=(tmp_path / ".ollama/id_ed25519", key))


def prepared(place: Place, registry: ModelRegistry, folder: Path) -> str:
    name = f"{registry.host}/a/b:c"
    place.store.import_gguf(write_tiny_gguf(folder / "m.gguf"), name)
    return name


def know(registry: ModelRegistry, public: str) -> None:
    """As its user does in the account's settings, with the line that was shown."""
    kind, data = public.split()[:2]
    assert kind == "ssh-ed25519"
    registry.accounts = {data}


def shown(failure: pytest.ExceptionInfo[SourceError]) -> str:
    return "ssh-ed25519 " + failure.value.message.partition("ssh-ed25519 ")[2].partition(";")[0].rstrip(")")


def manifest_of(place: Place, name: str) -> bytes:
    return ModelName.parse(name).manifest_path(place.store.models_dir).read_bytes()


def test_a_key_is_made_shown_and_then_enough(registry: ModelRegistry, place: Place, key: Path, tmp_path: Path) -> None:
    name = prepared(place, registry, tmp_path)
    with pytest.raises(SourceError, match="unauthorized: access denied") as refused:
        place.push(name)
    assert key.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in key.parent.glob("id_ed25519*")] == ["id_ed25519"]
    assert registry.host in refused.value.message
    know(registry, shown(refused))
    assert place.push(name)[-1].status == "success"
    assert registry.server.files["/v2/a/b/manifests/c"] == manifest_of(place, name)
    assert len(registry.nonces) == 1, "one token serves the whole push"
    assert registry.token_requests[-1]["scope"] == ["repository:a/b:pull,push", "repository:c/d:pull"]
    assert registry.token_requests[-1]["service"] == ["models"]


def test_a_key_of_openssh_is_used_as_it_is(registry: ModelRegistry, place: Place, key: Path, tmp_path: Path) -> None:
    program = shutil.which("ssh-keygen")
    if program is None:
        pytest.skip("ssh-keygen is not installed")
    theirs = tmp_path / ".ollama/id_ed25519"
    theirs.parent.mkdir()
    subprocess.run([program, "-q", "-t", "ed25519", "-N", "", "-C", "me@here", "-f", str(theirs)], check=True)
    know(registry, theirs.with_suffix(".pub").read_text())
    assert place.push(prepared(place, registry, tmp_path))[-1].status == "success"
    assert not key.exists()


def test_openssh_reads_the_key_that_was_made(key: Path) -> None:
    program = shutil.which("ssh-keygen")
    if program is None:
        pytest.skip("ssh-keygen is not installed")
    signer = MachineKey(key).signer()
    said = subprocess.run([program, "-y", "-f", str(key)], check=True, capture_output=True, text=True)
    assert said.stdout.split()[:2] == signer.public.split()


def test_what_is_public_needs_no_key(registry: ModelRegistry, place: Place, key: Path) -> None:
    registry.add("a/b:c", [(WEIGHTS, "model")])
    assert place.pull(f"{registry.host}/a/b:c")[-1].status == "success"
    assert registry.token_requests == []
    assert not key.exists()


def test_a_token_for_anybody_comes_before_a_signature(registry: ModelRegistry, place: Place, key: Path) -> None:
    registry.is_public, registry.knows_nobody = False, True
    registry.add("a/b:c", [(WEIGHTS, "model")])
    assert place.pull(f"{registry.host}/a/b:c")[-1].status == "success"
    assert len(registry.token_requests) == 1
    assert registry.nonces == set()
    assert not key.exists()


def test_a_token_for_anybody_that_is_not_enough_is_followed_by_a_signature(
    registry: ModelRegistry, place: Place, key: Path, tmp_path: Path
) -> None:
    registry.is_public, registry.knows_nobody = False, True
    know(registry, MachineKey(key).signer().public)
    assert place.push(prepared(place, registry, tmp_path))[-1].status == "success"
    assert len(registry.nonces) == 1


@pytest.mark.parametrize("knows_nobody", [False, True])
def test_a_private_model_is_pulled_with_the_key(
    registry: ModelRegistry, place: Place, key: Path, knows_nobody: bool
) -> None:
    """Whose token ends between the blobs: the next one is signed for at once, since for nobody there is nothing."""
    registry.is_public = False
    know(registry, MachineKey(key).signer().public)
    registry.add("a/b:c", [(WEIGHTS, "model")])
    registry.knows_nobody, registry.nobody_may_read = knows_nobody, False
    blobs: list[str] = []

    def end_token(handler: FileHandler) -> bool:
        if "/blobs/" in handler.path:
            registry.tokens_given += len(blobs) in (0, 2)
            blobs.append(handler.path)
        return False

    registry.server.specials.insert(0, end_token)
    assert place.pull(f"{registry.host}/a/b:c")[-1].status == "success"
    assert len(registry.nonces) == 3


def test_a_token_that_ends_in_an_upload_is_signed_for_anew(
    registry: ModelRegistry, place: Place, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each token is good for one part: the next needs another, and no part is sent twice to no avail."""
    monkeypatch.setattr("oprel.sources.registry.upload.PART_BYTES", 200)
    know(registry, MachineKey(key).signer().public)
    parts: list[str] = []

    def end_token(handler: FileHandler) -> bool:
        if handler.command == "PATCH" and handler.headers["Authorization"] == f"Bearer token-{registry.tokens_given}":
            parts.append(handler.headers["Content-Range"])
            if len(parts) in (2, 4):
                registry.tokens_given += 1
        return False

    registry.server.specials.insert(0, end_token)
    name = prepared(place, registry, tmp_path)
    assert place.push(name)[-1].status == "success"
    assert registry.server.files["/v2/a/b/manifests/c"] == manifest_of(place, name)
    assert len(registry.nonces) == 3


def test_a_login_that_is_kept_comes_first(registry: ModelRegistry, place: Place, key: Path, tmp_path: Path) -> None:
    registry.accounts, registry.password = None, "s3cr3t"
    place.logins.keep(registry.host, Login("alice", "s3cr3t"))
    assert place.push(prepared(place, registry, tmp_path))[-1].status == "success"
    assert not key.exists()


@pytest.mark.parametrize("realm", ["https://ollama.com/token", "http://127.0.0.1:1/token"])
def test_no_signature_goes_to_another_host(
    registry: ModelRegistry, place: Place, key: Path, tmp_path: Path, realm: str
) -> None:
    registry.realm = realm
    with pytest.raises(SourceError, match="does not match original host"):
        place.push(prepared(place, registry, tmp_path))
    assert not key.exists()


def test_a_signature_stays_with_its_registry(registry: ModelRegistry, place: Place, key: Path, tmp_path: Path) -> None:
    """The token service redirects: nobody else gets what was signed."""
    know(registry, MachineKey(key).signer().public)
    name = prepared(place, registry, tmp_path)
    with running_registry() as other:

        def redirect(handler: FileHandler) -> bool:
            if not handler.path.startswith("/token"):
                return False
            handler.answer(307, b"", {"Location": other.server.origin + handler.path})
            return True

        registry.server.specials.insert(0, redirect)
        with pytest.raises(SourceError):
            place.push(name)
        assert other.server.requests == []


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.write_text("rubbish"),
        lambda path: path.write_bytes(b"\xff" * 100_000),
        lambda path: path.write_text(""),
        lambda path: subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-f", str(path)], check=True),
        lambda path: subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", str(path)], check=True),
    ],
    ids=["rubbish", "too long", "empty", "another kind", "passphrase"],
)
def test_a_key_of_no_use_is_told_and_left_alone(key: Path, make: object) -> None:
    if shutil.which("ssh-keygen") is None:
        pytest.skip("ssh-keygen is not installed")
    key.parent.mkdir()
    make(key)  # type: ignore[operator]
    before = key.read_bytes()
    with pytest.raises(StoreError, match="isn't an ed25519 key in OpenSSH's format without a passphrase"):
        MachineKey(key).signer()
    assert key.read_bytes() == before


def test_two_at_once_make_one_key(key: Path) -> None:
    signed: list[str] = []
    threads = [threading.Thread(target=lambda: signed.append(MachineKey(key).signer().public)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(signed) == 8
    assert len(set(signed)) == 1


def test_without_the_package_it_is_said_what_to_install(key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric.ed25519", None)
    with pytest.raises(StoreError, match="pip install cryptography"):
        MachineKey(key).signer()
    assert not key.exists()


def test_ollamas_key_is_used_where_there_is_one_and_made_only_in_its_own_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    state, ollama = tmp_path / "state", tmp_path / ".ollama"
    apart = Settings(models_dir=tmp_path / "models", state_dir=state)
    assert key_files(apart) == (ollama / "id_ed25519", state / "id_ed25519")
    shared = Settings(models_dir=ollama / "models", state_dir=state)
    assert key_files(shared) == (ollama / "id_ed25519",)


def test_nothing_is_signed_for_a_token_service_elsewhere(key: Path) -> None:
    """Docker's is on another host, and is known; it knows no keys."""
    challenge = {"www-authenticate": 'Bearer realm="https://auth.docker.io/token",service="registry.docker.io"'}

    async def refused() -> None:
        async with OutsideClient() as client:
            reach = Reach(key=MachineKey(key))
            proof = Proof(client, "https://registry-1.docker.io/v2/", "docker.io", reach)
            await proof.meet(challenge, is_refused=True)

    with pytest.raises(DeniedError, match=r"oprel login docker\.io"):
        asyncio.run(refused())
    assert not key.exists()


def test_a_server_signs_by_its_settings(
    registry: ModelRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = Settings(
        models_dir=tmp_path / "models", state_dir=tmp_path / "state", trees_dir=tmp_path / "trees", extra_models_dirs=()
    )
    catalog = make_catalog(settings)
    name = f"{registry.host}/a/b:c"
    catalog.store.import_gguf(write_tiny_gguf(tmp_path / "m.gguf"), name)
    with pytest.raises(SourceError, match="add this machine's key"):
        asyncio.run(lines_of(make_puller(settings, catalog).push(name, insecure=True)))
    assert (tmp_path / "state/id_ed25519").is_file()
    assert not (tmp_path / ".ollama").exists()


def test_ollamas_own_registry_is_told_where_its_accounts_are(key: Path) -> None:
    async def refused() -> SourceError:
        async with OutsideClient() as client:
            proof = Proof(client, "https://registry.ollama.ai/v2/", "registry.ollama.ai", Reach(key=MachineKey(key)))
            proof._signer = MachineKey(key).signer()
            return proof.denied()

    message = asyncio.run(refused()).message
    assert message.startswith("unauthorized: access denied (add this machine's key to your account at ")
    assert "https://ollama.com/settings/keys: ssh-ed25519 AAAA" in message
