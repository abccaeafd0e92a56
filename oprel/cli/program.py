"""The parser, made of the groups of commands, and the one place where a failure becomes a sentence and a code."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from oprel.cli import asking, creating, drivers, finding, machine, models, registries, serving, upkeep, versions
from oprel.cli.terminal import Terminal
from oprel.errors import ConfigError, InvalidNameError, OprelError
from oprel.version import __version__

__all__ = ["run"]

DONE, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130


def run(argv: Sequence[str]) -> int:
    parser = _parser()
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as ended:  # argparse has said what is wrong, or shown its help
        return ended.code if isinstance(ended.code, int) else WRONG_USAGE
    if arguments.command is None:
        parser.print_help()
        return WRONG_USAGE
    terminal = Terminal(quiet=arguments.quiet, verbose=arguments.verbose)
    try:
        return _guarded(arguments, terminal)
    except BrokenPipeError:
        # Whoever read our output has gone (`oprel list | head -1`): nothing is left to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE


def _guarded(arguments: argparse.Namespace, terminal: Terminal) -> int:
    try:
        code: int | None = arguments.command(arguments, terminal)
        sys.stdout.flush()
        return code or DONE
    except KeyboardInterrupt:
        terminal.end_line()
        return INTERRUPTED
    except OprelError as error:
        terminal.fail(error)
        return WRONG_USAGE if isinstance(error, ConfigError | InvalidNameError) else FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="oprel", description="A local model server for every OpenAI and Ollama client, on any engine."
    )
    parser.add_argument("--version", action="version", version=f"oprel {__version__}")
    _add_loudness(parser, quiet=False, verbose=False)
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for group in (serving, asking, models, finding, creating, versions, upkeep, registries, machine, drivers):
        group.add_commands(commands)
    for command in set(commands.choices.values()):  # an alias is the same command
        # After the command as well; not given there, what stood before it counts.
        _add_loudness(command, quiet=argparse.SUPPRESS, verbose=argparse.SUPPRESS)
    return parser


def _add_loudness(parser: argparse.ArgumentParser, *, quiet: object, verbose: object) -> None:
    parser.add_argument("-v", "--verbose", action="store_true", default=verbose, help="tell more, tracebacks included")
    parser.add_argument("-q", "--quiet", action="store_true", default=quiet, help="no progress, no remarks")
