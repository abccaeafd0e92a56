"""`oprel run`, `generate` and `embed`: what models are for."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from oprel.cli.common import add_address, add_quality, client_of, pull_with_bar, reach_server, settings_of
from oprel.cli.terminal import Terminal

__all__ = ["add_commands"]


def add_commands(commands: Any) -> None:
    run = commands.add_parser("run", help="ask a model; without a prompt, talk with it")
    run.add_argument("model", metavar="MODEL", help="a model's name, an alias, or a GGUF file's path")
    run.add_argument("prompt", nargs="*", metavar="PROMPT", help="what is piped in is appended")
    run.add_argument("--stream", action=argparse.BooleanOptionalAction, default=True, help="word by word (default)")
    _add_sampling(run)
    add_quality(run)
    add_address(run)
    run.set_defaults(command=_run)

    generate = commands.add_parser("generate", help="one answer on stdout, nothing else")
    generate.add_argument("model", metavar="MODEL")
    generate.add_argument("prompt", nargs="*", metavar="PROMPT", help="what is piped in is appended")
    generate.add_argument("--stream", action=argparse.BooleanOptionalAction, default=False, help="word by word")
    _add_sampling(generate)
    add_quality(generate)
    add_address(generate)
    generate.set_defaults(command=_generate)

    embed = commands.add_parser("embed", help="embeddings, one JSON array a line")
    embed.add_argument("model", metavar="MODEL")
    embed.add_argument("texts", nargs="*", metavar="TEXT", help="without any, each line that is piped in is one")
    embed.add_argument("--dimensions", type=int, metavar="N", help="only the first N dimensions")
    embed.add_argument("--json", action="store_true", help="one JSON object with all")
    add_address(embed)
    embed.set_defaults(command=_embed)


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-tokens", type=int, metavar="N", help="tokens of an answer at most (512)")
    parser.add_argument("--temperature", type=float, metavar="T", help="the model's own, else 0.7")
    parser.add_argument("--system", metavar="TEXT", help="what the model is told to be")


def _run(arguments: argparse.Namespace, terminal: Terminal) -> None:
    from oprel.cli.conversation import Conversation, talk

    prompt = _prompt(arguments)
    if prompt is None and not sys.stdin.isatty():
        raise _nothing_to_say()
    settings = settings_of(arguments)
    model = _model(arguments, settings, terminal)
    with client_of(settings, reach_server(settings, terminal)) as client:
        _fetch_if_missing(client, model, terminal, allow_low_quality=arguments.allow_low_quality)
        conversation = Conversation(client, model, arguments)
        if prompt is None:
            talk(conversation, terminal)
        else:
            _say(conversation, prompt, arguments, terminal)


def _generate(arguments: argparse.Namespace, terminal: Terminal) -> None:
    """Nothing but the answer on stdout; what else there is to say goes to stderr."""
    from oprel.cli.conversation import Conversation

    prompt = _prompt(arguments)
    if prompt is None:
        raise _nothing_to_say()
    settings = settings_of(arguments)
    model = _model(arguments, settings, terminal)
    with client_of(settings, reach_server(settings, terminal)) as client:
        _fetch_if_missing(client, model, terminal, allow_low_quality=arguments.allow_low_quality)
        _say(Conversation(client, model, arguments), prompt, arguments, terminal)


def _embed(arguments: argparse.Namespace, terminal: Terminal) -> None:
    import json

    texts = list(arguments.texts)
    if not texts and not sys.stdin.isatty():
        texts = [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not texts:
        raise _nothing_to_say()
    settings = settings_of(arguments)
    model = _model(arguments, settings, terminal)
    with client_of(settings, reach_server(settings, terminal)) as client:
        _fetch_if_missing(client, model, terminal)
        answer = client.embed(model, texts, dimensions=arguments.dimensions)
    if arguments.json:
        terminal.json(answer.model_dump(mode="json", exclude_unset=True))
        return
    for vector in answer.embeddings:
        terminal.answer(json.dumps(vector))


def _say(conversation: Any, prompt: str, arguments: argparse.Namespace, terminal: Terminal) -> None:
    if arguments.stream:
        for piece in conversation.ask(prompt):
            terminal.piece(piece)
        terminal.answer("")
    else:
        terminal.answer("".join(conversation.ask(prompt)))


def _prompt(arguments: argparse.Namespace) -> str | None:
    """The words given, then what is piped in; None: neither."""
    given = " ".join(arguments.prompt)
    piped = "" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.read().strip()
    return "\n\n".join(part for part in (given, piped) if part) or None


def _nothing_to_say() -> Exception:
    from oprel.errors import ConfigError

    return ConfigError("there is nothing to ask: give it as an argument, or pipe it in")


def _model(arguments: argparse.Namespace, settings: Any, terminal: Terminal) -> str:
    """The name to ask for: a path's model is made first, a quantization is part of the name."""
    from oprel.cli.files import import_file, is_file_name
    from oprel.errors import InvalidRequestError
    from oprel.store import is_low_quality, with_quantization

    quantization: str | None = getattr(arguments, "quantization", None)
    if is_file_name(arguments.model):
        if quantization is not None:
            raise InvalidRequestError("A file has the quantization that it has: leave out --quantization.")
        return import_file(arguments.model, settings, terminal)
    if quantization is not None and is_low_quality(quantization) and not arguments.allow_low_quality:
        raise InvalidRequestError(
            f"{quantization} loses much of the model: choose Q3 or better, or say --allow-low-quality."
        )
    return with_quantization(arguments.model, quantization)


def _fetch_if_missing(client: Any, model: str, terminal: Terminal, *, allow_low_quality: bool = False) -> None:
    from oprel.errors import ModelNotFoundError

    try:
        client.show(model)
    except ModelNotFoundError:
        pull_with_bar(client, model, terminal, allow_low_quality=allow_low_quality)
