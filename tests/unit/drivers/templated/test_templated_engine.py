"""A scripted engine that only completes text, and what chats through a template on it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from contextlib import aclosing
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oprel.drivers import ContextLengthError, DriverOptions, Engine, InvalidRequestError, UnsupportedError
from oprel.drivers.templated import engine_for, plan_for, with_template
from oprel.drivers.templated.engine import TemplatedEngine
from oprel.errors import TemplateError
from oprel.schema import (
    ALL_SAMPLING,
    AudioPart,
    Capabilities,
    ChatRequest,
    CompletionRequest,
    Event,
    Finish,
    FinishReason,
    ImagePart,
    JsonObject,
    JsonSchema,
    LoadOptions,
    Message,
    Model,
    NamedTool,
    Sampling,
    Text,
    TextPart,
    Thinking,
    Tool,
    ToolCallDelta,
    Usage,
    events,
)
from oprel.templates.chat import chat_template
from oprel.testing import Script, ScriptedDriver, ScriptedRegistry, scripted_model

RAW = Capabilities(
    complete=True, json_schema=True, logprobs=True, vision=True, audio=True, tokenize=True, sampling=ALL_SAMPLING
)
TEMPLATE = (
    "{{ range .Messages }}{{ if .Thinking }}<think>{{ .Thinking }}</think>{{ end }}{{ .Content }}"
    '{{ if .ToolCalls }}<tool_call>{{ range .ToolCalls }}{"name": "{{ .Function.Name }}", "arguments": '
    "{{ .Function.Arguments }}}{{ end }}</tool_call>{{ end }};{{ end }}{{ if .Tools }}{{ json .Tools }}{{ end }}"
)
PLAIN = "{{ range .Messages }}{{ .Content }};{{ end }}"
TOOLS = (
    Tool("add", parameters='{"type":"object","properties":{"a":{"type":"integer"}},"required":["a"]}'),
    Tool("now"),
)
ASK = (Message("user", (TextPart("x"),)),)
ADD = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'


def go_model(template: str = TEMPLATE, **changes: Any) -> Model:
    return scripted_model("tiny:latest", **{"chat_template": None, "template": template, **changes})


async def started(script: Script, model: Model) -> Engine:
    driver = ScriptedDriver(script, options=DriverOptions(run_dir=""))
    return await driver.start(driver.plan(model, LoadOptions(), ScriptedRegistry(driver).hardware()))


async def collected(engine: Engine, request: ChatRequest | CompletionRequest) -> list[Event]:
    found: list[Event] = []
    stream = engine.chat(request) if isinstance(request, ChatRequest) else engine.complete(request)
    async with aclosing(stream):
        async for batch in stream:
            assert batch
            found += batch
    return found


def answer(
    text: Iterable[str] | Callable[[Any], Iterable[str]],
    request: ChatRequest,
    *,
    template: str = TEMPLATE,
    capabilities: Capabilities = RAW,
    reason: FinishReason = "stop",
) -> tuple[list[Event], list[Any]]:
    """The events, and the requests that the engine below got."""

    async def run() -> tuple[list[Event], list[Any]]:
        model = go_model(template)
        script = Script(text=text if callable(text) else tuple(text), capabilities=capabilities, finish=reason)
        inner: Any = await started(script, model)
        found = await collected(engine_for(model, inner), request)
        return found, [call.request for call in inner.calls]

    return asyncio.run(run())


def summed(found: list[Event]) -> tuple[str, str, list[tuple[str | None, str]]]:
    thought = "".join(event.text for event in found if isinstance(event, events.Thinking))
    said = "".join(event.text for event in found if isinstance(event, Text))
    calls: dict[int, tuple[str | None, str]] = {}
    for event in (event for event in found if isinstance(event, ToolCallDelta)):
        name, arguments = calls.get(event.call, (event.name, ""))
        calls[event.call] = name, arguments + event.arguments
    return thought, said, list(calls.values())


def finish(found: list[Event]) -> Finish:
    assert isinstance(found[-1], Finish)
    assert not any(isinstance(event, Finish) for event in found[:-1])
    return found[-1]


def test_thoughts_text_and_calls_are_told_apart() -> None:
    found, _ = answer(["<think>hm", "m</think>\n\nSo ", ADD], ChatRequest(ASK, tools=TOOLS))
    assert summed(found) == ("hmm", "So ", [("add", '{"a":1}')])
    assert finish(found).reasons == ("tool_calls",)
    [call] = [event for event in found if isinstance(event, ToolCallDelta)]
    assert (call.call, call.id and call.id[:5]) == (0, "call_")


def test_without_tools_nothing_is_read_as_a_call() -> None:
    for request in (ChatRequest(ASK), ChatRequest(ASK, tools=TOOLS, tool_choice="none")):
        found, [asked] = answer([ADD], request)
        assert summed(found) == ("", ADD, [])
        assert finish(found).reasons == ("stop",)
        assert asked.prompt == "x;"


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_cut_of_the_answer_gives_the_same_events(data: st.DataObject) -> None:
    text = data.draw(
        st.sampled_from(
            [
                f" <think>a <b> c</think>\nSo:\n{ADD}\n{ADD} fine",
                "<think>never closed",
                f"{ADD[:-20]}",
                'Just {"a": 1} text <tool_call>no',
                '{"name": "now", "arguments": {}}',
            ]
        )
    )
    cuts = sorted(data.draw(st.sets(st.integers(1, len(text) - 1), max_size=8)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    request = ChatRequest(ASK, tools=TOOLS)
    assert summed(answer(pieces, request)[0]) == summed(answer([text], request)[0])


def test_a_prompt_that_opens_the_thought_is_heeded() -> None:
    template = TEMPLATE + "{{ if .Think }}<think>\n{{ else }}<think>\n\n</think>{{ end }}"
    found, _ = answer(["hm</think>yes"], ChatRequest(ASK, thinking=Thinking(True)), template=template)
    assert summed(found)[:2] == ("hm", "yes")
    found, _ = answer(["yes"], ChatRequest(ASK, thinking=Thinking(False)), template=template)
    assert summed(found)[:2] == ("", "yes")


def test_the_levels_of_thinking_reach_the_template() -> None:
    template = PLAIN + "{{ .Think }} {{ .ThinkLevel }} {{ .IsThinkSet }}{{ if false }}{{ .Thinking }}{{ end }}"
    for thinking, told in (
        (None, "false  false"),
        (Thinking(False), "false  true"),
        (Thinking(True), "true  true"),
        (Thinking(True, "high"), "true high true"),
        (Thinking(True, "minimal"), "true low true"),
    ):
        _, [asked] = answer(["ok"], ChatRequest(ASK, thinking=thinking), template=template)
        assert asked.prompt == f"x;{told}"


def test_a_format_binds_the_answer_and_not_the_thoughts() -> None:
    def text(request: CompletionRequest) -> list[str]:
        if request.format is not None:
            return ['{"a":', " 1}"]
        return ["<think>", "hm ", "hm", "</think>", "\n\n", "Sure! ", "It is"]

    request = ChatRequest(ASK, Sampling(max_tokens=100), format=JsonObject())
    found, [first, second] = answer(text, request)
    assert summed(found) == ("hm hm", '{"a": 1}', [])
    thought = "<think>hm hm</think>\n\n"
    assert (first.format, first.prompt) == (None, "x;")
    assert (second.format, second.prompt) == (JsonObject(), f"x;{thought}")
    assert second.sampling.max_tokens == 100 - len(thought)  # the scripted tokenizer has a token for each byte
    assert finish(found).usage.completion == len(thought) + 2


def test_thoughts_that_use_up_all_tokens_end_the_answer() -> None:
    found, asked = answer(["<think>", "a", "b", "c"], ChatRequest(ASK, Sampling(max_tokens=3), format=JsonObject()))
    assert summed(found) == ("ab", "", [])
    assert finish(found).reasons == ("length",)
    assert len(asked) == 1


def test_a_format_for_one_that_answers_without_a_thought_holds_from_the_beginning() -> None:
    found, [_, second] = answer(lambda r: ["{}"] if r.format else ["Well"], ChatRequest(ASK, format=JsonObject()))
    assert (summed(found)[1], second.prompt) == ("{}", "x;")


def test_a_format_goes_to_the_engine_at_once_where_nothing_is_thought() -> None:
    for request, template in (
        (ChatRequest(ASK, format=JsonObject()), PLAIN),
        (ChatRequest(ASK, format=JsonObject(), thinking=Thinking(False)), TEMPLATE),
    ):
        _, [asked] = answer(["{}"], request, template=template)
        assert asked.format == JsonObject()


def test_a_call_that_must_be_made_is_held_to_its_schema() -> None:
    text = '{"name":"add","arguments":{"a":4}}'
    found, [asked] = answer([text[:9], text[9:]], ChatRequest(ASK, tools=TOOLS, tool_choice=NamedTool("add")))
    assert summed(found) == ("", "", [("add", '{"a":4}')])
    assert finish(found).reasons == ("tool_calls",)
    schema = json.loads(asked.format.schema)
    assert schema["properties"]["name"] == {"const": "add"}
    assert schema["properties"]["arguments"] == {"$ref": "#/$defs/arguments0"}
    assert schema["$defs"]["arguments0"]["required"] == ["a"]
    assert schema["$defs"]["arguments0"]["additionalProperties"] is False
    assert '"now"' not in asked.prompt
    _, [asked] = answer([text], ChatRequest(ASK, tools=TOOLS, tool_choice="required"))
    assert [each["properties"]["name"]["const"] for each in json.loads(asked.format.schema)["anyOf"]] == ["add", "now"]


def test_a_call_that_is_cut_off_is_a_piece_of_one_and_no_text() -> None:
    request = ChatRequest(ASK, tools=TOOLS, tool_choice=NamedTool("add"), sampling=Sampling(stop=("4",)))
    found, [asked] = answer(['{"name":"add",', '"arguments":{"a":'], request, reason="length")
    assert summed(found) == ("", "", [("add", '{"a":')])
    assert finish(found).reasons == ("length",)
    assert asked.sampling.stop == ()  # it would end within the arguments


@pytest.mark.parametrize(
    ("request_", "error", "match"),
    [
        (ChatRequest(ASK, tools=TOOLS, tool_choice=NamedTool("sub")), InvalidRequestError, "isn't among the tools"),
        (ChatRequest(ASK, tool_choice="required"), InvalidRequestError, "there are no tools"),
        (
            ChatRequest(ASK, tools=TOOLS, tool_choice="required", format=JsonSchema("{}")),
            UnsupportedError,
            "a format beside a call",
        ),
        (ChatRequest((Message("user", (AudioPart(b""),)),)), UnsupportedError, "takes no sound"),
    ],
    ids=["unknown tool", "no tools", "format", "sound"],
)  # fmt: skip
def test_what_can_not_be_honoured_is_refused_by_name(request_: ChatRequest, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        answer(["x"], request_)


def test_tools_and_thinking_need_a_place_in_the_template() -> None:
    for request in (ChatRequest(ASK, tools=TOOLS), ChatRequest(ASK, thinking=Thinking(True))):
        with pytest.raises(UnsupportedError):
            answer(["x"], request, template=PLAIN)


def test_images_are_numbered_and_go_along() -> None:
    one, two = ImagePart(b"1"), ImagePart(b"2")
    messages = (
        Message("user", (one, TextPart("What is it?"))),
        Message("assistant", (TextPart("A cat."),)),
        Message("user", (TextPart("And [img]?"), two)),
    )
    _, [asked] = answer(["x"], ChatRequest(messages), template=PLAIN)
    assert asked.prompt == "[img-0]What is it?;A cat.;And [img-1]?;"
    assert asked.images == (one, two)


def test_logprobs_come_with_what_is_said_alone() -> None:
    found, _ = answer(["<think>", "a", "</think>", "b"], ChatRequest(ASK, logprobs=1))
    rows = [row.token for event in found if isinstance(event, Text) for row in event.logprobs or ()]
    assert rows == ["b"]


def test_oldest_turns_are_left_out_when_the_request_allows_it() -> None:
    async def run(truncate: bool) -> tuple[list[Event], str]:
        model = go_model(PLAIN)
        inner: Any = await started(Script(text=("ok",), capabilities=RAW, context_tokens=24), model)
        words = tuple(Message("user", (TextPart("a b c d e f g h"),)) for _ in range(6))
        request = ChatRequest(tuple(m for w in words for m in (w, Message("assistant", (TextPart("y"),)))) + ASK,
                              truncate=truncate)  # fmt: skip
        found = await collected(engine_for(model, inner), request)
        return found, inner.calls[-1].request.prompt

    found, prompt = asyncio.run(run(True))
    assert found[0] == events.Warning(
        "prompt_truncated", "the conversation was longer than the context: its oldest turns were left out"
    )
    assert prompt.endswith("x;") and len(prompt.split()) <= 24
    with pytest.raises(ContextLengthError):
        asyncio.run(run(False))


def test_a_suffix_takes_its_place_in_the_template_where_it_has_one() -> None:
    async def run(template: str) -> Any:
        model = go_model(template)
        inner: Any = await started(Script(text=("ok",), capabilities=msgspec.structs.replace(RAW, infill=True)), model)
        await collected(engine_for(model, inner), CompletionRequest("a", suffix="b"))
        return inner.calls[-1].request

    assert asyncio.run(run("<P>{{ .Prompt }}<S>{{ .Suffix }}<M>")).prompt == "<P>a<S>b<M>"
    left = asyncio.run(run("{{ .Prompt }}"))
    assert (left.prompt, left.suffix) == ("a", "b")


def test_what_it_can_do_is_what_the_engine_and_the_template_can() -> None:
    async def run() -> None:
        inner = await started(Script(capabilities=RAW), go_model())
        full = engine_for(go_model(), inner).capabilities
        assert (full.chat, full.tools, full.thinking, full.infill, full.vision, full.audio) == (
            True, True, True, False, True, False,
        )  # fmt: skip
        plain = engine_for(go_model("{{ .Prompt }}{{ .Suffix }}"), inner).capabilities
        assert (plain.chat, plain.tools, plain.thinking, plain.infill) == (True, False, False, True)

    asyncio.run(run())


def test_only_models_that_chat_by_a_go_template_are_wrapped() -> None:
    async def run() -> None:
        inner = await started(Script(capabilities=RAW), go_model())
        assert isinstance(engine_for(go_model(), inner), TemplatedEngine)
        for model in (scripted_model(), scripted_model(chat_template=None), scripted_model(template="{{ .Prompt }}")):
            assert engine_for(model, inner) is inner
        embedding = await started(Script(), scripted_model(capabilities=frozenset({"embedding"})))
        assert engine_for(go_model(), embedding) is embedding

    asyncio.run(run())


def test_the_plan_tells_the_template_and_keeps_its_fallbacks() -> None:
    async def run() -> None:
        inner = await started(Script(capabilities=RAW), go_model())
        plan = msgspec.structs.replace(inner.plan, chat=False, reasons=(("template", "none"), ("slots", "4")))
        plan = msgspec.structs.replace(plan, fallbacks=(plan,))
        told = plan_for(go_model(), plan)
        assert told.chat and told.fallbacks[0].chat
        assert dict(told.reasons) == {"slots": "4", "template": "the Go template of its manifest, applied by Oprel"}
        assert plan_for(scripted_model(), plan) is plan

    asyncio.run(run())


def test_a_template_that_does_not_parse_is_told_when_it_is_needed() -> None:
    async def run() -> None:
        inner: Any = await started(Script(text=("ok",), capabilities=RAW), go_model())
        engine = engine_for(go_model("{{ if"), inner)
        with pytest.raises(TemplateError, match="template: :1: unclosed action"):
            await collected(engine, ChatRequest(ASK))
        with pytest.raises(TemplateError):
            await engine.render(ChatRequest(ASK))
        assert summed(await collected(engine, CompletionRequest("raw")))[1] == "ok"

    asyncio.run(run())


def test_another_template_takes_the_place_of_the_models() -> None:
    async def run() -> None:
        inner: Any = await started(Script(text=("ok",), capabilities=RAW), go_model())
        for engine in (inner, engine_for(go_model(), inner)):
            other = with_template(engine, "<{{ .Prompt }}>")
            assert await other.render(ChatRequest(ASK)) == "<x>"
            assert isinstance(other, TemplatedEngine) and other.inner is inner

    asyncio.run(run())


def test_a_clients_template_never_runs_on_the_loop() -> None:
    async def run() -> None:
        inner: Any = await started(Script(text=("ok",), capabilities=RAW), go_model())
        engine = with_template(inner, "{{ range 9999999 }}{{ end }}{{ .Prompt }}")
        rendering = asyncio.ensure_future(engine.render(ChatRequest(ASK)))
        turns = 0
        while not rendering.done():
            await asyncio.sleep(0)
            turns += 1
        assert turns > 10
        with pytest.raises(TemplateError, match="more than 400000 steps"):
            await rendering

    asyncio.run(run())


def test_closing_the_answer_closes_the_engines() -> None:
    async def run() -> None:
        inner: Any = await started(Script(endless=True, capabilities=RAW), go_model())
        stream = engine_for(go_model(), inner).chat(ChatRequest(ASK))
        async for _ in stream:
            break
        await stream.aclose()
        assert [call.ended for call in inner.calls] == ["closed"]

    asyncio.run(run())


def test_everything_else_is_the_engines_own() -> None:
    async def run() -> None:
        inner: Any = await started(Script(capabilities=RAW, memory_bytes=7), go_model())
        engine = engine_for(go_model(), inner)
        assert await engine.tokenize("ab") == await inner.tokenize("ab")
        assert await engine.detokenize((97, 98)) == "ab"
        assert (await engine.health()).state == "ready"
        assert (engine.memory_bytes(), engine.log_tail()) == (7, inner.log_tail())
        watch = asyncio.ensure_future(engine.wait_dead())
        await engine.stop()
        assert await watch == "stopped"

    asyncio.run(run())


def test_a_usage_is_passed_on() -> None:
    found, _ = answer(["a", "b"], ChatRequest(ASK), template=PLAIN)
    assert finish(found).usage == Usage(1, 2)


def test_templates_are_parsed_once() -> None:
    assert chat_template(PLAIN) is chat_template(PLAIN)
