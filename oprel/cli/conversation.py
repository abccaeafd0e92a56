"""A conversation with a model: its history, and the loop at a terminal."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from oprel.cli.terminal import Terminal
from oprel.errors import OprelError
from oprel.sdk.client import Client

__all__ = ["Conversation", "talk"]

_MAX_TOKENS = 512
_TEMPERATURE = 0.7
_HELP = """\
/bye, /exit, /quit   end
/reset               forget what was said
/?, /help            this
\"\"\"                  begin and end a text of several lines"""


class Conversation:
    """Remembers a turn when its answer is complete."""

    def __init__(self, client: Client, model: str, arguments: argparse.Namespace) -> None:
        self._client = client
        self._model = model
        self._system = arguments.system
        self._options = _options(client, model, arguments)
        self._said: list[dict[str, str]] = []

    def ask(self, prompt: str) -> Iterator[str]:
        system = [{"role": "system", "content": self._system}] if self._system else []
        turn = [*self._said, {"role": "user", "content": prompt}]
        answer: list[str] = []
        for part in self._client.chat(self._model, [*system, *turn], stream=True, options=self._options):
            if part.message.content:
                answer.append(part.message.content)
                yield part.message.content
        self._said = [*turn, {"role": "assistant", "content": "".join(answer)}]

    def forget(self) -> None:
        self._said = []


def _options(client: Client, model: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """What was asked for; else the model's own (left out of the request), else the documented numbers."""
    own = {line.split(None, 1)[0] for line in (client.show(model).parameters or "").splitlines() if line.strip()}
    asked = {"num_predict": arguments.max_tokens, "temperature": arguments.temperature}
    defaults = {"num_predict": _MAX_TOKENS, "temperature": _TEMPERATURE}
    chosen = {name: value if value is not None else defaults[name] for name, value in asked.items()}
    return {name: value for name, value in chosen.items() if asked[name] is not None or name not in own}


def talk(conversation: Conversation, terminal: Terminal) -> None:
    """Until /bye, the end of input, or Ctrl-C at the prompt; Ctrl-C in an answer ends the answer."""
    _enable_line_editing()
    terminal.remark("/? shows help, /bye ends")
    while (prompt := _read(terminal)) is not None:
        if prompt in ("/bye", "/exit", "/quit"):
            return
        if prompt in ("/?", "/help"):
            terminal.answer(_HELP)
        elif prompt == "/reset":
            conversation.forget()
            terminal.remark("forgotten")
        elif prompt.startswith("/"):
            terminal.remark(f"{prompt.split()[0]} is no command: /? shows them")
        elif prompt:
            _answer(conversation, prompt, terminal)


def _answer(conversation: Conversation, prompt: str, terminal: Terminal) -> None:
    try:
        for piece in conversation.ask(prompt):
            terminal.piece(piece)
        terminal.answer("\n")
    except KeyboardInterrupt:
        terminal.answer("")
    except OprelError as error:
        terminal.answer("")
        terminal.fail(error)


def _read(terminal: Terminal) -> str | None:
    """One turn; None at the end of input."""
    try:
        line = input(">>> ").strip()
        if not line.startswith('"""'):
            return line
        lines = [line[3:]]
        while not lines[-1].endswith('"""'):
            lines.append(input("... "))
    except (EOFError, KeyboardInterrupt):
        terminal.answer("")
        return None
    return "\n".join(lines).removesuffix('"""').strip()


def _enable_line_editing() -> None:
    try:
        import readline  # noqa: F401  # importing it is what gives input() editing and recall
    except ImportError:
        return
