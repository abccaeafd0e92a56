"""Where a setting comes from, and what is said when it can't be used."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from oprel.config import Address, Settings, load_settings, parse_address, parse_duration
from oprel.errors import ConfigError


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def load(home: Path, *, flags: dict[str, object] | None = None, cwd: Path | None = None, **environ: str) -> Settings:
    return load_settings(flags or {}, environ={"HOME": str(home), **environ}, cwd=cwd or home)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


class TestPrecedence:
    """Flags, OPREL_*, OLLAMA_*, the project's file, the user's file, defaults: each beats what follows it."""

    LEVELS = ("flag", "oprel", "ollama", "project", "user")

    @pytest.mark.parametrize("strongest", range(len(LEVELS) + 1))
    def test_the_strongest_that_is_given_counts(self, home: Path, tmp_path: Path, strongest: int) -> None:
        given = self.LEVELS[strongest:]
        value = {"flag": 1, "oprel": 2, "ollama": 3, "project": 4, "user": 5}
        project = tmp_path / "project"
        project.mkdir()
        flags: dict[str, object] = {"max_queue": "1"} if "flag" in given else {"max_queue": None}
        environ = {}
        if "oprel" in given:
            environ["OPREL_MAX_QUEUE"] = "2"
        if "ollama" in given:
            environ["OLLAMA_MAX_QUEUE"] = "3"
        if "project" in given:
            write(project / "oprel.toml", "max_queue = 4")
        if "user" in given:
            write(home / ".config/oprel/config.toml", "max_queue = 5")
        settings = load(home, flags=flags, cwd=project, **environ)
        assert settings.max_queue == (value[given[0]] if given else 512)

    def test_an_empty_variable_is_not_given(self, home: Path) -> None:
        assert load(home, OPREL_MAX_QUEUE="", OLLAMA_MAX_QUEUE="7").max_queue == 7

    def test_a_file_may_be_named(self, home: Path, tmp_path: Path) -> None:
        named = write(tmp_path / "elsewhere.toml", "parallel = 3")
        write(home / ".config/oprel/config.toml", "parallel = 5")
        assert load(home, OPREL_CONFIG=str(named)).parallel == 3

    def test_xdg_config_home_moves_the_users_file(self, home: Path, tmp_path: Path) -> None:
        write(tmp_path / "xdg/oprel/config.toml", "parallel = 6")
        settings = load(home, XDG_CONFIG_HOME=str(tmp_path / "xdg"))
        assert settings.parallel == 6
        assert settings.aliases_file == tmp_path / "xdg/oprel/aliases.toml"

    @pytest.mark.parametrize(
        ("variable", "text", "field", "value"),
        [
            ("OPREL_NUM_PARALLEL", "3", "parallel", 3),
            ("OPREL_PARALLEL", "3", "parallel", 3),
            ("OLLAMA_NUM_PARALLEL", "2", "parallel", 2),
            ("OLLAMA_NUM_PARALLEL", "0", "parallel", None),
            ("OPREL_CONTEXT_LENGTH", "8192", "context", 8192),
            ("OLLAMA_CONTEXT_LENGTH", "4096", "context", 4096),
            ("OLLAMA_CONTEXT_LENGTH", "0", "context", None),
            ("OPREL_MAX_LOADED_MODELS", "2", "max_loaded", 2),
            ("OLLAMA_MAX_LOADED_MODELS", "0", "max_loaded", None),
            ("OLLAMA_KEEP_ALIVE", "10m", "keep_alive", 600.0),
            ("OLLAMA_KEEP_ALIVE", "-1", "keep_alive", math.inf),
            ("OLLAMA_KEEP_ALIVE", "0", "keep_alive", 0.0),
            ("OPREL_KEEP_ALIVE", "1h30m", "keep_alive", 5400.0),
            ("OPREL_DRIVER", "vllm", "driver", "vllm"),
            ("OPREL_DRIVERS", "one, two", "drivers", ("one", "two")),
            ("OPREL_LLAMA_SERVER", "/opt/llama-server", "llama_server", Path("/opt/llama-server")),
            ("OPREL_API_KEY", "secret", "api_keys", ("secret",)),
            ("OLLAMA_ORIGINS", "https://a.example,https://b.example", "origins", ("https://a.example", "https://b.example")),
            ("OPREL_ORIGINS", "*", "origins", ("*",)),
            ("OLLAMA_KV_CACHE_TYPE", "Q8_0", "kv_cache_type", "q8_0"),
            ("OPREL_MEMORY_LIMIT", "6GiB", "memory_limit_bytes", 6 * 1024**3),
            ("OPREL_MEMORY_LIMIT", "500MB", "memory_limit_bytes", 500_000_000),
            ("OPREL_MAX_BODY", "1MiB", "max_body_bytes", 1024**2),
            ("OPREL_ALLOW_UNAUTHENTICATED", "yes", "allow_unauthenticated", True),
            ("OPREL_GPU_LAYERS", "0", "gpu_layers", 0),
            ("OPREL_MODEL", "a,b:1", "preload", ("a", "b:1")),
        ],
    )  # fmt: skip
    def test_variables(self, home: Path, variable: str, text: str, field: str, value: object) -> None:
        assert getattr(load(home, **{variable: text}), field) == value

    def test_every_setting_but_the_fixed_ones_can_be_set(self) -> None:
        """A field that no flag, variable or file can reach is a field that nobody can set."""
        from oprel.config.table import SETTINGS

        reachable = {setting.field for setting in SETTINGS.values()} | {"host", "port", "scheme"}
        assert set(Settings.model_fields) == reachable


class TestAddress:
    @pytest.mark.parametrize(
        ("text", "address"),
        [
            ("1.2.3.4", Address("1.2.3.4", None)),
            ("1.2.3.4:8080", Address("1.2.3.4", 8080)),
            ("example", Address("example", None)),
            (":1234", Address("", 1234)),
            ("::1", Address("::1", None)),
            ("[::1]", Address("::1", None)),
            ("[::1]:80", Address("::1", 80)),
            ("http://example", Address("example", 80)),
            ("http://example:11434", Address("example", 11434)),
            ("https://example/", Address("example", 443, "https")),
            ("https://example:8443/ollama/", Address("example", 8443, "https", "/ollama")),
            (' "1.2.3.4:5" ', Address("1.2.3.4", 5)),
            ("HTTP://x:1", Address("x", 1)),
        ],
    )  # fmt: skip
    def test_forms(self, text: str, address: Address) -> None:
        assert parse_address(text) == address

    @pytest.mark.parametrize(
        "text", ["ftp://x", "x:70000", "x:http", "x:-1", "[::1", "a b", "user@host", "x\\y", "http://a#@b", "x:", "x?y"]
    )
    def test_what_is_none(self, text: str) -> None:
        with pytest.raises(ValueError):
            parse_address(text)

    @pytest.mark.parametrize(
        ("flags", "environ", "file", "host", "port"),
        [
            ({}, {}, "", "127.0.0.1", 11434),
            ({}, {"OPREL_HOST": "0.0.0.0:9000"}, "", "0.0.0.0", 9000),  # noqa: S104
            ({}, {"OPREL_HOST": "http://10.0.0.1"}, "", "10.0.0.1", 80),
            ({}, {"OLLAMA_HOST": "10.0.0.2:7000"}, "", "10.0.0.2", 7000),
            ({}, {"OLLAMA_HOST": "10.0.0.2:7000", "OPREL_PORT": "7001"}, "", "10.0.0.2", 7001),
            ({}, {"OPREL_HOST": "10.0.0.1", "OLLAMA_HOST": "10.0.0.2:7000"}, "", "10.0.0.1", 11434),
            ({"host": "1.1.1.1"}, {"OPREL_HOST": "10.0.0.1:9000"}, "", "1.1.1.1", 11434),
            ({"host": "1.1.1.1"}, {"OPREL_PORT": "9000"}, "", "1.1.1.1", 9000),
            ({"host": "1.1.1.1:1"}, {"OPREL_PORT": "9000"}, "", "1.1.1.1", 1),
            ({"host": "1.1.1.1:1", "port": "2"}, {}, "", "1.1.1.1", 2),
            ({"port": "2"}, {"OPREL_HOST": "10.0.0.1:9000"}, "", "10.0.0.1", 2),
            ({"host": "1.1.1.1"}, {}, "port = 8000", "1.1.1.1", 8000),
            ({}, {}, "host = '10.0.0.3:8001'", "10.0.0.3", 8001),
        ],
    )  # fmt: skip
    def test_host_and_port_from_everywhere(
        self, home: Path, flags: dict[str, object], environ: dict[str, str], file: str, host: str, port: int
    ) -> None:
        write(home / ".config/oprel/config.toml", file)
        settings = load(home, flags=flags, **environ)
        assert (settings.host, settings.port) == (host, port)

    @pytest.mark.parametrize(
        ("host", "url"),
        [
            ("0.0.0.0", "http://127.0.0.1:11434"),  # noqa: S104
            ("[::]", "http://[::1]:11434"),
            ("::1", "http://[::1]:11434"),
            (":99", "http://127.0.0.1:99"),
            ("https://models.example", "https://models.example:443"),
        ],
    )
    def test_clients_turn_an_unspecified_address_into_loopback(self, home: Path, host: str, url: str) -> None:
        assert load(home, OLLAMA_HOST=host).base_url == url


class TestDuration:
    @pytest.mark.parametrize(
        ("value", "seconds"),
        [("5m", 300), ("1h30m", 5400), ("1.5h", 5400), ("300ms", 0.3), ("0", 0), ("90", 90), (2.5, 2.5),
         ("-1", math.inf), ("-1m", math.inf), (-1, math.inf), ("1us", 1e-6), ("1µs", 1e-6)],
    )  # fmt: skip
    def test_go_durations_and_seconds(self, value: object, seconds: float) -> None:
        assert parse_duration(value) == pytest.approx(seconds)

    @pytest.mark.parametrize("value", ["", "5 m", "m", "5x", "1h-3m", "nan", "--1m", "five", float("nan")])
    def test_what_is_none(self, value: object) -> None:
        with pytest.raises(ValueError):
            parse_duration(value)


class TestStore:
    """--models-dir, OPREL_MODELS, OLLAMA_MODELS, ~/.oprel/models; Ollama's own stores are read besides."""

    @pytest.mark.parametrize(
        ("flags", "environ", "expected"),
        [
            ({}, {}, "HOME/.oprel/models"),
            ({}, {"OLLAMA_MODELS": "/o"}, "/o"),
            ({}, {"OLLAMA_MODELS": "/o", "OPREL_MODELS": "~/mine"}, "HOME/mine"),
            ({"models_dir": "rel"}, {"OPREL_MODELS": "/p"}, "CWD/rel"),
        ],
    )
    def test_which(
        self, home: Path, tmp_path: Path, flags: dict[str, object], environ: dict[str, str], expected: str
    ) -> None:
        settings = load(home, flags=flags, cwd=tmp_path / "cwd", **environ)
        wanted = expected.replace("HOME", str(home)).replace("CWD", str(tmp_path / "cwd"))
        assert settings.models_dir == Path(wanted)

    def test_an_ollama_store_on_this_machine_is_read_as_well(self, home: Path) -> None:
        (home / ".ollama/models/manifests").mkdir(parents=True)
        assert home / ".ollama/models" in load(home).extra_models_dirs

    def test_but_not_twice(self, home: Path) -> None:
        (home / ".ollama/models/manifests").mkdir(parents=True)
        settings = load(home, OLLAMA_MODELS=str(home / ".ollama/models"))
        assert home / ".ollama/models" not in settings.extra_models_dirs

    def test_a_folder_that_is_no_store_is_not_read(self, home: Path) -> None:
        (home / ".ollama/models").mkdir(parents=True)
        assert home / ".ollama/models" not in load(home).extra_models_dirs


class TestKeys:
    def test_a_file_holds_one_a_line(self, home: Path, tmp_path: Path) -> None:
        file = write(tmp_path / "keys", "# for the team\none\n\n two \n")
        assert load(home, flags={"api_key_file": str(file)}).api_keys == ("one", "two")

    def test_a_key_and_a_file_add_up(self, home: Path, tmp_path: Path) -> None:
        file = write(tmp_path / "keys", "two")
        assert load(home, flags={"api_key": "one", "api_key_file": str(file)}).api_keys == ("one", "two")

    def test_a_stronger_place_replaces_a_weaker_one(self, home: Path) -> None:
        assert load(home, flags={"api_key": "one"}, OPREL_API_KEY="two").api_keys == ("one",)

    def test_a_file_that_is_not_there(self, home: Path) -> None:
        with pytest.raises(ConfigError, match=r"api_key_file: /nowhere/keys can't be read"):
            load(home, flags={"api_key_file": "/nowhere/keys"})

    def test_an_empty_file(self, home: Path, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="holds no key"):
            load(home, flags={"api_key_file": str(write(tmp_path / "keys", "# none\n"))})

    def test_a_bad_key_is_not_quoted(self, home: Path) -> None:
        with pytest.raises(ConfigError) as caught:
            load(home, OPREL_API_KEY="se cret")
        assert "cret" not in str(caught.value)
        assert "OPREL_API_KEY" in str(caught.value)


class TestErrors:
    """Each names the setting, where it was read, the value, and what may stand there."""

    @pytest.mark.parametrize(
        ("variable", "text", "parts"),
        [
            ("OPREL_MAX_QUEUE", "many", ["max_queue", "'many'", "OPREL_MAX_QUEUE", "a whole number, 1 or more"]),
            ("OPREL_MAX_QUEUE", "0", ["max_queue", "1 or more"]),
            ("OLLAMA_NUM_PARALLEL", "-2", ["parallel", "OLLAMA_NUM_PARALLEL"]),
            ("OPREL_PORT", "99999", ["port", "OPREL_PORT", "0 to 65535"]),
            ("OPREL_HOST", "ftp://x", ["host", "OPREL_HOST", "host:port or URL"]),
            ("OPREL_KEEP_ALIVE", "soon", ["keep_alive", "5m or 1h30m"]),
            ("OPREL_KV_CACHE_TYPE", "q2", ["kv_cache_type", "f16, q8_0 or q4_0"]),
            ("OPREL_ALLOW_UNAUTHENTICATED", "perhaps", ["allow_unauthenticated", "true or false"]),
            ("OPREL_MEMORY_LIMIT", "lots", ["memory_limit", "6GiB"]),
            ("OPREL_CONTEXT_LENGTH", "3", ["context", "4 or more"]),
            ("OPREL_CONFIG", "/nowhere/oprel.toml", ["OPREL_CONFIG", "/nowhere/oprel.toml"]),
        ],
    )
    def test_a_variable(self, home: Path, variable: str, text: str, parts: list[str]) -> None:
        with pytest.raises(ConfigError) as caught:
            load(home, **{variable: text})
        for part in parts:
            assert part in str(caught.value)

    def test_a_flag(self, home: Path) -> None:
        with pytest.raises(ConfigError, match=r"from --max-queue can't be used"):
            load(home, flags={"max_queue": "x"})

    def test_a_file_of_the_wrong_type(self, home: Path) -> None:
        path = write(home / ".config/oprel/config.toml", "max_queue = true")
        with pytest.raises(ConfigError, match=f"max_queue: True from {path}"):
            load(home)

    def test_a_table_of_drivers(self, home: Path) -> None:
        path = write(home / ".config/oprel/config.toml", '[model_drivers]\n"llama3:70b" = "vllm"')
        assert load(home).model_drivers == {"llama3:70b": "vllm"}
        write(path, '[model_drivers]\n"llama3:70b" = 3')
        with pytest.raises(ConfigError, match=r"model_drivers: .* can't be used: give a table \[model_drivers\]"):
            load(home)

    def test_a_file_that_is_no_toml(self, home: Path) -> None:
        write(home / ".config/oprel/config.toml", "max_queue = = 3")
        with pytest.raises(ConfigError, match=r"config\.toml can't be read as TOML"):
            load(home)

    def test_an_unknown_setting_with_what_it_may_have_meant(self, home: Path) -> None:
        write(home / ".config/oprel/config.toml", "paralel = 3")
        with pytest.raises(ConfigError, match=r"'paralel' in .* is no setting: did you mean 'parallel'"):
            load(home)

    @pytest.mark.parametrize(
        "line",
        ["llama_server = './evil'", "drivers = ['evil']", "allow_unauthenticated = true", "origins = ['*']",
         "api_key = 'x'", "state_dir = '/tmp/x'", "allowed_hosts = ['evil.example']", "host = 'evil.example'",
         "host = '0.0.0.0'", "host = 'http://127.0.0.1@evil.example'"],
    )  # fmt: skip
    def test_a_projects_file_can_not_run_programs_or_open_the_server(
        self, home: Path, tmp_path: Path, line: str
    ) -> None:
        write(tmp_path / "project/oprel.toml", line)
        with pytest.raises(ConfigError, match="can't be set by a project"):
            load(home, cwd=tmp_path / "project")


def test_a_projects_file_may_say_where_on_this_machine(tmp_path: Path, home: Path) -> None:
    write(tmp_path / "project/oprel.toml", "host = '127.0.0.1:9999'\nmodels_dir = 'models'")
    settings = load(home, cwd=tmp_path / "project")
    assert settings.port == 9999
    assert settings.models_dir == tmp_path / "project/models"


def test_settings_can_not_be_changed() -> None:
    with pytest.raises(ValueError):
        Settings().port = 1  # type: ignore[misc]
