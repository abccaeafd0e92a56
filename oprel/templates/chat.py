"""A conversation put into a Go template as Ollama does it: what a model was made to be asked with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import msgspec

from oprel.schema import (
    ChatRequest,
    ImagePart,
    Message,
    NamedTool,
    TextPart,
    Thinking,
    Tool,
    ToolCall,
)
from oprel.templates.cutting import cut_after, with_field
from oprel.templates.interpreter import Limits, run
from oprel.templates.marks import Marks, find_marks
from oprel.templates.template import Template, parse
from oprel.templates.values import JsonList, JsonMap, Record, Value

__all__ = ["ChatTemplate", "chat_template", "used_tools"]

_KEPT = 16  # one may take some megabytes
_LEVELS = {"minimal": "low"}


@lru_cache(_KEPT)
def chat_template(source: str) -> ChatTemplate:
    """Parsed once. Raises TemplateError."""
    return ChatTemplate(parse(source))


class ChatTemplate:
    """`marks` are the texts around thinking and calls, by which an answer is read. One that has a place for neither
    messages nor an answer gets one for the answer at its end."""

    def __init__(self, template: Template) -> None:
        self.template = template
        self._root = template.root
        self._has_messages = template.uses("Messages")
        if not self._has_messages and not template.uses("Response"):
            self._root = with_field(template.root, "Response")
        self._last = cut_after(self._root, "Response")
        self.marks: Marks = find_marks(template)

    @property
    def has_tools(self) -> bool:
        return self._has_messages and self.template.uses("Tools")

    @property
    def has_thinking(self) -> bool:
        return self.marks.thinking is not None

    @property
    def has_suffix(self) -> bool:
        return self.template.uses("Suffix")

    def conversation(self, request: ChatRequest) -> str:
        """The prompt for the next turn. Raises TemplateError."""
        messages = _merged(_turns(request.messages, self.marks))
        thinking = _thinking(request.thinking)
        if not self._has_messages:
            return self._turn_by_turn(messages, thinking)
        system = "\n\n".join(message.text for message in request.messages if _role(message) == "system")
        return self._run(
            {
                "System": system,
                "Messages": messages,
                "Tools": JsonList(_tool(tool) for tool in used_tools(request)),
                "Response": "",
                **thinking,
            }
        )

    def infill(self, prompt: str, suffix: str) -> str:
        """The prompt for what stands between two texts."""
        return self._run({"Prompt": prompt, "Suffix": suffix, "Response": "", **_thinking(None)})

    def _run(self, data: dict[str, Value]) -> str:
        return run(self._root, self.template.defined, data, Limits())

    def _turn_by_turn(self, messages: list[Value], thinking: dict[str, Value]) -> str:
        """For templates of one question and its answer: each pair of them, and the last with its answer cut off."""
        written: list[str] = []
        turn = {"System": "", "Prompt": "", "Response": ""}
        for message in messages:
            role, text = message.fields["Role"], message.fields["Content"]
            is_full = bool(turn["Response"]) or (role == "system" and bool(turn["Prompt"]))
            if is_full and role in ("system", "user"):
                written.append(self._run({**turn, **thinking}))
                turn = {"System": "", "Prompt": "", "Response": ""}
            if (place := _PLACES.get(role)) is not None:
                turn[place] = text
        written.append(run(self._last, self.template.defined, {**turn, **thinking}, Limits()))
        return "".join(written)


_PLACES = {"system": "System", "user": "Prompt", "assistant": "Response"}


def used_tools(request: ChatRequest) -> tuple[Tool, ...]:
    """Those that the model may call."""
    choice = request.tool_choice
    if isinstance(choice, NamedTool):
        return tuple(tool for tool in request.tools if tool.name == choice.name)
    return () if choice == "none" else request.tools


def _thinking(wanted: Thinking | None) -> dict[str, Value]:
    enabled = wanted is not None and wanted.enabled
    effort = (wanted.effort or "") if wanted is not None and enabled else ""
    return {"Think": enabled, "ThinkLevel": _LEVELS.get(effort, effort), "IsThinkSet": wanted is not None}


def _role(message: Message) -> str:
    return "system" if message.role == "developer" else message.role  # templates know no developer


def _turns(messages: tuple[Message, ...], marks: Marks) -> Iterable[Record]:
    """Images are numbered through the whole conversation; what was thought before the last question is left out."""
    last_question = max((at for at, message in enumerate(messages) if message.role == "user"), default=-1)
    images = 0
    for at, message in enumerate(messages):
        content, images = _content(message, images)
        if message.role == "assistant" and at < last_question:
            content = marks.without_thinking(content)
        fields = {
            "Role": _role(message),
            "Content": content,
            "Thinking": message.thinking or "",
            "Images": [part.media_type for part in message.content if isinstance(part, ImagePart)],
            "ToolCalls": [_call(call, number) for number, call in enumerate(message.tool_calls)],
            "ToolName": message.tool_name or "",
            "ToolCallID": message.tool_call_id or "",
        }
        yield Record("api.Message", fields, wire=_wire(fields))


def _wire(fields: dict[str, Value]) -> dict[str, Value]:
    """As JSON has it: what is empty is left out, but for the role and the text."""
    names = {"Thinking": "thinking", "ToolCalls": "tool_calls", "ToolName": "tool_name", "ToolCallID": "tool_call_id"}
    wire = {"role": fields["Role"], "content": fields["Content"]}
    return wire | {name: fields[field] for field, name in names.items() if fields[field]}


def _content(message: Message, images: int) -> tuple[str, int]:
    """The text with `[img-N]` for each image, at its place, or where the text says `[img]`."""
    text = ""
    named = message.text.count("[img]")
    tags: list[str] = []
    for part in message.content:
        if isinstance(part, TextPart):
            text += part.text
        elif isinstance(part, ImagePart):
            tag = f"[img-{images}]"
            images += 1
            if len(tags) < named:
                tags.append(tag)
            else:
                text += tag
    for tag in tags:
        text = text.replace("[img]", tag, 1)
    return text, images


def _merged(turns: Iterable[Record]) -> list[Value]:
    """Neighbours of one role as one message, with a blank line between; answers of tools stay apart."""
    merged: list[Value] = []
    for turn in turns:
        if not merged or merged[-1].fields["Role"] != turn.fields["Role"] or turn.fields["Role"] == "tool":
            merged.append(turn)
            continue
        before = merged[-1].fields
        fields = dict(turn.fields)
        fields["Content"] = f"{before['Content']}\n\n{fields['Content']}"
        fields["Thinking"] = before["Thinking"] or fields["Thinking"]
        for name in ("Images", "ToolCalls"):
            fields[name] = [*before[name], *fields[name]]
        merged[-1] = Record("api.Message", fields, wire=_wire(fields))
    return merged


# -- tools


def _call(call: ToolCall, number: int) -> Record:
    function = Record(
        "api.ToolCallFunction",
        {"Index": number, "Name": call.name, "Arguments": _object(call.arguments)},
        wire={"index": number, "name": call.name, "arguments": _object(call.arguments)},
    )
    wire = {"function": function}
    return Record(
        "api.ToolCall", {"ID": call.id or "", "Function": function}, wire={"id": call.id, **wire} if call.id else wire
    )


def _object(text: str) -> JsonMap:
    """The arguments of a call; they were checked to be an object, or come from a model that wrote something else."""
    try:
        value = msgspec.json.decode(text or "{}")
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return JsonMap()
    return JsonMap(value) if isinstance(value, dict) else JsonMap()


def _tool(tool: Tool) -> Record:
    schema = _object(tool.parameters or "") or JsonMap({"type": "object", "properties": {}})
    parameters = _parameters(schema)
    description = tool.description or ""
    wire: dict[str, Value] = {"name": tool.name}
    if description:
        wire["description"] = description
    function = Record(
        "api.ToolFunction",
        {"Name": tool.name, "Description": description, "Parameters": parameters},
        wire={**wire, "parameters": parameters},
        is_json=True,
    )
    fields = {"Type": "function", "Function": function}
    return Record("api.Tool", fields, wire={"type": "function", "function": function}, is_json=True)


# In the order in which Ollama writes them; what else a schema says comes after.
_OF_PARAMETERS = {
    "type": "Type",
    "$defs": "Defs",
    "items": "Items",
    "required": "Required",
    "properties": "Properties",
}
_OF_PROPERTY = {
    "anyOf": "AnyOf",
    "type": "Type",
    "items": "Items",
    "description": "Description",
    "enum": "Enum",
    "properties": "Properties",
    "required": "Required",
}


def _parameters(schema: dict[str, Any]) -> Record:
    properties = JsonMap((name, _property(each)) for name, each in sorted(_mapping(schema.get("properties")).items()))
    fields = {
        "Type": schema.get("type", ""),
        "Defs": schema.get("$defs"),
        "Items": schema.get("items"),
        "Required": JsonList(_sequence(schema.get("required"))),
        "Properties": properties,
    }
    wire = {"type": fields["Type"]}
    wire |= {name: schema[name] for name in ("$defs", "items") if name in schema}
    if fields["Required"]:
        wire["required"] = fields["Required"]
    wire["properties"] = properties
    wire |= {name: value for name, value in schema.items() if name not in _OF_PARAMETERS}
    return Record("api.ToolFunctionParameters", fields, wire=wire, is_json=True)


def _property(schema: Any) -> Record:
    """Of one argument, and of those inside it."""
    said = _mapping(schema)
    inner: dict[str, Callable[[Any], Value]] = {
        "anyOf": lambda value: [_property(each) for each in _sequence(value)],
        "properties": lambda value: JsonMap((name, _property(each)) for name, each in _mapping(value).items()),
    }
    known = {name: inner[name](said[name]) if name in inner else said[name] for name in _OF_PROPERTY if name in said}
    fields: dict[str, Value] = {
        "AnyOf": [],
        "Type": "",
        "Items": None,
        "Description": "",
        "Enum": [],
        "Properties": JsonMap(),
        "Required": [],
    }
    fields |= {_OF_PROPERTY[name]: value for name, value in known.items()}
    wire = {**known, **{name: value for name, value in said.items() if name not in _OF_PROPERTY}}
    return Record("api.ToolProperty", fields, wire=wire, is_json=True)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _sequence(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
