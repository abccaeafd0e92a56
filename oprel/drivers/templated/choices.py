"""What a request chooses among its tools."""

from __future__ import annotations

from oprel.errors import InvalidRequestError, UnsupportedError
from oprel.schema import ChatRequest, NamedTool, must_call
from oprel.templates.chat import used_tools

__all__ = ["check_choice"]


def check_choice(request: ChatRequest, *, driver: str, model: str) -> None:
    """Refuses a choice of what isn't there, and a format beside a call that must be made."""
    choice = request.tool_choice
    if choice == "required" and not request.tools:
        raise InvalidRequestError("tool_choice is 'required', but there are no tools", param="tool_choice")
    if isinstance(choice, NamedTool) and not used_tools(request):
        known = ", ".join(sorted(tool.name for tool in request.tools)) or "none"
        raise InvalidRequestError(
            f"tool_choice names {choice.name!r}, which isn't among the tools ({known})", param="tool_choice"
        )
    if must_call(request.tool_choice) and request.format is not None:
        raise UnsupportedError(
            f"{model} with a Go template on {driver} can't honour a format beside a call that must be made",
            capability="tools",
            param="response_format",
            driver=driver,
            model=model,
        )
