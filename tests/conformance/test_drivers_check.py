"""`oprel drivers check`: what holds is told, what doesn't is told, and no driver keeps it from ending."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.servers import RealServer, clean_environment, run_oprel
from support.throwaway import DRIVER, make_package

# A whole check takes half a minute of two cores, and several on a busy machine.
_LIMIT_S = 420

pytestmark = pytest.mark.timeout(_LIMIT_S)

Check = Callable[..., subprocess.CompletedProcess[str]]

# The throw-away driver, good enough for a whole check: it keeps limits, refuses what it must, and ends.
GOOD = (
    DRIVER
    + """
from oprel.drivers import ContextLengthError, EngineStartError, UnsupportedError

def words(request):
    if hasattr(request, "prompt"):
        return request.prompt.split()
    return [word for message in request.messages for word in message.text.split()]

class E(E):
    def __init__(self, plan):
        super().__init__(plan)
        self.capabilities = Capabilities(
            chat=True, complete=True, sampling=frozenset({"max_tokens", "stop", "temperature"}),
            context_tokens=plan.context_tokens,
        )
    async def write(self, request):
        if getattr(request, "tools", ()) or request.format or request.logprobs is not None:
            raise UnsupportedError("not here", capability="tools", driver="odd")
        if getattr(request, "thinking", None) or getattr(request, "suffix", None):
            raise UnsupportedError("not here", capability="thinking", driver="odd")
        if any(len(message.content) > 1 for message in getattr(request, "messages", ())):
            raise UnsupportedError("not here", capability="vision", driver="odd")
        if len(words(request)) > self.plan.context_tokens:
            raise ContextLengthError("too long")
        limit = request.sampling.max_tokens or 40
        text, stops = "", request.sampling.stop
        for number in range(min(limit, 400)):
            await asyncio.sleep(0.002)
            if self.dead.done():
                raise EngineFailedError("it ended", driver="odd")
            text += f"{number} "
            found = [text.index(stop) for stop in stops if stop in text]
            if found:
                yield (Text(text[:min(found)]), Finish(("stop",), Usage(len(words(request)) or 1, number + 1)))
                return
            if not stops:
                yield (Text(f"{number} "),)
        rest = (Text(text),) if stops else ()
        yield (*rest, Finish(("length",), Usage(len(words(request)) or 1, limit)))
    def chat(self, request): return self.write(request)
    def complete(self, request): return self.write(request)
    async def embed(self, request): raise UnsupportedError("not here", capability="embed", driver="odd")
    async def health(self): return Health("dead" if self.dead.done() else "ready")

class D(D):
    engine = E
    can = Capabilities(chat=True, complete=True, sampling=frozenset({"max_tokens", "stop", "temperature"}))
    def supports(self, model):
        return Support(model.format == "gguf" and not model.is_embedding, "GGUF files that make text")
    def plan(self, model, options, hardware):
        import msgspec
        if model.format != "gguf":
            raise UnsupportedError("no", capability="format", driver="odd")
        plan = super().plan(model, options, hardware)
        context = min(plan.context_tokens, model.context_tokens)
        return msgspec.structs.replace(plan, slots=options.slots or 2, context_tokens=context)
    async def start(self, plan):
        if plan.model == "damaged:latest":
            raise EngineStartError("it is cut off", driver="odd", cause="model")
        return E(plan)
"""
)


@pytest.fixture
def check(tmp_path: Path, real_models_dir: Path) -> Check:
    """`check(source, *flags)` checks the driver `odd`, made of `source`."""

    def run(source: str | None, *flags: str, name: str = "odd", **more: str) -> subprocess.CompletedProcess[str]:
        site = tmp_path / "site"
        site.mkdir()
        if source is not None:
            make_package(site, "odd", source)
        settings = {
            "OPREL_MODELS": str(real_models_dir),
            "OPREL_STATE_DIR": str(tmp_path / "state"),
            "PYTHONPATH": str(site),
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
        }
        environ = clean_environment(tmp_path, **{**settings, **more})
        return run_oprel("drivers", "check", name, *flags, environ=environ, limit_s=_LIMIT_S - 20, cwd=tmp_path)

    return run


def told(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def failed(report: Any) -> set[str]:
    return {rule["text"] for rule in report["rules"] if rule["outcome"] == "fails"}


def test_llama_cpp_keeps_the_contract_and_the_documents(check: Check) -> None:
    done = check(None, "--json", name="llama_cpp")
    report = told(done)
    assert failed(report) == set()
    assert (report["passed"], report["problems"], done.returncode) == (True, [], 0)
    assert set(report["models"]) == {"smollm2:135m", "all-minilm:latest"}
    holding = [rule["text"] for rule in report["rules"] if rule["outcome"] == "holds"]
    assert {"OpenAI: chat streamed", "Ollama: generate", "death is noticed"} <= set(holding)
    assert len(holding) > 55


def test_openai_keeps_the_contract_before_another_oprel(check: Check, real_server: RealServer, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f'[remote.near]\nurl = "{real_server.url}/v1"\nslots = 4\n')
    done = check(None, "--json", name="openai", OPREL_CONFIG=str(config), OPREL_MODELS=str(tmp_path / "none"))
    report = told(done)
    assert failed(report) == set()
    assert (report["passed"], report["problems"], done.returncode) == (True, [], 0)
    assert set(report["models"]) == {"smollm2:135m", "all-minilm:latest"}


def test_a_good_driver_of_a_third_party_passes_line_by_line(check: Check) -> None:
    done = check(GOOD)
    assert "FAIL" not in done.stdout, done.stdout
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "ok    it says what it is" in lines
    assert "ok    OpenAI: chat streamed" in lines
    assert "-     death is noticed: the engine has no process of its own" in lines
    assert lines[-1].startswith("odd with smollm2:135m: ")


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ("\nasync def odd(self, request): yield (Text('a'),)\nE.chat = odd", "an answer is well formed (chat)"),
        (
            "\nend = E.stop\nasync def odd(self):\n    assert not self.dead.done()\n    await end(self)\nE.stop = odd",
            "stopping leaves nothing and may be repeated",
        ),
        ("\ndef odd(self, hardware): raise OSError\nD.availability = odd", None),
        ("\nD.supports = lambda self, model: Support(True, 'all')", "support is decided from metadata alone"),
    ],
    ids=["no finish", "stops once", "availability", "supports everything"],
)  # fmt: skip
def test_what_is_broken_is_told_by_its_rule(check: Check, source: str, rule: str | None) -> None:
    done = check(GOOD + source, "--json", "--model", "smollm2:135m")
    assert done.returncode == 1
    if rule is None:
        assert "its availability() raised OSError" in done.stderr
    else:
        assert rule in failed(told(done))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("\nimport os\nasync def odd(self, plan): os.abort()\nD.start = odd", "by signal 6, in: "),
        ("\nimport time\nasync def odd(self, plan): time.sleep(900)\nD.start = odd", "didn't end within 8 s, in: "),
    ],
    ids=["crashes", "hangs"],
)
def test_a_driver_that_ends_or_stops_the_check_is_told(check: Check, source: str, said: str) -> None:
    done = check(GOOD + source, "--json", "--time-limit", "8")
    assert done.returncode == 1
    (problem,) = told(done)["problems"]
    assert said in problem


@pytest.mark.parametrize(
    ("source", "flags", "name", "said"),
    [
        (GOOD, (), "even", "There is no driver 'even': installed are"),
        (GOOD + "\nD.contract = 2", (), "odd", "keeps contract 2 and this Oprel wants 1: update Oprel"),
        ("raise ImportError('no libodd')", (), "odd", "no libodd"),
        (GOOD, ("--model", "all-minilm"), "odd", "can't run 'all-minilm:latest': GGUF files that make text"),
        (GOOD, ("--model", "absent"), "odd", "absent"),
        (GOOD + "\nD.supports = lambda *_: Support(False, 'nothing suits it')", (), "odd", "nothing suits it"),
    ],
    ids=["unknown", "newer contract", "import", "unsuitable model", "absent model", "no model"],
)
def test_what_can_not_be_checked_is_one_sentence(
    check: Check, source: str, flags: tuple[str, ...], name: str, said: str
) -> None:
    done = check(source, *flags, name=name)
    assert done.returncode == 1
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_without_the_extra_it_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from oprel.config import Settings
    from oprel.errors import ConfigError
    from oprel.testing import check as checks

    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"extra 'testing', and pytest, jsonschema, yaml .*pip install 'pytest"):
        checks.check_driver("odd", Settings())
