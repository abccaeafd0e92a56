"""What the documents allow and forbid, as requests that schemathesis makes of them, and what they say in words only."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

import schemathesis
from hypothesis.strategies import SearchStrategy
from schemathesis import Case, GenerationMode
from schemathesis.schemas import APIOperation

from oprel.server.documents import base_paths, load
from support.surface import CHAT, EMBED, RANK

__all__ = ["Described", "is_lenient", "is_said", "may_fail", "operations"]

Json = Any

_EMBEDDING = ("/embeddings", "/api/embed", "/api/embeddings")
_REFUSED = "x-oprel-treatment"
_INT64 = 2**63


class Described:
    """One operation: where it is, and the requests that its document allows and forbids."""

    def __init__(self, document: str, operation: APIOperation) -> None:
        self.document = document
        self.path = operation.path
        self.method = operation.method.upper()
        self.base = base_paths(load(document), load(document)["paths"][operation.path])[0]
        self._operation = operation

    @property
    def label(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def has_input(self) -> bool:
        """Whether anything can be wrong with a request at all."""
        return bool(self._operation.body or self._operation.path_parameters or self._operation.query)

    @property
    def can_be_forbidden(self) -> bool:
        """Whether there are such requests without end: any text is a name in a path."""
        return bool(self._operation.body and self.path != "/api/blobs/{digest}") or bool(self._operation.query)

    @property
    def needs_something(self) -> bool:
        """Whether it answers only of what was made before."""
        return self.path.startswith(("/responses/", "/api/blobs/")) or self.path in ("/api/delete", "/api/pull")

    def covering(self, mode: GenerationMode) -> Iterator[Case]:
        """One field after the other at and beyond its limits."""
        schema = self._operation.schema
        config = schema.config.generation_for(operation=self._operation, phase="coverage")
        for case in schema.iter_coverage_cases(self._operation, generation_modes=[mode], generation_config=config):
            yield self.fitted(case, mode)

    def fuzzing(self, mode: GenerationMode) -> SearchStrategy[Case]:
        strategy = self._operation.as_strategy(generation_mode=mode)
        return strategy.map(lambda case: self.fitted(case, mode))

    def fitted(self, case: Case, mode: GenerationMode) -> Case:
        """With the name of a model that is here, and, where it shall be allowed, as the document's words have it."""
        body = case.body
        if isinstance(body, dict):
            for field in ("model", "name", "source"):
                if isinstance(body.get(field), str):
                    body[field] = self._model
            if mode is GenerationMode.POSITIVE:
                case.body = _in_range(_as_worded(self.path, body), is_go=self.document == "ollama")
        if mode is GenerationMode.POSITIVE and "model" in (case.path_parameters or {}):
            case.path_parameters["model"] = CHAT
        return case

    @property
    def _model(self) -> str:
        if self.path in _EMBEDDING:
            return EMBED
        return {"/rerank": RANK, "/api/create": "made", "/api/delete": "made", "/api/pull": "127.0.0.1:9/a/b"}.get(
            self.path, CHAT
        )


def operations(document: str) -> Iterator[Described]:
    """All but the one that ends the server, without the fields that are there to be refused."""
    schema = schemathesis.openapi.from_dict(_without_refused(copy.deepcopy(load(document))))
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.path != "/oprel/shutdown":
            yield Described(document, operation)


def _without_refused(value: Json) -> Json:
    if isinstance(value, list):
        return [_without_refused(each) for each in value if not _is_refused(each)]
    if not isinstance(value, dict):
        return value
    return {key: _without_refused(each) for key, each in value.items() if not _is_refused(each)}


def _is_refused(value: Json) -> bool:
    if not isinstance(value, dict):
        return False
    return value.get(_REFUSED) == "refused" or str(value.get("$ref", "")).endswith("/FilePart")


def _in_range(value: Json, *, is_go: bool) -> Json:
    """Without numbers that no field takes; to Go 1.0 is no integer."""
    if isinstance(value, dict):
        return {key: _in_range(each, is_go=is_go) for key, each in value.items()}
    if isinstance(value, list):
        return [_in_range(each, is_go=is_go) for each in value]
    if is_go and isinstance(value, float) and value.is_integer() and abs(value) < _INT64:
        return int(value)
    return 0 if isinstance(value, int) and abs(value) >= _INT64 else value


def _as_worded(path: str, body: dict[str, Json]) -> dict[str, Json]:
    """What a document says of several fields together, which its schemas can't."""
    match path:
        case "/chat/completions":
            body.pop("max_completion_tokens", None)
        case "/tokenize":
            body = {key: body[key] for key in body if key not in ("content", "prompt", "messages")} | _one_of(body)
        case "/responses":
            body.pop("previous_response_id", None)
            body["input"] = body.get("input") or "hi"
        case "/completions":
            body.pop("best_of", None)
            if body.get("logprobs") is not None:
                body.pop("echo", None)
        case "/api/create":
            body["from"] = CHAT
            body.pop("files", None)
        case "/api/copy":
            body["destination"] = "copied"
    if not body.get("tools"):
        body.pop("tool_choice", None)
    return body


def _one_of(body: dict[str, Json]) -> dict[str, Json]:
    for name in ("messages", "prompt", "content"):
        if body.get(name) is not None:
            return {name: body[name]}
    return {"content": "hi"}


# Failures of Ollama's that its clients look at, kept to the letter; and what a registry that isn't there comes to.
_FAILURES = {
    r"/api/(generate|chat|embed|embeddings)": (
        r'option "\w+" must be of type \w+|option "\w+" must be of an array of strings|invalid format: .*'
    ),
    r"/api/create": r"unsupported quantization type .*|quantization is only supported for .*",
    r"/api/(pull|push)": r"https?://.* (can't be reached; .*|leads to an address inside .*)",
}

# What the documents say in words: a request that its schema allows is refused with one of these.
_WORDS = {
    "openai": (
        r"'\S+' must be a data: URL with the image in base64.*",
        r"'\S+' is not (valid base64|a PNG, JPEG, WebP or GIF image).*",
        r"'\S+' names no 'image_url': no files are kept here",
        r"'(tools|tool_calls|allowed_tools)' .*",
        r"'\S*(tools|tool_calls)\[\d+\]\.function' is required",
        r"'\S*(tools|tool_calls)\[\d+\]\S*\.name' is .*; it must be 1 to 256 printable characters",
        r"'\S*tool_calls\[\d+\]\.type' is .*; only calls of functions are supported",
        r"'\S*arguments' must be a string that holds one JSON object.*",
        r"'(tool_choice|allowed_tools)\S*' .*",
        r"'(messages|input)\[\d+\]\S*' must be text in a message of role '(system|tool)'",
        r"'(messages|input)\S*' (holds no|is empty|names no|answers no) .*",
        r"'logit_bias' has the key '\d+'; keys are token ids",
        r"'input' is required: send a text, or at least one item",
        r"'top_logprobs' needs 'logprobs' to be true",
        r"'dimensions' is \d+; this model's embeddings have \d+",
        r"the model 'able' (takes no sound|takes no images|can't fill in before a 'suffix') .*",
        r"no (response|item) with the id .* is kept here.*",
        r"the assistant's last turn is empty.*",
    ),
    "ollama": (
        r"time: (invalid duration|missing unit in duration|unknown unit) .*",
        r"'images\[\d+\]' is not a PNG, JPEG, WebP or GIF image",
        r"illegal base64 data at input byte \d+",
        r"the input length exceeds the context length",
        r"invalid model name|model is required|model 'made' not found",
        r"file path must be relative|requires must be a valid semver .*",
        r"digest mismatch, expected .*, got .*",
        r"template error: .*",
        r"raw mode does not support template, system, or context",
        r"renderer .* can't be honoured: .*",
        r".* does not support (insert|vision)",
        r"'tools\[\d+\]\S*\.name' .*",
    ),
    "anthropic": (
        r"'(after|before)_id' is .*, which is no model here",
        r"'tools' has the name .* more than once",
        r"'tools\[\d+\]\.name' is .*; it must be 1 to 256 printable characters",
        r"'tool_choice\S*' .*",
        r"'messages\[\d+\]\S*' is .*; (here it must be one of|it must be 'text' here).*",
        r"'messages\[\d+\]\S*' is .*; no 'tool_use' block before it has this id",
        r"'messages\[\d+\]\S*' is not (valid base64|a PNG, JPEG, WebP or GIF image).*",
        r"'output_config.format' is not supported together with 'messages' that end with an assistant's turn",
        r"'messages' holds no turn of a user or an assistant",
        r"the assistant's last turn is empty.*",
    ),
    "oprel": (),
}


def may_fail(path: str, text: str) -> bool:
    return any(re.fullmatch(where, path) and re.fullmatch(what, text, re.DOTALL) for where, what in _FAILURES.items())


def is_said(document: str, text: str) -> bool:
    return any(re.fullmatch(words, text, re.DOTALL) for words in _WORDS[document])


def is_lenient(described: Described, case: Case) -> bool:
    """Whether what the schema forbids may be answered all the same, because the document's words allow it."""
    told = getattr(case.meta.phase.data, "description", "") or "" if case.meta else ""
    if "Content-Type" in told:  # bodies are read whatever their type says
        return True
    if "additionalProperties" in told or "unexpected properties" in told:  # what isn't named is ignored
        return True
    if described.document == "ollama" and isinstance(case.body, dict):
        is_load = not (case.body.get("prompt") or case.body.get("messages"))
        return (
            described.path in ("/api/generate", "/api/chat") and is_load and re.search("format|tools", told) is not None
        )
    return False
