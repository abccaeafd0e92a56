"""Third parties' drivers that do what they must not: each is caught and named, and the server goes on."""

from __future__ import annotations

import asyncio
import importlib
import itertools
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.servers import descendants, is_alive, wait_until
from support.throwaway import DRIVER, make_package

from oprel.config import Settings
from oprel.drivers import DriverOptions
from oprel.drivers import registry as registries
from oprel.drivers.checked import driver as checked_driver
from oprel.drivers.checked import engine as checked_engine
from oprel.drivers.registry import Registry
from oprel.schema import Availability, Hardware, Model, Support
from oprel.testing import ScriptedDriver, scripted_model
from oprel.testing.catalog import ScriptedCatalog
from oprel.testing.live import LiveServer, live_server

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
LIMIT_S = 30
IMPORT_S = 3.0
NUMBERS = itertools.count()

Serve = Callable[..., LiveServer]


class Healthy(ScriptedDriver):
    """Runs what the odd one isn't asked for: the rest of the server must not suffer."""

    name = "healthy"

    def supports(self, model: Model) -> Support:
        return Support(model.format == "scripted", "scripts")

    def availability(self, hardware: Hardware) -> Availability:
        return Availability(True, "always")


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """`serve(source)` makes a package of DRIVER and `source` and serves `tiny` by it, beside a healthy driver."""
    # Hardly anybody waits as long as a test for a driver that hangs.
    monkeypatch.setattr(checked_engine, "_STOP_S", 0.3)
    monkeypatch.setattr("oprel.drivers.calls.GRACE_S", 0.3)
    monkeypatch.setattr(registries, "_IMPORT_S", IMPORT_S)
    monkeypatch.setattr(registries, "_checked", quick_limits)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with ExitStack() as stack:

        def start(source: str, *, whole: bool = False, stall_s: float = 1.0, **settings: Any) -> LiveServer:
            package = f"oprel-test-odd-{next(NUMBERS)}"  # a name of its own: one that hangs keeps its import's lock
            site = make_package(tmp_path / "site", "odd", source if whole else DRIVER + source, package=package)
            monkeypatch.syspath_prepend(str(site))
            importlib.invalidate_caches()
            options = DriverOptions(run_dir=str(tmp_path / "run"), stall_timeout_s=stall_s)
            registry = Registry(options, wanted=("odd",))
            registry.register("healthy", Healthy())
            well = scripted_model("well:latest", format="scripted")
            catalog: Any = ScriptedCatalog(scripted_model("tiny:latest"), well)
            fields = {"driver": "auto", "drain_timeout": 0.0, **settings}
            return stack.enter_context(
                live_server(catalog=catalog, registry=only(registry, "odd", "healthy"), settings=Settings(**fields))
            )

        yield start


def quick_limits(inner: Any) -> checked_driver.CheckedDriver:
    return checked_driver.CheckedDriver(
        inner, limits=checked_driver.Limits(quick_s=1.5, plan_s=1.5, probe_s=1.5, stop_s=0.3)
    )


def only(registry: Registry, *names: str) -> Registry:
    """Without the engines that this machine has."""
    installed = registry._installed()
    registry._entries = {name: entry for name, entry in installed.items() if name in names}
    return registry


def asked(server: LiveServer, body: dict[str, Any] | None = None) -> tuple[int, str]:
    answer = httpx.post(f"{server.openai_url}/chat/completions", json=body or CHAT, timeout=LIMIT_S)
    return answer.status_code, answer.json().get("error", {}).get("message", "")


def goes_on(server: LiveServer) -> None:
    """A model of another driver is served, and listings answer."""
    assert asked(server, {**CHAT, "model": "well"})[0] == 200
    assert httpx.get(f"{server.openai_url}/models", timeout=LIMIT_S).status_code == 200
    assert httpx.get(f"{server.url}/api/ps", timeout=LIMIT_S).status_code == 200
    assert httpx.post(f"{server.url}/api/show", json={"model": "tiny"}, timeout=LIMIT_S).status_code == 200


def test_the_driver_is_a_good_one_as_long_as_nothing_is_broken(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    server = serve("")
    answer = httpx.post(f"{server.openai_url}/chat/completions", json=CHAT).json()
    assert answer["choices"][0]["message"]["content"] == "Hello there"
    assert "broke the driver contract" not in caplog.text
    goes_on(server)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("raise ImportError('no libodd')", "no libodd"),
        ("import sys\nsys.exit(3)", "SystemExit: 3"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("import time\ntime.sleep(60)", "didn't return within 3 s"),
        (DRIVER + "\nD.contract = 2", "contract 2 and this Oprel wants 1: update Oprel"),
        (DRIVER + "\nD.contract = 0", "contract 0 and this Oprel wants 1: update the driver"),
        (DRIVER + "\nD.name = 'even'", "calls itself 'even'"),
        (DRIVER + "\nclass D(Driver):\n    name = 'odd'", "abstract"),
        (DRIVER + "\nclass D(D):\n    def __init__(self, options): raise OSError('no disk')", "no disk"),
        (DRIVER + "\nclass D(D):\n    def __init__(self, options): import time; time.sleep(60)", "didn't return"),
    ],
    ids=[
        "raises", "exits", "interrupts", "hangs", "newer contract", "older contract", "name", "abstract",
        "constructor raises", "constructor hangs",
    ],
)  # fmt: skip
def test_a_driver_that_can_not_even_be_made(serve: Serve, source: str, said: str) -> None:
    server = serve(source, whole=True)
    status, error = asked(server)
    assert status == 400
    assert "odd" in error
    assert said in error
    shown = httpx.post(f"{server.url}/api/show", json={"model": "tiny"}).json()["oprel"]
    assert "driver" not in shown
    assert said in shown["others"]["odd"]
    goes_on(server)


QUICK = {
    "raises": "raise ZeroDivisionError('oh')",
    "exits": "import sys; sys.exit(1)",
    "rubbish": "return 'yes'",
    "hangs": "import time; time.sleep(60)",
}


@pytest.mark.parametrize("how", sorted(QUICK))
@pytest.mark.parametrize("method", ["availability", "supports", "plan", "probe", "capabilities"])
def test_what_must_answer_at_once_does_what_it_likes(serve: Serve, method: str, how: str) -> None:
    server = serve(f"\ndef odd(self, *args): {QUICK[how]}\nD.{method} = odd\n")
    began = time.monotonic()
    status, error = asked(server)
    assert time.monotonic() - began < 10
    if method in ("probe", "capabilities") and how != "hangs":
        assert status == 200, "what isn't needed for an answer doesn't prevent one"
    elif method != "capabilities":
        assert status in (400, 500)
        assert "odd" in error
        assert f"its {method}()" in error
    goes_on(server)


def test_a_driver_that_hung_is_not_asked_again(serve: Serve) -> None:
    server = serve("\nimport time\ndef odd(self, *args): time.sleep(60)\nD.plan = odd\n")
    asked(server)
    began = time.monotonic()
    for _ in range(20):
        assert "until Oprel is started anew" in asked(server)[1]
    assert time.monotonic() - began < 3


def test_the_loop_is_not_held_up_by_a_driver_that_blocks(serve: Serve) -> None:
    """While a plan takes its time, others are answered."""
    server = serve("\nimport time\ndef odd(self, *args): time.sleep(0.6)\nD.availability = odd\nD.supports = odd\n")
    with httpx.Client() as client:

        async def ask_both() -> float:
            slow = asyncio.create_task(asyncio.to_thread(asked, server))
            began = time.monotonic()
            worst = 0.0
            while not slow.done():
                at = time.monotonic()
                await asyncio.to_thread(client.get, f"{server.url}/health")
                worst = max(worst, time.monotonic() - at)
            assert time.monotonic() - began > 0.6
            return worst

        assert asyncio.run(ask_both()) < 0.5


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("raise ZeroDivisionError('oh')", "its start() raised ZeroDivisionError: oh"),
        ("import sys; sys.exit(1)", "its start() raised SystemExit: 1"),
        ("raise KeyboardInterrupt", "its start() raised KeyboardInterrupt"),
        ("raise asyncio.CancelledError", "its start() raised CancelledError"),
        ("return 7", "returned a int and not an Engine"),
        ("e = self.engine(plan); del e.plan; return e", "returned an engine without a plan"),
        ("e = self.engine(plan); e.capabilities = {}; return e", "returned an engine without capabilities"),
    ],
    ids=["raises", "exits", "interrupts", "cancels itself", "no engine", "no plan", "no capabilities"],
)
def test_a_start_that_goes_wrong(serve: Serve, source: str, said: str) -> None:
    server = serve(f"\nasync def odd(self, plan): {source}\nD.start = odd\n")
    status, error = asked(server)
    assert status == 500
    assert "the driver 'odd' broke the driver contract" in error
    assert said in error
    goes_on(server)


def test_a_start_that_is_no_coroutine(serve: Serve) -> None:
    server = serve("\ndef odd(self, plan): return 7\nD.start = odd\n")
    status, error = asked(server)
    assert status == 500
    assert "its start() raised TypeError" in error
    goes_on(server)


@pytest.mark.parametrize(
    "source",
    [
        "await asyncio.sleep(3600)",
        "while True:\n        try: await asyncio.sleep(3600)\n        except asyncio.CancelledError: pass",
    ],
    ids=["waits", "ignores its cancellation"],
)
def test_a_start_that_hangs_is_given_up_by_name(serve: Serve, source: str) -> None:
    server = serve(f"\nasync def odd(self, plan):\n    {source}\nD.start = odd\n", load_timeout=0.05)
    status, error = asked(server)
    assert status == 500
    assert "did not load within 0.5 s" in error
    assert "'odd'" in error
    goes_on(server)


def test_a_start_whose_client_leaves_holds_nobody_up(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """It ignores that it is cancelled, and hangs; the next request, and the server's end, don't wait for it."""
    server = serve(
        "\nasync def odd(self, plan):\n"
        "    while True:\n"
        "        try: await asyncio.sleep(3600)\n"
        "        except asyncio.CancelledError: pass\n"
        "D.start = odd\n"
    )
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.openai_url}/chat/completions", json=CHAT, timeout=0.3)
    wait_until(lambda: "its start() went on when it was cancelled" in caplog.text)
    wait_until(lambda: not httpx.get(f"{server.url}/api/ps").json()["models"])
    goes_on(server)


STREAMS = {
    "not events": ("yield ('rubbish',)", "yielded 'rubbish', which isn't an event"),
    "no tuple": ("yield Text('a')", "not a tuple of events"),
    "empty": ("yield ()", "yielded an empty tuple"),
    "no finish": ("yield (Text('a'),)", "ended its answer without a Finish"),
    "two at once": ("yield (Finish(('stop',), Usage(1, 1)),) * 2", "two Finish events"),
    "after the finish": ("yield (Finish(('stop',), Usage(1, 1)), Text('a'))", "after the Finish"),
    "half a character": ("yield (Text('\\ud83d'),)", "half a code point"),
    "bytes": ("yield (Text(b'a'),)", "as text"),
    "index": ("yield (Text('a', index=3),)", "yielded the index 3"),
    "reason": ("yield (Finish(('tired',), Usage(1, 1)),)", "one choice has one reason"),
    "usage": ("yield (Finish(('stop',), None),)", "finished with the usage None"),
    "negative": ("yield (Finish(('stop',), Usage(-1, 1)),)", "finished with the usage"),
    "raises": ("yield (Text('a'),)\n    raise ZeroDivisionError('oh')", "raised ZeroDivisionError: oh"),
    "raises at once": ("raise LookupError('oh')\n    yield", "raised LookupError: oh"),
    "exits": ("yield (Text('a'),)\n    raise SystemExit(4)", "raised SystemExit: 4"),
    "cancels itself": ("yield (Text('a'),)\n    raise asyncio.CancelledError", "raised CancelledError"),
    "is silent": ("yield (Text('a'),)\n    await asyncio.sleep(3600)", "yielded nothing for 1 s"),
}


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("how", sorted(STREAMS))
def test_a_stream_that_is_none_of_the_contracts(
    serve: Serve, how: str, is_streamed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    source, said = STREAMS[how]
    server = serve(f"\nasync def odd(self):\n    {source}\nE.answer = odd\n")
    answer = httpx.post(f"{server.openai_url}/chat/completions", json={**CHAT, "stream": is_streamed}, timeout=LIMIT_S)
    assert "the driver 'odd' broke the driver contract: its chat()" in answer.text.replace("\\u2019", "'")
    assert said.replace('"', '\\"') in answer.text
    assert "[DONE]" not in answer.text
    assert answer.status_code in (200, 502, 504) if is_streamed else answer.status_code in (502, 504)
    assert "defect of this server" not in caplog.text
    goes_on(server)


@pytest.mark.parametrize(
    "source",
    ["return [(Text('a'),)]", "raise LookupError('oh')", "return None"],
    ids=["a list", "raises", "nothing"],
)
def test_a_chat_that_is_no_stream(serve: Serve, source: str) -> None:
    server = serve(f"\ndef odd(self, request): {source}\nE.chat = odd\n")
    status, error = asked(server)
    assert status == 502
    assert "the driver 'odd' broke the driver contract: its chat() raised" in error
    goes_on(server)


def test_what_comes_after_the_finish_is_dropped_and_told(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    server = serve(
        "\nasync def odd(self):\n"
        "    yield (Text('a'), Finish(('stop',), Usage(1, 1)))\n"
        "    yield (Finish(('stop',), Usage(1, 1)),)\n"
        "E.answer = odd\n"
    )
    assert asked(server) == (200, "")
    assert "the driver 'odd' broke the driver contract: its chat() yielded (Finish(" in caplog.text
    goes_on(server)


def test_a_stream_that_ignores_its_end_costs_its_engine(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """The slot isn't lost: the engine is given up, and the next request has another one."""
    server = serve(
        "\nasync def odd(self):\n"
        "    yield (Text('a'),)\n"
        "    while True:\n"
        "        try: await asyncio.sleep(3600)\n"
        "        except asyncio.CancelledError: pass\n"
        "E.answer = odd\n",
        stall_s=60.0,
    )
    for _ in range(2):
        with httpx.stream("POST", f"{server.openai_url}/chat/completions", json={**CHAT, "stream": True}) as answer:
            next(answer.iter_lines())
    wait_until(lambda: caplog.text.count("its chat() went on when it was closed") >= 2)
    wait_until(lambda: not httpx.get(f"{server.url}/api/ps").json()["models"])
    goes_on(server)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("raise ZeroDivisionError('oh')", "raised ZeroDivisionError: oh"),
        ("return Embeddings((), 1)", "returned 0 vectors for 2 inputs"),
        ("return [[1.0], [2.0]]", "returned [[1.0], [2.0]] and not Embeddings"),
        ("return Embeddings(((1.0,), (1.0, 2.0)), 1)", "of different lengths"),
        ("return Embeddings((('a',), ('b',)), 1)", "isn't of numbers"),
        ("raise SystemExit", "raised SystemExit"),
        ("await asyncio.sleep(3600)", "didn't return within"),
    ],
    ids=["raises", "too few", "a list", "lengths", "texts", "exits", "hangs"],
)
def test_embeddings_that_are_none(serve: Serve, source: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checked_engine, "prompt_budget_s", lambda *_: 0.0)
    server = serve(f"\nasync def odd(self, request): {source}\nE.embed = odd\n")
    server.services.catalog.models.append(  # type: ignore[attr-defined]
        scripted_model("mini:latest", capabilities=frozenset({"embedding"}))
    )
    body = {"model": "mini", "input": ["a", "b"]}
    answer = httpx.post(f"{server.openai_url}/embeddings", json=body, timeout=LIMIT_S)
    assert answer.status_code in (502, 504)
    assert "the driver 'odd' broke the driver contract: its embed()" in answer.json()["error"]["message"]
    assert said in answer.json()["error"]["message"]
    goes_on(server)


def test_what_the_engine_declares_not_to_do_never_reaches_it(serve: Serve) -> None:
    server = serve("\ndef odd(self, request): raise SystemExit('it was asked')\nE.embed = odd\n")
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    status, error = asked(server, {**CHAT, "tools": [tool]})
    assert status == 400
    assert "'odd'" in error
    goes_on(server)


@pytest.mark.parametrize(
    "source",
    ["raise ZeroDivisionError", "raise SystemExit", "await asyncio.sleep(3600)", "return 7"],
    ids=["raises", "exits", "hangs", "rubbish"],
)
@pytest.mark.parametrize("method", ["stop", "wait_dead", "health"])
def test_ends_that_go_wrong(serve: Serve, method: str, source: str, caplog: pytest.LogCaptureFixture) -> None:
    server = serve(f"\nasync def odd(self): {source}\nE.{method} = odd\n")
    asked(server)
    httpx.post(f"{server.url}/api/generate", json={"model": "tiny", "keep_alive": 0}, timeout=LIMIT_S)
    wait_until(lambda: not httpx.get(f"{server.url}/api/ps").json()["models"])
    if method == "stop" and source != "return 7":
        assert "the driver 'odd' broke the driver contract: its engine's stop()" in caplog.text
    goes_on(server)


@pytest.mark.parametrize("method", ["memory_bytes", "log_tail"])
def test_what_is_only_told_may_fail(serve: Serve, method: str) -> None:
    server = serve(f"\ndef odd(self): raise SystemError\nE.{method} = odd\n")
    assert asked(server)[0] == 200
    goes_on(server)


LEAK = """
import os, sys
async def odd(self, plan):
    os.posix_spawn(sys.executable, [sys.executable, "-c", "import time; time.sleep(600)"], os.environ)
    {then}
D.start = odd
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("then", ["return self.engine(plan)", "raise OSError('oh')"], ids=["engine", "failed start"])
def test_a_process_that_is_left_behind_is_ended_and_told(
    serve: Serve, then: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = set(descendants(os.getpid()))
    server = serve(LEAK.format(then=then))
    status, _ = asked(server)
    assert status == (200 if "return" in then else 500)
    httpx.post(f"{server.url}/api/generate", json={"model": "tiny", "keep_alive": 0}, timeout=LIMIT_S)
    wait_until(lambda: "running: ended now" in caplog.text)
    assert "the driver 'odd' broke the driver contract" in caplog.text
    assert "python" in caplog.text
    wait_until(lambda: not any(is_alive(pid) for pid in set(descendants(os.getpid())) - before))
    goes_on(server)


@pytest.fixture(autouse=True)
def every_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "oprel")
