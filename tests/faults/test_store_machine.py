"""Anything that is done to a store, in any order, with deaths, damage and other programs in between, against a dict:
no name has another version than it should, nothing refers to what isn't there, no byte is lost."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from support.crashing import Died, DyingDisk, UnsyncedDisk
from support.store_checks import assert_ollamas_shape, assert_valid_store
from support.tiny_gguf import write_tiny_gguf

from oprel.errors import InvalidRequestError, OprelError
from oprel.store import Catalog, ModelName, Store
from oprel.store import store as store_module
from oprel.store.names import DigestPrefix
from oprel.store.verification import verify
from oprel.store.versions import Retention

NAMES = [ModelName.parse(text) for text in ("a", "A:2", "me/b", "hf.co/o/r:q4")]
SALTS = [f"v{number}" for number in range(4)]
COUNT = 2

names, salts = st.sampled_from(NAMES), st.sampled_from(SALTS)
lives = st.none() | st.integers(0, 25)
"""At which step the process dies, if it does."""


class StoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="oprel-machine-"))
        self.files = {salt: write_tiny_gguf(self.folder / f"{salt}.gguf", salt=salt) for salt in SALTS}
        self.digests: dict[str, str] = {}
        for salt, path in self.files.items():
            store = Store(self.folder / salt / "models", state_dir=self.folder / salt / "state", disk=UnsyncedDisk())
            self.digests[salt] = store.import_gguf(path, "x").digest.hex
        self.model: dict[ModelName, str] = {}
        self.is_damaged = False
        self.grace_s = store_module.GRACE_S
        store_module.GRACE_S = -1.0
        self.store = self.opened()

    def teardown(self) -> None:
        store_module.GRACE_S = self.grace_s
        shutil.rmtree(self.folder)

    def opened(self, disk: DyingDisk | None = None) -> Store:
        retention = Retention(count=COUNT)
        return Store(
            self.folder / "models", state_dir=self.folder / "state", disk=disk or UnsyncedDisk(), retention=retention
        )

    def attempt(self, work: Callable[[Store], object], life: int | None, *outcomes: dict[ModelName, str]) -> None:
        """Do it, to the end or up to a death; one of `outcomes`, of which the last is the whole, has come about."""
        kept = self.store.versions.kept() | set(self.model.values())
        try:
            work(self.store if life is None else self.opened(DyingDisk(life)))
        except Died:
            self.store = self.opened()
            self.store.sweep(min_age_s=-1)
            assert self.seen() in outcomes
        else:
            assert self.seen() == outcomes[-1]
        self.model = self.seen()
        assert self.store.versions.kept() <= kept, "a version was kept that no name had"

    def seen(self) -> dict[ModelName, str]:
        return {name: digest for name in NAMES if (digest := self.store.versions.current(name)) is not None}

    @rule(name=names, salt=salts, life=lives)
    def put(self, name: ModelName, salt: str, life: int | None) -> None:
        after = self.model | {name: self.digests[salt]}
        self.attempt(lambda store: store.import_gguf(self.files[salt], name), life, self.model, after)

    @precondition(lambda self: self.model)
    @rule(data=st.data(), destination=names, life=lives)
    def copy(self, data: st.DataObject, destination: ModelName, life: int | None) -> None:
        source = data.draw(st.sampled_from(sorted(self.model, key=str)))
        after = self.model | {destination: self.model[source]}
        self.attempt(lambda store: store.copy(source, destination), life, self.model, after)

    @rule(name=names, life=lives)
    def delete(self, name: ModelName, life: int | None) -> None:
        after = {other: digest for other, digest in self.model.items() if other != name}
        self.attempt(lambda store: store.delete(name), life, self.model, after)

    @rule(name=names, life=lives)
    def roll_back(self, name: ModelName, life: int | None) -> None:
        try:
            version = self.store.versions.choose(name, None)
        except InvalidRequestError:
            return
        after = self.model | {name: version.digest}
        self.attempt(lambda store: store.rollback(name, DigestPrefix(version.digest)), life, self.model, after)

    @rule(life=lives)
    def collect(self, life: int | None) -> None:
        self.attempt(lambda store: store.collect_garbage(), life, self.model, self.model)

    @rule()
    def ollama_prunes(self) -> None:
        """Another program removes what no manifest refers to."""
        needed = set()
        for path in (self.folder / "models" / "manifests").rglob("*"):
            if path.is_file():
                needed |= {digest for digest in self.blobs() if digest in path.read_text()}
        for digest in self.blobs() - needed:
            (self.folder / "models" / "blobs" / f"sha256-{digest}").unlink()

    @precondition(lambda self: self.model and not self.is_damaged)
    @rule(data=st.data())
    def damage_is_found_and_mended(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.model, key=str)))
        salt = next(salt for salt, digest in self.digests.items() if digest == self.model[name])
        catalog = Catalog(self.store)
        weights = Path(catalog.find(str(name)).weights.path)
        whole = weights.read_bytes()
        at = data.draw(st.integers(0, len(whole) - 1))
        weights.unlink()  # the user's file and old versions may be links to it
        weights.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert [finding.path for finding in verify(catalog).harmful] == [weights]
        with pytest.raises(OprelError, match=weights.name):
            catalog.check_files(Catalog(self.store).find(str(name)))
        self.store.import_gguf(self.files[salt], name)
        assert verify(catalog).harmful == ()

    @rule()
    def reopen(self) -> None:
        self.store = self.opened()

    @invariant()
    def the_store_is_valid(self) -> None:
        assert assert_valid_store(self.folder / "models") == len(self.model)
        assert_ollamas_shape(self.folder / "models")
        assert self.seen() == self.model

    @invariant()
    def what_is_kept_can_come_back(self) -> None:
        for name in NAMES:
            kept = [version for version in self.store.versions.of(name) if version.is_kept and not version.is_current]
            for version in kept:
                model = Catalog(self.store).find(f"{name}@sha256:{version.digest}")
                assert model.damage is None
                assert Path(model.weights.path).read_bytes() in {path.read_bytes() for path in self.files.values()}

    def blobs(self) -> set[str]:
        folder = self.folder / "models" / "blobs"
        return {path.name.removeprefix("sha256-") for path in folder.iterdir()} if folder.is_dir() else set()


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(
    max_examples=int(os.environ.get("OPREL_TEST_MACHINE_EXAMPLES", "20")),
    stateful_step_count=15,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
