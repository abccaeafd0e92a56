"""What a person types, what is answered on stdout, what is said on stderr, and the exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.servers import ScriptedPuller, ScriptedServer

from oprel.config import Settings
from oprel.errors import SourceError
from oprel.schema import ChatRequest
from oprel.sources import PullProgress
from oprel.testing import Script, scripted_model

Start = Callable[..., ScriptedServer]
Oprel = Callable[..., Any]


def echo(request: Any) -> tuple[str, ...]:
    """Answers with the whole conversation, so that a test sees what was sent."""
    if not isinstance(request, ChatRequest):
        return ("?",)
    return tuple(f"[{message.role}:{message.text}]" for message in request.messages)


@pytest.fixture
def server(scripted_server: Start) -> ScriptedServer:
    """Its model says what it was asked."""
    return scripted_server(Script(text=echo))


class TestRun:
    def test_the_answer_is_all_on_stdout(self, oprel: Oprel, server: ScriptedServer) -> None:
        ended = oprel("run", "scripted", "Why", "is the sky blue?", server=server)
        assert (ended.code, ended.out, ended.err) == (0, "[user:Why is the sky blue?]\n", "")

    @pytest.mark.parametrize("flag", ["--stream", "--no-stream"])
    def test_with_and_without_streaming(self, oprel: Oprel, server: ScriptedServer, flag: str) -> None:
        assert oprel("run", flag, "scripted", "hi", server=server).out == "[user:hi]\n"

    def test_system(self, oprel: Oprel, server: ScriptedServer) -> None:
        ended = oprel("run", "scripted", "hi", "--system", "be brief", server=server)
        assert ended.out == "[system:be brief][user:hi]\n"

    def test_what_is_piped_is_the_prompt(self, oprel: Oprel, server: ScriptedServer) -> None:
        assert oprel("run", "scripted", server=server, piped="from a pipe\n").out == "[user:from a pipe]\n"

    def test_or_is_appended_to_it(self, oprel: Oprel, server: ScriptedServer) -> None:
        ended = oprel("run", "scripted", "Sum up:", server=server, piped="a text\n")
        assert ended.out == "[user:Sum up:\n\na text]\n"

    def test_nothing_at_all_is_wrong_usage(self, oprel: Oprel, server: ScriptedServer) -> None:
        ended = oprel("run", "scripted", server=server, piped="")
        assert ended.code == 2
        assert ended.err == "oprel: there is nothing to ask: give it as an argument, or pipe it in\n"

    @pytest.mark.parametrize(
        ("flags", "max_tokens", "temperature"),
        [([], 512, 0.7), (["--max-tokens", "5"], 5, 0.7), (["--temperature", "0"], 512, 0.0)],
    )
    def test_numbers(
        self, oprel: Oprel, server: ScriptedServer, flags: list[str], max_tokens: int, temperature: float
    ) -> None:
        oprel("run", "scripted", "hi", *flags, server=server)
        sampling = server.driver.engines[0].calls[0].request.sampling  # type: ignore[union-attr]
        assert (sampling.max_tokens, sampling.temperature) == (max_tokens, temperature)

    def test_the_models_own_numbers_count_where_none_are_given(self, oprel: Oprel, scripted_server: Start) -> None:
        own = scripted_model(parameters=(("temperature", 0.1), ("num_predict", 33)))
        server = scripted_server(models=(own,))
        oprel("run", "scripted", "hi", server=server)
        sampling = server.driver.engines[0].calls[0].request.sampling  # type: ignore[union-attr]
        assert (sampling.max_tokens, sampling.temperature) == (33, 0.1)

    def test_a_model_that_is_not_there_is_pulled(self, oprel: Oprel, scripted_server: Start) -> None:
        puller = ScriptedPuller([PullProgress("pulling manifest")], error=SourceError("no such package"))
        server = scripted_server(puller=puller)
        ended = oprel("run", "absent", "hi", server=server)
        assert puller.pulled == ["absent"]
        assert ended.code == 1
        assert ended.err.splitlines() == ["pulling manifest", "oprel: no such package"]

    def test_a_model_that_can_not_chat(self, oprel: Oprel, server: ScriptedServer) -> None:
        ended = oprel("run", "embedder", "hi", server=server)
        assert (ended.code, ended.out) == (1, "\n") or (ended.code, ended.out) == (1, "")
        assert "does not support chat" in ended.err
        assert "Traceback" not in ended.err

    def test_a_failure_in_the_middle(self, oprel: Oprel, scripted_server: Start) -> None:
        server = scripted_server(Script(text=("a", "b", "c"), dies_at=2))
        ended = oprel("run", "scripted", "hi", server=server)
        assert ended.code == 1
        assert ended.out.startswith("ab")
        assert ended.err.startswith("oprel: ")

    def test_verbose_shows_where_it_failed(self, oprel: Oprel, server: ScriptedServer) -> None:
        assert "Traceback" in oprel("--verbose", "run", "embedder", "hi", server=server).err
        assert "Traceback" in oprel("run", "embedder", "hi", "--verbose", server=server).err


class TestTalk:
    def test_remembers_what_was_said(self, oprel: Oprel, server: ScriptedServer) -> None:
        ended = oprel("run", "scripted", server=server, typed="one\ntwo\n/bye\n")
        assert ended.code == 0
        assert "[user:one]\n" in ended.out
        assert "[user:one][assistant:[user:one]][user:two]" in ended.out

    def test_reset_forgets(self, oprel: Oprel, server: ScriptedServer) -> None:
        ended = oprel("run", "scripted", server=server, typed="one\n/reset\ntwo\n/exit\n")
        assert "[assistant" not in ended.out

    def test_help_and_unknown_commands(self, oprel: Oprel, server: ScriptedServer) -> None:
        ended = oprel("run", "scripted", server=server, typed="/?\n/what\n/quit\n")
        assert "/reset" in ended.out
        assert "/what is no command" in ended.err
        assert server.driver.engines == []

    def test_several_lines(self, oprel: Oprel, server: ScriptedServer) -> None:
        ended = oprel("run", "scripted", server=server, typed='"""a\nb\nc"""\n')
        assert "[user:a\nb\nc]" in ended.out

    def test_the_end_of_input_ends_it(self, oprel: Oprel, server: ScriptedServer) -> None:
        assert oprel("run", "scripted", server=server, typed="one\n").code == 0

    def test_a_failed_answer_does_not_end_it(self, oprel: Oprel, scripted_server: Start) -> None:
        server = scripted_server(Script(text=("a", "b"), dies_at=1))
        ended = oprel("run", "scripted", server=server, typed="one\ntwo\n/bye\n")
        assert ended.code == 0
        assert ended.err.count("oprel: ") == 2


class TestGenerateAndEmbed:
    def test_generate(self, oprel: Oprel, server: ScriptedServer) -> None:
        assert oprel("generate", "scripted", "hi", server=server).out == "[user:hi]\n"

    def test_embed_is_one_array_a_line(self, oprel: Oprel, server: ScriptedServer) -> None:
        ended = oprel("embed", "embedder", "a", "b", server=server)
        vectors = [json.loads(line) for line in ended.out.splitlines()]
        assert [len(vector) for vector in vectors] == [8, 8]

    def test_embed_each_line_of_a_pipe(self, oprel: Oprel, server: ScriptedServer) -> None:
        assert len(oprel("embed", "embedder", server=server, piped="a\n\nb\nc\n").out.splitlines()) == 3

    def test_embed_as_json(self, oprel: Oprel, server: ScriptedServer) -> None:
        answer = json.loads(oprel("embed", "embedder", "a", "--json", "--dimensions", "4", server=server).out)
        assert len(answer["embeddings"][0]) == 4
        assert answer["prompt_eval_count"] > 0


class TestModels:
    def test_list(self, oprel: Oprel, server: ScriptedServer) -> None:
        lines = oprel("list", server=server).out.splitlines()
        assert lines[0].split() == ["NAME", "ID", "SIZE", "MODIFIED"]
        assert any(line.startswith("scripted:latest") and "105 MB" in line for line in lines)

    def test_list_as_json(self, oprel: Oprel, server: ScriptedServer) -> None:
        assert {model["name"] for model in json.loads(oprel("list", "--json", server=server).out)} == {
            "scripted:latest",
            "embedder:latest",
        }

    def test_list_without_a_server_reads_the_store(self, oprel: Oprel, tmp_path: Path) -> None:
        ended = oprel("list", "--port", "1")
        assert (ended.code, ended.out.split()) == (0, ["NAME", "ID", "SIZE", "MODIFIED"])
        assert json.loads(oprel("list", "--json", "--port", "1").out) == []

    @pytest.mark.parametrize("command", ["ps", "models"])
    def test_ps(self, oprel: Oprel, server: ScriptedServer, command: str) -> None:
        oprel("run", "scripted", "hi", server=server)
        lines = oprel(command, server=server).out.splitlines()
        assert lines[0].split() == ["NAME", "ENGINE", "SIZE", "PROCESSOR", "CONTEXT", "SLOTS", "QUEUE", "UNTIL"]
        assert lines[1].startswith("scripted:latest")
        for part in ("scripted", "100% CPU", "4096", "0/4", "in 4 minutes"):
            assert part in lines[1]
        (told,) = json.loads(oprel(command, "--json", server=server).out)
        assert told["oprel"]["slots"] == 4

    def test_stop_a_model(self, oprel: Oprel, server: ScriptedServer) -> None:
        oprel("run", "scripted", "hi", server=server)
        assert oprel("stop", "scripted", server=server).code == 0
        assert server.driver.alive == []
        assert server.is_running

    def test_stop_a_model_that_is_not_there(self, oprel: Oprel, server: ScriptedServer) -> None:
        ended = oprel("stop", "absent", server=server)
        assert ended.code == 1
        assert "'absent:latest' not found" in ended.err

    def test_show(self, oprel: Oprel, server: ScriptedServer) -> None:
        out = oprel("show", "scripted", server=server).out
        assert "135M" in out
        assert "Q8_0" in out
        assert "template      Jinja, from its file" in out
        assert oprel("show", "scripted", "--modelfile", server=server).out.startswith("# Modelfile")
        assert json.loads(oprel("show", "scripted", "--json", server=server).out)["details"]["format"] == "gguf"

    def test_pull_tells_its_progress(self, oprel: Oprel, scripted_server: Start) -> None:
        puller = ScriptedPuller(
            [
                PullProgress("pulling manifest"),
                PullProgress("pulling 0123456789ab", "sha256:" + "0" * 64, 100_000_000, 0),
                PullProgress("pulling 0123456789ab", "sha256:" + "0" * 64, 100_000_000, 100_000_000),
                PullProgress("success"),
            ]
        )
        ended = oprel("pull", "thing", server=scripted_server(puller=puller))
        assert ended.code == 0
        assert ended.out == ""
        lines = ended.err.splitlines()
        assert lines[0] == "pulling manifest"
        assert "100%  100 MB of 100 MB" in lines[2]
        assert lines[-1] == "success"
        assert "\r" not in ended.err

    def test_quiet_says_nothing(self, oprel: Oprel, scripted_server: Start) -> None:
        server = scripted_server(puller=ScriptedPuller([PullProgress("success")]))
        ended = oprel("--quiet", "pull", "thing", server=server)
        assert (ended.code, ended.out, ended.err) == (0, "", "")

    def test_a_file_that_is_not_there(self, oprel: Oprel, server: ScriptedServer) -> None:
        ended = oprel("pull", "./absent.gguf", server=server)
        assert ended.code == 1
        assert "absent.gguf" in ended.err


class TestMachine:
    def test_info(self, oprel: Oprel) -> None:
        ended = oprel("info")
        assert ended.code == 0
        for part in ("CPU", "RAM", "llama_cpp", "store"):
            assert part in ended.out

    def test_info_as_json(self, oprel: Oprel) -> None:
        told = json.loads(oprel("info", "--json").out)
        assert told["hardware"]["cores"] >= 1
        assert [driver["name"] for driver in told["drivers"]]

    def test_drivers(self, oprel: Oprel) -> None:
        assert oprel("drivers").out.splitlines()[0].split() == ["DRIVER", "STATE", "FROM", "WHY"]
        assert any(driver["name"] == "llama_cpp" for driver in json.loads(oprel("drivers", "--json").out))

    @pytest.mark.parametrize(
        ("name", "fix"),
        [
            ("exllamav2", "exllama_python"),
            ("exllamav3", "exllama_python"),
            ("openai", "[remote.NAME]"),
            ("vllm", "--vllm-python"),
        ],
    )
    def test_a_driver_that_can_not_be_used_says_what_would_fix_it(
        self, oprel: Oprel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, fix: str
    ) -> None:
        """None of them has to be chosen to be told of."""
        monkeypatch.setenv("PATH", str(tmp_path))
        (told,) = (driver for driver in json.loads(oprel("drivers", "--json").out) if driver["name"] == name)
        assert (told["usable"], told["loaded"]) == (False, True)
        assert fix in told["reason"]
        assert "chat" in told["capabilities"]
        (line,) = (line for line in oprel("drivers").out.splitlines() if line.startswith(f"{name} ") and fix in line)
        assert "not usable" in line

    def test_plan_of_a_model_that_is_not_there(self, oprel: Oprel) -> None:
        ended = oprel("plan", "absent")
        assert ended.code == 1
        assert "oprel pull absent" in ended.err


class TestUsage:
    @pytest.mark.parametrize("arguments", [["--version"], ["version"]])
    def test_version(self, oprel: Oprel, arguments: list[str]) -> None:
        ended = oprel(*arguments)
        assert (ended.code, ended.out) == (0, "oprel 1.0.0\n")

    @pytest.mark.parametrize(
        "arguments", [[], ["nothing"], ["run"], ["run", "m", "--nothing"], ["serve", "--port", "x"], ["stop", "a", "b"]]
    )
    def test_wrong_usage_is_2(self, oprel: Oprel, arguments: list[str]) -> None:
        assert oprel(*arguments).code == 2

    @pytest.mark.parametrize("command", ["serve", "run", "pull", "list", "ps", "stop", "show", "info", "plan", "rm"])
    def test_every_command_has_help(self, oprel: Oprel, command: str) -> None:
        ended = oprel(command, "--help")
        assert ended.code == 0
        assert "usage: oprel" in ended.out

    def test_no_server_is_one_sentence(self, oprel: Oprel) -> None:
        ended = oprel("ps", "--port", "1")
        assert ended.code == 1
        assert ended.err == "oprel: no server answers at http://127.0.0.1:1: start one with `oprel serve`\n"

    def test_a_key_that_is_needed(self, oprel: Oprel, scripted_server: Start, monkeypatch: pytest.MonkeyPatch) -> None:
        server = scripted_server(settings=Settings(api_keys=("secret",)))
        assert "needs a key" in oprel("ps", server=server).err
        monkeypatch.setenv("OPREL_API_KEY", "secret")
        assert oprel("ps", server=server).code == 0

    def test_interrupted_is_130(self, oprel: Oprel, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("oprel.sdk.client.Client.ps", interrupt)
        assert oprel("ps", server=server).code == 130

    def test_stop_without_a_server(self, oprel: Oprel) -> None:
        ended = oprel("stop", "--port", "1")
        assert ended.code == 0
        assert "nothing to stop" in ended.err

    def test_stop_the_server(self, oprel: Oprel, server: ScriptedServer) -> None:
        ended = oprel("stop", server=server)
        assert (ended.code, ended.err) == (0, f"the server at {server.url} is stopped\n")
        server.wait_end()

    def test_a_key_on_the_command_line_is_warned_of(self, oprel: Oprel, monkeypatch: pytest.MonkeyPatch) -> None:
        served: list[Settings] = []
        monkeypatch.setattr("oprel.server.running.serve", lambda settings, say, observe: served.append(settings))
        ended = oprel("serve", "--api-key", "secret", "--model", "a", "--model", "b", "--context", "2048")
        assert "every user of this machine" in ended.err
        assert served[0].api_keys == ("secret",)
        assert served[0].preload == ("a", "b")
        assert served[0].context == 2048
