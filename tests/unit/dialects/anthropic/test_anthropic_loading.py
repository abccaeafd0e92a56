"""Oprel's own fields beside Anthropic's: how the model is loaded, and for how long."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.asgi import Reply
from support.scripted_app import ScriptedApp, scripted_app

from oprel.config import Settings
from oprel.dialects.anthropic import router
from oprel.schema import ALL_SAMPLING, Capabilities
from oprel.testing import Script, specs

MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"
COUNTED: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
HELLO: dict[str, Any] = {**COUNTED, "max_tokens": 50}
LOADS = [{"model": "tiny@ctx=2k"}, {"num_ctx": 2048}, {"options": {"num_ctx": 2048}}, {"model": "tiny@ctx=2048"}]


def run(steps: Any, script: Script | None = None, settings: Settings | None = None) -> Any:
    async def go() -> Any:
        async with scripted_app(router, script, settings=settings) as app:
            return await steps(app)

    return asyncio.run(go())


@pytest.mark.parametrize("asked", LOADS)
@pytest.mark.parametrize(("path", "body"), [(MESSAGES, HELLO), (COUNT, COUNTED)])
def test_the_context_can_be_told_in_three_places(path: str, body: dict[str, Any], asked: dict[str, Any]) -> None:
    async def steps(app: ScriptedApp) -> int | None:
        reply = await app.post(path, {**body, **asked})
        specs.validate("anthropic", path, "POST", reply.status, reply.json())
        assert reply.status == 200, reply.body
        assert reply.json().get("model", asked.get("model", "tiny")) == asked.get("model", "tiny")
        return app.engine.plan.options.context_tokens

    assert run(steps) == 2048


def test_options_fill_what_the_request_does_not_say() -> None:
    options = {"top_k": 5, "temperature": 0.1, "repeat_penalty": 1.3, "num_predict": 7, "stop": ["x"], "warmth": 9}

    async def steps(app: ScriptedApp) -> tuple[Reply, Any]:
        return await app.post(MESSAGES, {**HELLO, "temperature": 0.9, "options": options}), app.engine.calls[-1].request

    reply, request = run(steps)
    sampling = request.sampling
    assert (sampling.top_k, sampling.temperature, sampling.repeat_penalty) == (5, 0.9, 1.3)
    assert (sampling.max_tokens, sampling.stop) == (50, ("x",))
    assert reply.all("x-oprel-warning") == ["unknown_field; 'options.warmth' is not known and was ignored"]


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"num_ctx": 1}, "num_ctx"),
        ({"model": "tiny@ctx=0"}, "model"),
        ({"model": "tiny@ctx=2k", "num_ctx": 1024}, "num_ctx"),
        ({"options": {"num_ctx": 1.5}}, "options.num_ctx"),
        ({"options": {"seed": "x"}}, "options.seed"),
        ({"keep_alive": "soon"}, "keep_alive"),
    ],
)
def test_what_is_wrong_is_named(asked: dict[str, Any], field: str) -> None:
    reply: Reply = run(lambda app: app.post(MESSAGES, {**HELLO, **asked}))
    assert reply.status == 400
    assert f"'{field}'" in reply.json()["error"]["message"]


def test_a_server_may_cap_how_long_a_model_stays() -> None:
    reply: Reply = run(
        lambda app: app.post(MESSAGES, {**HELLO, "keep_alive": -1}), settings=Settings(max_keep_alive=60)
    )
    assert reply.header("x-oprel-warning").startswith("keep_alive_capped; ")  # type: ignore[union-attr]


def test_a_parameter_is_refused_by_its_name_in_this_dialect() -> None:
    script = Script(capabilities=Capabilities(chat=True, sampling=ALL_SAMPLING - {"stop"}))
    reply: Reply = run(lambda app: app.post(MESSAGES, {**HELLO, "stop_sequences": ["x"]}), script)
    assert reply.status == 400
    assert reply.json()["error"]["message"] == "'stop_sequences' is not supported by the driver 'scripted'"
