"""The [remote.NAME] tables: what they may say, where they may stand, and that no key is where it doesn't belong."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import pytest

from oprel.config import Remote, Settings, load_settings
from oprel.config.remotes import CAPABILITIES, SERVERS
from oprel.drivers.openai.servers import SERVERS as ROWS
from oprel.errors import ConfigError
from oprel.schema import Capabilities

KEY = "sk-canary-4f1d2c3b5a697887"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home/.config/oprel").mkdir(parents=True)
    (tmp_path / "project").mkdir()
    return tmp_path / "home"


def load(home: Path, user: str = "", project: str = "", **flags: object) -> Settings:
    (home / ".config/oprel/config.toml").write_text(user)
    (home.parent / "project/oprel.toml").write_text(project)
    return load_settings(flags, environ={"HOME": str(home)}, cwd=home.parent / "project")


def remote(home: Path, text: str) -> Remote:
    (found,) = load(home, f"[remote.x]\n{text}").remotes
    return found


def test_all_that_can_be_said(home: Path) -> None:
    found = remote(
        home,
        """
        urls = ["http://one:8000", "https://two/openai/v1/", "http://one:8000/v1"]
        models = { big = "vendor/big-1", "team/small:q8" = "small" }
        key_file = "keys/x"
        context = 8192
        capabilities = ["chat", "tools"]
        ca_file = "~/ca.pem"
        timeout = "2m"
        slots = 8
        server = "vllm"
        """,
    )
    folder = home / ".config/oprel"
    assert found == Remote(
        name="x",
        urls=("http://one:8000/v1", "https://two/openai/v1"),
        models=(("big", "vendor/big-1"), ("team/small:q8", "small")),
        key_file=folder / "keys/x",
        context_tokens=8192,
        capabilities=frozenset({"chat", "tools"}),
        ca_file=home / "ca.pem",
        timeout_s=120.0,
        slots=8,
        server="vllm",
        configured_at=(folder / "config.toml").stat().st_mtime,
    )


def test_little_needs_to_be_said(home: Path) -> None:
    found = remote(home, 'url = "https://host"')
    assert (found.urls, found.models, found.verify, found.slots) == (("https://host/v1",), None, True, 32)
    assert (found.key_env, found.key_file, found.key_place, found.read_key()) == (None, None, None, None)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "remote.x in .* needs either url or urls"),
        ('url = "http://a"\nurls = ["http://b"]', "needs either url or urls"),
        ('url = "ftp://a"', "remote.x.url: .* no http or https URL"),
        ('url = "a:8000"', "remote.x.url: .*base URL"),
        ('url = "http://"', "remote.x.url"),
        ('url = "http://a:0"', "remote.x.url"),
        ('url = "http://a:99999"', "remote.x.url"),
        ('url = "http://a/b c"', "remote.x.url"),
        ('url = "http://a\\r\\nX: 1/"', "remote.x.url"),
        ('url = "http://a/v1?key=1"', "query"),
        ("url = 5", "remote.x.url"),
        ("urls = []", "remote.x.urls: .* a list of base URLs"),
        ('url = "http://a"\nmodels = []', "remote.x.models"),
        ('url = "http://a"\nmodels = "m"', "remote.x.models: 'm' .* a list of the remote's ids"),
        ('url = "http://a"\nmodels = { a = 5 }', "remote.x.models"),
        ('url = "http://a"\nslots = 0', "remote.x.slots: 0 .* 1 to 4096"),
        ('url = "http://a"\nslots = true', "remote.x.slots"),
        ('url = "http://a"\ncontext = "8k"', "remote.x.context: '8k'"),
        ('url = "http://a"\ntimeout = "soon"', "remote.x.timeout: 'soon' .* a duration"),
        ('url = "http://a"\ntimeout = -1', "remote.x.timeout"),
        ('url = "http://a"\nverify = "no"', "remote.x.verify: 'no' .* true or false"),
        ('url = "http://a"\ncapabilities = ["fly"]', r"remote.x.capabilities: \['fly'\] .* a list out of chat"),
        ('url = "http://a"\nserver = "best"', "remote.x.server: 'best' .* auto, openai"),
        ('url = "http://a"\nmodles = ["m"]', "'remote.x.modles' in .* did you mean 'models'"),
        ('url = "http://a"\nkey_env = "A"\nkey_file = "b"', "has key_env and key_file"),
        ('url = "https://a"\nverify = false\nca_file = "c"', "has ca_file and verify = false"),
    ],
)
def test_what_cannot_be_used_is_named(home: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        remote(home, text)
    assert "config.toml" in str(caught.value)


@pytest.mark.parametrize("text", ["remote = 5", "[remote]\nx = 5", '[remote."a b"]\nurl = "http://a"'])
def test_what_is_no_table(home: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="remote"):
        load(home, text)


@pytest.mark.parametrize(
    "text",
    [
        f'url = "https://{KEY}@host/v1"',
        f'url = "https://user:{KEY}@host/v1"',
        f'url = "http://a"\nkey_env = "{KEY}"',
        f'url = "http://a"\nkey = "{KEY}"',
        f'url = "http://a"\napi_key = "{KEY}"',
    ],
)
def test_a_key_in_the_wrong_place_is_not_repeated(home: Path, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        remote(home, text)
    assert KEY not in str(caught.value) + repr(caught.value.__cause__) + repr(caught.value.__context__)


class TestKeys:
    def test_from_the_environment(self) -> None:
        found = Remote("x", ("http://a/v1",), key_env="MY_KEY")
        assert found.read_key({"MY_KEY": f" {KEY}\n"}) == KEY
        assert KEY not in repr(found)

    def test_from_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "key").write_text(f"\n {KEY} \nanother line\n")
        assert Remote("x", ("http://a/v1",), key_file=tmp_path / "key").read_key() == KEY

    @pytest.mark.parametrize("environ", [{}, {"MY_KEY": ""}, {"MY_KEY": "two words"}, {"MY_KEY": "naïve"}])
    def test_missing(self, environ: dict[str, str]) -> None:
        with pytest.raises(
            ConfigError, match="the key of remote 'x' is missing: the environment variable MY_KEY"
        ) as at:
            Remote("x", ("http://a/v1",), key_env="MY_KEY").read_key(environ)
        assert not any(value in str(at.value) for value in environ.values() if value)

    @pytest.mark.parametrize("content", [None, b"", b"\n\n", b"\xff\xfe", b"two words"])
    def test_a_file_without_one(self, tmp_path: Path, content: bytes | None) -> None:
        path = tmp_path / "key"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"the key of remote 'x' is missing: the file .*/key "):
            Remote("x", ("http://a/v1",), key_file=path).read_key()

    def test_a_folder_is_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="can't be read"):
            Remote("x", ("http://a/v1",), key_file=tmp_path).read_key()


class TestPlaces:
    def test_files_add_up(self, home: Path) -> None:
        found = load(home, '[remote.a]\nurl = "http://a"', '[remote.b]\nurl = "http://localhost:1"').remotes
        assert {one.name for one in found} == {"a", "b"}

    def test_the_stronger_place_has_a_name_whole(self, home: Path) -> None:
        """A key of the user's never goes to an address of a project's."""
        user = '[remote.a]\nurl = "https://a"\nkey_env = "SECRET"'
        (found,) = load(home, user, '[remote.a]\nurl = "http://localhost:1"').remotes
        assert (found.urls, found.key_env) == (("http://localhost:1/v1",), None)

    @pytest.mark.parametrize(
        "line", ['key_env = "HOME"', 'key_file = "/etc/passwd"', "verify = false", 'ca_file = "evil.pem"']
    )
    def test_a_project_names_no_secrets(self, home: Path, line: str) -> None:
        with pytest.raises(ConfigError, match="can't be set by a project"):
            load(home, project=f'[remote.a]\nurl = "http://localhost:1"\n{line}')

    def test_a_project_names_no_other_machine(self, home: Path) -> None:
        """It would get this user's prompts."""
        with pytest.raises(ConfigError, match="can only name this machine"):
            load(home, project='[remote.a]\nurl = "https://elsewhere.test"')

    def test_programs_may_give_them(self, home: Path) -> None:
        table: dict[str, Any] = {"a": {"url": "http://h", "timeout": 5}}
        assert load(home, remote=table).remotes[0].timeout_s == 5.0


def test_the_words_for_capabilities_are_those_of_the_schema() -> None:
    fields = {field.name for field in msgspec.structs.fields(Capabilities) if field.type is bool}
    assert set(CAPABILITIES) | {"rerank", "lora", "tokenize", "prefill"} == fields


def test_the_kinds_of_servers_are_those_that_the_driver_knows() -> None:
    assert set(SERVERS) == {"auto", *ROWS} - {"openai.com"}


def test_timeouts_are_finite(home: Path) -> None:
    assert math.isfinite(remote(home, 'url = "http://a"\ntimeout = "1h"').timeout_s or math.inf)
