"""How `/v1/responses` says that something went wrong: as the other endpoints do until a stream has begun, and then by
its last two events."""

from __future__ import annotations

import msgspec

from oprel.dialects.openai.errors import OpenAIErrors
from oprel.dialects.openai.responses.output import Writer
from oprel.dialects.openai.responses.wire import Problem, ResponseAnswer
from oprel.dialects.openai.wire import ErrorAnswer
from oprel.errors import OprelError

__all__ = ["ResponseErrors", "problem"]

_PARAMS = {
    "vision": "input",
    "audio": "input",
    "thinking": "reasoning.effort",
    "json_schema": "text.format",
    "grammar": "text.format",
    "logprobs": "top_logprobs",
    "max_tokens": "max_output_tokens",
}


class ResponseErrors(OpenAIErrors):
    """For one request; it is told of the stream when that begins."""

    def __init__(self) -> None:
        super().__init__("input", _PARAMS)
        self._writer: Writer | None = None
        self._answer: ResponseAnswer | None = None

    def streaming(self, writer: Writer, answer: ResponseAnswer) -> None:
        self._writer, self._answer = writer, answer

    def chunk(self, error: OprelError) -> bytes:
        if self._writer is None or self._answer is None:
            return super().chunk(error)
        told = msgspec.json.decode(self.whole(error)[1], type=ErrorAnswer).error
        self._writer.add("error", code=told.code, message=told.message, param=told.param)
        self._answer.status = "failed"
        self._answer.error = problem(error)
        self._writer.add("response.failed", response=self._answer)
        return self._writer.taken()

    def _param(self, error: OprelError) -> str | None:
        """What is found out from the chat request that it became is told in the words of what was sent."""
        param = super()._param(error)
        if param is None or param.startswith("messages"):
            return param and "input"
        return _PARAMS.get(param, param)


def problem(error: OprelError) -> Problem:
    """Of the codes that are published, these are the ones that can happen here."""
    return Problem("invalid_prompt" if error.kind == "context_length" else "server_error", error.message)
