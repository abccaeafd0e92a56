"""Remote models in the catalog: what the settings name, what servers list, and what comes before what."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.certificates import make_certificate
from support.remote import remote_of
from support.tiny_gguf import write_tiny_gguf

from oprel.config import Remote
from oprel.errors import ConfigError, ModelNotFoundError
from oprel.schema import RemoteModel
from oprel.store import Aliases, Catalog, ModelName, Store
from oprel.store.aliases import Alias
from oprel.store.remote_listing import ListedModel, read_listing
from oprel.store.remote_shelf import RemoteShelf, ask_listing

KEY = "sk-canary-4f1d2c3b5a697887"


class Asked:
    """Stands for the asking; `answers` are lists of models or errors, the last one for ever."""

    def __init__(self, *answers: Sequence[ListedModel] | Exception) -> None:
        self.answers = list(answers)
        self.count = 0
        self.now = 0.0

    def __call__(self, remote: Remote) -> Sequence[ListedModel]:
        self.count += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def shelf(self, *remotes: Remote) -> RemoteShelf:
        return RemoteShelf(remotes or (remote_of("http://a", models=None),), ask=self, clock=lambda: self.now)


class TestNamed:
    def test_a_table_gives_local_names(self) -> None:
        remote = remote_of("http://a", models={"big": "vendor/big-1", "team/x:q8": "y"}, context=4096)
        shelf = RemoteShelf((remote,))
        model = shelf.find("BIG:latest")
        assert model is not None
        assert (model.name, model.format, model.remote) == (
            "big:latest",
            "remote",
            RemoteModel("cluster", "vendor/big-1"),
        )
        assert (model.driver, model.context_tokens, model.files, model.size_bytes) == ("openai", 4096, (), 0)
        assert model.modified_at == remote.configured_at
        assert [model.name for model in shelf.list()] == ["big:latest", "team/x:q8"]
        assert shelf.find("vendor/big-1") is None

    @pytest.mark.parametrize(
        ("identifier", "name"),
        [
            ("gpt-4o-mini", "gpt-4o-mini:latest"),
            ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B:latest"),
            ("qwen2.5:7b", "qwen2.5:7b"),
            ("accounts/fireworks/models/llama-v3", "llama-v3:latest"),
            ("/models/a model.gguf", "a-model.gguf:latest"),
            ("models/gemini@001", "gemini-001:latest"),
        ],
    )
    def test_a_list_is_named_as_there(self, identifier: str, name: str) -> None:
        """What can't be a name here keeps its last part."""
        (model,) = RemoteShelf((remote_of("http://a", models=[identifier]),)).list()
        assert model.name == name
        assert model.remote is not None and model.remote.id == identifier

    def test_a_name_that_is_none(self) -> None:
        with pytest.raises(ConfigError, match=r"remote\.cluster\.models: '\.\./x'"):
            RemoteShelf((remote_of("http://a", models={"../x": "y"}),))

    def test_capabilities_in_the_words_of_listings(self) -> None:
        stated = ["chat", "embed", "infill", "json_schema", "vision"]
        (model,) = RemoteShelf((remote_of("http://a", capabilities=stated),)).list()
        assert model.capabilities == {"completion", "embedding", "insert", "vision"}
        (model,) = RemoteShelf((remote_of("http://a"),)).list()
        assert model.capabilities == frozenset(), "not known"

    def test_digests_tell_places_apart(self) -> None:
        """The same place is the same, in whatever order; another remote, URL or id is another."""

        def digest(*urls: str, name: str = "a", identifier: str = "m") -> str:
            return RemoteShelf((remote_of(*urls, name=name, models=[identifier]),)).list()[0].digest

        assert digest("http://a", "http://b") == digest("http://b", "http://a/v1")
        others = {
            digest("http://a"),
            digest("http://b"),
            digest("http://a", name="b"),
            digest("http://a", identifier="n"),
        }
        assert len(others) == 4

    def test_the_first_remote_has_a_name(self) -> None:
        shelf = RemoteShelf((remote_of("http://a", name="a"), remote_of("http://b", name="b")))
        (model,) = shelf.list()
        assert model.remote is not None and model.remote.remote == "a"
        assert shelf.find("big") == model


class TestTold:
    def test_asked_once_and_again_when_something_is_missing(self) -> None:
        asked = Asked([ListedModel("m", created=5.0, context_tokens=99)], [ListedModel("m"), ListedModel("n")])
        shelf = asked.shelf()
        assert asked.count == 0, "nobody is asked before it is needed"
        model = shelf.find("m")
        assert model is not None
        assert (model.modified_at, model.context_tokens) == (5.0, 99)
        assert shelf.find("n") is None
        asked.now += 31
        assert shelf.find("m") == model
        assert asked.count == 1, "what is known is taken as it is"
        assert shelf.find("n") is not None
        assert asked.count == 2

    def test_many_unknown_names_are_one_question(self) -> None:
        asked = Asked([ListedModel("m")])
        shelf = asked.shelf()
        assert [shelf.find(f"x{number}") for number in range(50)] == [None] * 50
        assert asked.count == 1

    def test_what_was_listed_stands_while_it_cannot_be_asked(self) -> None:
        asked = Asked([ListedModel("m")], ValueError("it is away"), [ListedModel("n")])
        shelf = asked.shelf()
        assert [model.name for model in shelf.list()] == ["m:latest"]
        asked.now += 31
        assert [model.name for model in shelf.list()] == ["m:latest"]
        assert shelf.problems() == ("the remote 'cluster' can't be asked what it has: it is away",)
        shelf.list()
        assert asked.count == 2, "not at once again"
        asked.now += 6
        assert [model.name for model in shelf.list()] == ["n:latest"]
        assert shelf.problems() == ()

    def test_one_that_is_configured_is_never_asked(self) -> None:
        asked = Asked(ValueError("never"))
        shelf = asked.shelf(remote_of("http://a"))
        assert shelf.list() and shelf.find("nothing") is None
        assert asked.count == 0

    def test_several_threads_ask_once(self) -> None:
        asked = Asked([ListedModel("m")])
        shelf = asked.shelf()
        threads = [threading.Thread(target=shelf.list) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert asked.count == 1


class TestCatalog:
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        store = Store(tmp_path / "models", state_dir=tmp_path / "state")
        store.import_gguf(write_tiny_gguf(tmp_path / "x.gguf"), "mine:latest")
        return store

    def catalog(self, store: Store, *names: str) -> Catalog:
        shelf = RemoteShelf((remote_of("http://a", models={name: name for name in names}),))
        name = ModelName.parse("short:latest")
        alias = Alias(name=name, source=ModelName.parse("mine:latest"))
        return Catalog(store, aliases=Aliases({name: alias}), shelves=(shelf,))

    def test_an_installed_model_beats_a_remote_one(self, store: Store) -> None:
        catalog = self.catalog(store, "mine", "theirs")
        assert catalog.find("mine").format == "gguf"
        assert catalog.find("theirs").format == "remote"
        assert sorted((model.name, model.format) for model in catalog.list()) == [
            ("mine:latest", "gguf"),
            ("theirs:latest", "remote"),
        ]

    def test_a_remote_model_beats_an_alias(self, store: Store) -> None:
        catalog = self.catalog(store, "short")
        assert catalog.find("short").format == "remote"
        installed = next(model for model in catalog.list() if model.format == "gguf")
        assert installed.aliases == ()
        assert self.catalog(store, "other").find("short").format == "gguf"

    def test_a_remote_that_is_down_is_an_excuse(self, store: Store) -> None:
        shelf = Asked(ValueError("it is away")).shelf()
        with pytest.raises(ModelNotFoundError, match="the remote 'cluster' can't be asked what it has: it is away"):
            Catalog(store, shelves=(shelf,)).find("nothing")


class TestListing:
    def test_what_servers_say(self) -> None:
        """vLLM's, llama-server's, a router's and a bare list."""
        rows = [
            {"id": "a", "created": 1700000000, "owned_by": "vllm", "max_model_len": 8192},
            {"id": "b", "owned_by": "llamacpp", "meta": {"n_ctx": 1024, "n_ctx_train": 8192}},
            {"id": "c", "context_length": 200000, "capabilities": ["completion", "tools", "telepathy", 5]},
            {"id": "a", "created": True},
        ]
        found = {entry.id: entry for entry in read_listing(json.dumps({"object": "list", "data": rows}).encode())}
        assert (found["b"].owner, found["b"].context_tokens) == ("llamacpp", 1024)
        assert (found["c"].context_tokens, found["c"].capabilities) == (200000, {"completion", "tools"})
        assert [entry.id for entry in read_listing(b'[{"id":"x"}]')] == ["x"]

    def test_another_oprel_tells_what_its_models_can(self) -> None:
        told = {"driver": "llama_cpp", "capabilities": ["chat", "complete", "infill", "x", 7], "context_tokens": 512}
        (entry,) = read_listing(json.dumps({"data": [{"id": "x", "oprel": told}]}).encode())
        assert (entry.capabilities, entry.context_tokens) == ({"completion", "insert"}, 512)

    @pytest.mark.parametrize("told", [None, [], "chat", {"capabilities": 7}, {"capabilities": None}])
    def test_what_an_oprel_would_not_tell_says_nothing(self, told: object) -> None:
        (entry,) = read_listing(json.dumps({"data": [{"id": "x", "oprel": told}]}).encode())
        assert (entry.capabilities, entry.context_tokens) == (frozenset(), None)

    @pytest.mark.parametrize(
        "row", [5, None, {}, {"id": 5}, {"id": ""}, {"id": "x\ny"}, {"id": " x"}, {"id": "x" * 501}, {"id": None}]
    )
    def test_rows_that_cannot_be_used_are_left_out(self, row: object) -> None:
        body = json.dumps({"data": [row, {"id": "good", "created": "yesterday", "owned_by": 5}]}).encode()
        assert read_listing(body) == (ListedModel("good"),)

    @pytest.mark.parametrize("body", [b"", b"<html>", b"5", b'{"data":5}', b"{}", b"\xff", b"[" * 100_000])
    def test_what_is_no_listing(self, body: bytes) -> None:
        with pytest.raises(ValueError, match="it "):
            read_listing(body)

    @given(st.recursive(st.none() | st.booleans() | st.floats() | st.text() | st.integers(), st.lists) | st.just(0))
    def test_garbage_never_surprises(self, value: object) -> None:
        try:
            read_listing(json.dumps({"data": value}).encode())
        except ValueError as error:
            assert "it " in str(error)


class _Server(BaseHTTPRequestHandler):
    answer: tuple[int, bytes] = (200, b"{}")
    seen: list[str]

    def do_GET(self) -> None:
        type(self).seen.append(f"{self.path} {self.headers.get('Authorization')}")
        status, body = type(self).answer
        self.send_response(status)
        if 300 <= status < 400:
            self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class TestAsking:
    @pytest.fixture
    def server(self) -> Iterator[tuple[str, type[_Server]]]:
        handler = type("Handler", (_Server,), {"seen": []})
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            yield f"http://127.0.0.1:{server.server_address[1]}", handler
            server.shutdown()
            thread.join()

    def test_a_list_with_the_key(self, server: tuple[str, type[_Server]], monkeypatch: pytest.MonkeyPatch) -> None:
        url, handler = server
        handler.answer = (200, b'{"data":[{"id":"m"}]}')
        monkeypatch.setenv("CANARY", KEY)
        remote = remote_of("http://127.0.0.1:9", f"{url}/base", models=None, key_env="CANARY")
        assert [entry.id for entry in ask_listing(remote)] == ["m"], "the second replica, since the first is gone"
        assert handler.seen == [f"/base/models Bearer {KEY}"]

    @pytest.mark.parametrize(
        ("answer", "says"),
        [
            ((401, b"no"), "it answers 401 to /models"),
            ((302, b""), "it answers 302 to /models"),
            ((200, b"<html>"), "its list of models can't be used: it isn't JSON"),
            ((200, b" " * (5 << 20)), "longer than 4 MiB"),
        ],
    )
    def test_what_cannot_be_used(self, server: tuple[str, type[_Server]], answer: tuple[int, bytes], says: str) -> None:
        url, handler = server
        handler.answer = answer
        with pytest.raises(ValueError, match=says):
            ask_listing(remote_of(url, models=None))
        assert len(handler.seen) == 1, "nothing is followed"

    def test_nobody_there(self) -> None:
        with pytest.raises(ValueError, match="no connection"):
            ask_listing(remote_of("http://127.0.0.1:9", models=None))

    def test_no_key(self) -> None:
        with pytest.raises(ConfigError, match="is missing"):
            ask_listing(remote_of("http://127.0.0.1:9", models=None, key_env="NOBODY_SET_THIS"))

    def test_a_file_of_certificates_that_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(OSError, match="No such file"):
            ask_listing(remote_of("https://127.0.0.1:9", models=None, ca_file=str(tmp_path / "none.pem")))

    def test_a_certificate_that_nobody_vouches_for(self, tmp_path: Path) -> None:
        certificate = make_certificate(tmp_path)
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Server,), {"seen": []}))
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        server.socket = certificate.server_context().wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            with pytest.raises(ValueError, match="its certificate isn't trusted"):
                ask_listing(remote_of(f"https://localhost:{server.server_address[1]}", models=None))
        finally:
            server.shutdown()
            thread.join()
            server.server_close()
