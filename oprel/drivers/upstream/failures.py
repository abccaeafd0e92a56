"""What engines say when they refuse or fail, and what that is in our tree: one table.

llama-server answers some client errors with 500, so that the text decides before the status does.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import NamedTuple

import msgspec

from oprel.drivers.upstream.wire import DetailRow, ErrorBody, WireError
from oprel.errors import (
    BusyError,
    ContextLengthError,
    EngineFailedError,
    InvalidRequestError,
    OprelError,
    UnsupportedError,
)

__all__ = ["Failures", "Told", "garbage", "quoted", "retry_after_s", "shortened"]

_MAX_TEXT = 300
_MAX_SEARCHED = 4096
_MAX_QUOTE = 80


class Told(NamedTuple):
    """What an engine said, with all that a row needs to make an error of it. `code` is its word for the error,
    `retry_after_s` when it may be asked again."""

    driver: str
    named: str
    model: str
    text: str
    numbers: tuple[int | None, int | None]
    code: str = ""
    retry_after_s: float = 1.0


def _context_length(told: Told) -> OprelError:
    prompt, context = told.numbers
    if prompt is None or context is None:
        text = "prompt and answer are longer than the context; shorten them, or load the model with a longer context"
    else:
        text = (
            f"the prompt has {prompt} tokens, but the context holds {context}; "
            "shorten it, or load the model with a longer context"
        )
    return ContextLengthError(text, prompt_tokens=prompt, context_tokens=context)


def _unsupported(capability: str, what: str) -> Callable[[Told], OprelError]:
    def make(told: Told) -> OprelError:
        text = f"{told.model} on {told.named} {what}"
        return UnsupportedError(text, capability=capability, model=told.model, driver=told.driver)

    return make


def _invalid(param: str | None = None) -> Callable[[Told], OprelError]:
    def make(told: Told) -> OprelError:
        return InvalidRequestError(f"{told.named} refused the request: {told.text}", param=param)

    return make


def _busy(told: Told) -> OprelError:
    return BusyError(
        f"{told.named} can't take the request now ({told.text}); try again", retry_after_s=told.retry_after_s
    )


# First match wins; groups named prompt and context are token counts.
_BY_TEXT: tuple[tuple[re.Pattern[str], Callable[[Told], OprelError]], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE | re.DOTALL), make)
    for pattern, make in (
        (r"request \((?P<prompt>\d+) tokens\) exceeds the available context size \((?P<context>\d+)", _context_length),
        (r"input \((?P<prompt>\d+) tokens\) is too large to process.*batch size: (?P<context>\d+)", _context_length),
        (r"input \((?P<prompt>\d+) tokens\) is larger than the max context size", _context_length),
        # vLLM stops counting once it is too long.
        (r"maximum context length is (?P<context>\d+) tokens.*contains (at least|\d+ characters)", _context_length),
        (r"maximum context length is (?P<context>\d+) tokens.*?(?P<prompt>\d+)", _context_length),
        (
            r"input \((?P<prompt>\d+) tokens\) is longer than the model.s context length \((?P<context>\d+)",
            _context_length,
        ),
        (r"context size has been exceeded|exceeds the (available|maximum) context", _context_length),
        (r"image input is not supported|does not support multimodal", _unsupported("vision", "takes no images")),
        (r"audio input is not supported", _unsupported("audio", "takes no audio")),
        (r"does not support embeddings", _unsupported("embed", "makes no embeddings")),
        (r"does not support logits computation", _unsupported("chat", "makes embeddings only")),
        (r"infill is not supported", _unsupported("infill", "can't fill in the middle of a text")),
        (r"tools? (param )?requires? --jinja|template does not support tools", _unsupported("tools", "has no tools")),
        (r"failed to parse grammar|failed to initialize samplers|grammar error", _invalid("response_format")),
        (r"json.?schema|unrecognized type|response_format", _invalid("response_format")),
        (r"failed to parse messages|missing 'role'|'messages' is required|invalid 'content'", _invalid("messages")),
        (r"tool.?call.*(argument|json)|failed to parse tool call", _invalid("messages")),
        (r"tool_choice|'?tools'?\b.*(must|invalid|expected)", _invalid("tools")),
        (r"failed to (load|decode) image|invalid (image|url|base64)", _invalid("messages")),
        (r"\[json\.exception\.", _invalid()),
        (r"jinja|chat template|template.*(error|exception)|raise_exception", _invalid("messages")),
        (r"prompt contains invalid tokens", _invalid("prompt")),
        (r"loading model", _busy),
    )
)


class Failures:
    """Makes errors for one engine; `model` is the display name, `named` what sentences call the engine."""

    def __init__(self, driver: str, model: str, *, named: str | None = None) -> None:
        self.driver = driver
        self.model = model
        self.named = named or driver

    def answered(self, status: int, body: bytes, content_type: str = "", retry_after: str = "") -> OprelError:
        """For an answer that isn't the stream or data that was asked for; `retry_after` is its header."""
        error = self.error_in(body)
        if error is not None:
            return self.told(status, error, retry_after)
        kind = f" ({content_type})" if content_type else ""
        why = "not a stream" if status == 200 else "no error that can be read"
        return self.nonsense(body, f"status {status}{kind}, {why}")

    def told(self, status: int, error: WireError | str, retry_after: str = "") -> OprelError:
        """For an error object, in a body or in the middle of a stream."""
        wire = WireError(error) if isinstance(error, str) else error
        message, code = wire.message or "", str(wire.code or "")
        told = Told(
            self.driver,
            self.named,
            self.model,
            shortened(message),
            (wire.n_prompt_tokens, wire.n_ctx),
            code,
            retry_after_s(retry_after) or 1.0,
        )
        if wire.type == "exceed_context_size_error":
            return _context_length(told)
        for pattern, make in _BY_TEXT:
            if match := pattern.search(message, 0, _MAX_SEARCHED):
                return make(told._replace(numbers=_numbers(told, match)))
        if code == "context_length_exceeded":
            return _context_length(told)
        return self.by_status(int(code) if re.fullmatch(r"[45]\d\d", code) else status, told)

    def error_in(self, body: bytes) -> WireError | None:
        """The error that a body holds, in whichever shape; None where there is none that can be read."""
        try:
            parsed = msgspec.json.decode(body, type=ErrorBody)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        if parsed.error is not None:
            return WireError(parsed.error) if isinstance(parsed.error, str) else parsed.error
        text = _detail(parsed.detail) or parsed.message
        return None if text is None else WireError(text, parsed.code, parsed.type)

    def nonsense(self, data: bytes, why: str) -> EngineFailedError:
        return EngineFailedError(f"{self.named} answered nonsense ({why}): {quoted(data)}", driver=self.driver)

    def incomplete(self) -> EngineFailedError:
        return EngineFailedError(f"{self.named} ended its answer without a finish", driver=self.driver)

    def by_status(self, status: int, told: Told) -> OprelError:
        """For what no text decided."""
        if status in (429, 503):
            return _busy(told)
        if status == 501:
            return _unsupported("request", f"can't do this: {told.text}")(told)
        if status in (400, 409, 413, 415, 422):
            return _invalid()(told)
        # 401, 403, 404, 405: ours to get right, not the client's.
        return EngineFailedError(f"{told.named} failed with status {status}: {told.text}", driver=told.driver)


def garbage(driver: str, quote: str, why: str) -> EngineFailedError:
    return EngineFailedError(f"{driver} answered nonsense ({why}): {quote}", driver=driver)


def quoted(data: bytes) -> str:
    """A short, printable quote of what an engine sent."""
    text = data[: _MAX_QUOTE * 4].decode("utf-8", "replace")
    return repr(text if len(text) <= _MAX_QUOTE else text[:_MAX_QUOTE] + "…")


def shortened(text: str) -> str:
    """One line, for a sentence of ours."""
    line = " ".join(text.split()) or "no reason given"
    return line if len(line) <= _MAX_TEXT else line[:_MAX_TEXT] + "…"


def retry_after_s(header: str, *, now: float | None = None) -> float | None:
    """Seconds that a Retry-After header asks for (RFC 9110, section 10.2.3: a number, or a date); None: it doesn't."""
    if re.fullmatch(r"\s*\d{1,9}(\.\d+)?\s*", header):
        return float(header)
    try:
        moment = parsedate_to_datetime(header).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
    return max(0.0, moment - (time.time() if now is None else now))


def _detail(detail: str | tuple[DetailRow, ...] | None) -> str | None:
    if not isinstance(detail, tuple):
        return detail
    return "; ".join(f"{'.'.join(map(str, row.loc))}: {row.msg}" for row in detail) or None


def _numbers(told: Told, match: re.Match[str]) -> tuple[int | None, int | None]:
    found = match.groupdict()
    prompt, context = found.get("prompt"), found.get("context")
    return (int(prompt) if prompt else told.numbers[0], int(context) if context else told.numbers[1])
