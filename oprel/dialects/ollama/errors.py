"""Everything that `/api` says when something goes wrong: statuses and texts as data, and the form they are sent in.

`ROWS` are the refusals that this dialect makes by itself, word for word those of the documented server.
`KINDS` says what the errors of `oprel.errors` come to here; statuses of 500 and 501 for a client's mistakes are
Ollama's own, kept because its clients look at them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from msgspec import Struct

from oprel import errors
from oprel.dialects.exchange import Head
from oprel.dialects.ollama.gojson import dumps

__all__ = ["KINDS", "ROWS", "Endpoint", "OllamaErrors", "Refusal", "Row", "refusal"]

Endpoint = Literal["generate", "chat", "embed", "embeddings", "show", "pull", "push", "delete", "create", "other"]


class Row(Struct, frozen=True):
    status: int
    text: str


ROWS: Mapping[str, Row] = {
    # bodies
    "missing_body": Row(400, "missing request body"),
    "bad_json": Row(400, "{text}"),
    "bad_base64": Row(400, "illegal base64 data at input byte {at}"),
    "bad_arguments": Row(400, "Value looks like object, but can't find closing '}}' symbol"),
    # models
    "model_required": Row(400, "model is required"),
    "no_such_model": Row(404, "model '{name}' not found"),
    "no_such_model_pull_first": Row(404, 'model "{name}" not found, try pulling it first'),
    "invalid_model_name": Row(400, "invalid model name"),
    "invalid_name": Row(400, "name {name} is invalid"),
    "invalid_source": Row(400, "source {name} is invalid"),
    "invalid_destination": Row(400, "destination {name} is invalid"),
    "no_such_source": Row(404, "model {name} not found"),
    "not_our_store": Row(
        400, "model '{name}' is in a store of Ollama's, which is only read here: remove it with ollama rm"
    ),
    "remote_model": Row(
        400, "model '{name}' is on another server: it is listed here because config.toml names that one"
    ),
    "page_reaches_out": Row(
        403, "a web page can't have models sent to or fetched from registries: use the command line or another client"
    ),
    "local_and_cloud": Row(400, "use either :local or :cloud, not both: {name}"),
    "cloud_model": Row(403, "ollama cloud is disabled: remote model is unavailable"),
    "cloud_model_details": Row(403, "ollama cloud is disabled: remote model details are unavailable"),
    # blobs and new models
    "invalid_digest": Row(400, "invalid digest format"),
    "no_such_blob": Row(404, 'blob "{digest}" not found'),
    "digest_mismatch": Row(400, 'digest mismatch, expected "{expected}", got "{got}"'),
    "template": Row(400, "template error: {problem}"),
    "quantization_type": Row(
        500, "unsupported quantization type {kind} - supported types are F32, F16, Q4_K_S, Q4_K_M, Q8_0"
    ),
    "remote_host": Row(400, "remote_host is not supported: models on other servers are named in config.toml"),
    "draft": Row(400, "draft models are not supported: leave out DRAFT ('draft_files')"),
    "draft_quantize": Row(400, "--draft-quantize requires a DRAFT model"),
    "requires": Row(400, "this model requires Ollama {version}, and what is kept here is the interface of {kept}"),
    # what a model can do
    "not_for": Row(400, '"{name}" does not support {what}'),
    "lacks": Row(400, "{names}"),
    "not_for_embedding": Row(501, "This server does not support embeddings. Start it with `--embeddings`"),
    "no_chat_template": Row(
        400,
        'the model "{name}" has no chat template, so a conversation can\'t be put into the form it was trained on: '
        "use /api/generate with raw:true, or name a template with --chat-template when the server is started",
    ),
    "renderer": Row(
        400,
        'the model "{name}" is made for the renderer "{renderer}", which is code of Ollama\'s own, and has no template '
        "that could take its place: use /api/generate with raw:true, or with a template",
    ),
    "audio_in_prompt": Row(400, "audio can't be sent with a raw prompt: use /api/chat"),
    # parameters
    "raw_with_template": Row(400, "raw mode does not support template, system, or context"),
    "top_logprobs": Row(400, "top_logprobs must be between 0 and 20"),
    "invalid_format": Row(500, 'invalid format: {raw}; expected "json" or a valid JSON Schema object'),
    "option_type": Row(500, 'option "{name}" must be of type {type}'),
    "option_strings": Row(500, 'option "{name}" must be of an array of strings'),
    "think_value": Row(400, 'invalid think value: {value} (must be "high", "medium", "low", "max", true, or false)'),
    "think_type": Row(400, 'think must be a boolean or string ("high", "medium", "low", "max", true, or false)'),
    "duration": Row(400, "time: {problem}"),
    "keep_alive_type": Row(400, "Unsupported type: '{type}'"),
    # embeddings
    "invalid_input": Row(400, "invalid input type"),
    "input_too_long": Row(400, "the input length exceeds the context length"),
    "nothing_left": Row(400, "input after truncation exceeds maximum context length"),
    "not_a_number": Row(400, "embedding contains NaN or Inf values"),
}


class Refusal(errors.InvalidRequestError):
    """A row of `ROWS`, filled in: its own status wins over every table."""

    def __init__(self, row: Row, message: str) -> None:
        super().__init__(message)
        self.row = row


def refusal(name: str, /, **facts: object) -> Refusal:
    row = ROWS[name]
    return Refusal(row, row.text.format(**facts))


# Texts quote what the client sent, which may be megabytes.
_TEXT_LIMIT = 4000

_CONTEXT = (
    "the prompt is longer than the context length currently available to the model; shorten the prompt, adjust the "
    "context length in settings, or use a model with a longer context length"
)
_BUSY = "server busy, please try again.  maximum pending requests exceeded"


def _same(error: errors.OprelError) -> str:
    return error.message


def _memory(error: errors.OprelError) -> str:
    needed = getattr(error, "needed_bytes", None)
    available = getattr(error, "available_bytes", None)
    if needed is None or available is None:
        return f"model requires more system memory: {error.message}"
    return (
        f"model requires more system memory ({needed / 2**30:.1f} GiB) than is available ({available / 2**30:.1f} GiB)"
    )


class Kind(Struct, frozen=True):
    status: int
    text: Callable[[errors.OprelError], str] = _same


KINDS: Mapping[str, Kind] = {
    "invalid_request": Kind(400),
    "unsupported": Kind(400),
    "template": Kind(500),
    "invalid_name": Kind(400, lambda error: ROWS["invalid_model_name"].text),
    "too_large": Kind(413),
    "context_length": Kind(400, lambda error: _CONTEXT),
    "authentication": Kind(401),
    "permission": Kind(403),
    "busy": Kind(503, lambda error: _BUSY),
    "client_gone": Kind(499, lambda error: "request canceled"),
    "memory": Kind(500, _memory),
    "driver_unavailable": Kind(400),
    "engine_start": Kind(500),
    "engine_failed": Kind(500, lambda error: f"an error was encountered while running the model: {error.message}"),
    "engine_timeout": Kind(500, lambda error: f"an error was encountered while running the model: {error.message}"),
    "backend": Kind(500),
    "store": Kind(500),
    "damaged": Kind(500),
    "no_space": Kind(507),
    "source": Kind(500),
    "config": Kind(500),
    "internal": Kind(500),
}

# The four texts for a model that isn't there: chosen by the endpoint.
_NOT_FOUND: Mapping[Endpoint, str] = {
    "embed": "no_such_model_pull_first",
    "embeddings": "no_such_model_pull_first",
}

# Rows that an endpoint words otherwise than `KINDS`: (endpoint, kind) -> row.
_EXCEPTIONS: Mapping[tuple[Endpoint, str], Row] = {
    ("embed", "context_length"): ROWS["input_too_long"],
    ("embeddings", "context_length"): Row(500, ROWS["input_too_long"].text),
    ("create", "not_found"): Row(500, "pull model manifest: file does not exist"),
    ("pull", "not_found"): Row(500, "pull model manifest: file does not exist"),
}

JSON = b"application/json; charset=utf-8"


class OllamaErrors:
    """The renderer for one request. `is_streaming`: set once a stream was promised and its engine asked; an error
    before the first line is then sent as Ollama's stream writer does, without a charset."""

    def __init__(self, endpoint: Endpoint = "other") -> None:
        self.endpoint: Endpoint = endpoint
        self.is_streaming = False

    def whole(self, error: errors.OprelError) -> tuple[Head, bytes]:
        status, text = self.said(error)
        body = _body(text)
        content_type = b"application/json" if self.is_streaming else JSON
        headers = [(b"content-type", content_type), (b"content-length", b"%d" % len(body))]
        if isinstance(error, errors.BusyError):
            headers.append((b"retry-after", b"%d" % max(1, round(error.retry_after_s))))
        return Head(status, tuple(headers)), body

    def chunk(self, error: errors.OprelError) -> bytes:
        return _body(self.said(error)[1]) + b"\n"

    def said(self, error: errors.OprelError) -> tuple[int, str]:
        """The status and text of `error` at this endpoint."""
        if isinstance(error, Refusal):
            return error.row.status, error.message
        if (row := _EXCEPTIONS.get((self.endpoint, error.kind))) is not None:
            return row.status, row.text
        if isinstance(error, errors.ModelNotFoundError):
            row = ROWS[_NOT_FOUND.get(self.endpoint, "no_such_model")]
            return row.status, row.text.format(name=error.model)
        if isinstance(error, errors.UnsupportedError) and error.capability == "embed":
            return ROWS["not_for_embedding"].status, ROWS["not_for_embedding"].text
        kind = KINDS.get(error.kind, KINDS["internal"])
        return kind.status, kind.text(error)


def _body(text: str) -> bytes:
    shown = text if len(text) <= _TEXT_LIMIT else text[:_TEXT_LIMIT] + "…"
    return dumps({"error": shown})
