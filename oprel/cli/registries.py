"""Registries of models: `push`, `login`, `logout`."""

from __future__ import annotations

import argparse
import getpass
import sys
from typing import Any

from oprel.cli.common import add_address, client_of, reach_server, settings_of
from oprel.cli.terminal import Terminal

__all__ = ["add_commands"]

_MAX_PASSWORD_CHARS = 16_384


def add_commands(commands: Any) -> None:
    push = commands.add_parser("push", help="bring a model to the registry that its name says")
    push.add_argument("model", metavar="MODEL")
    push.add_argument("--insecure", action="store_true", help="the registry is asked by plain http, and may be inside")
    add_address(push)
    push.set_defaults(command=_push)

    login = commands.add_parser("login", help="keep a user and password for a registry")
    login.add_argument("registry", metavar="HOST")
    login.add_argument("-u", "--user", metavar="USER", help="asked for if it isn't given")
    login.add_argument("--password-stdin", action="store_true", help="read the password from standard input")
    login.add_argument("--insecure", action="store_true", help="the registry is asked by plain http")
    login.set_defaults(command=_login)

    logout = commands.add_parser("logout", help="forget the user and password for a registry")
    logout.add_argument("registry", metavar="HOST")
    logout.set_defaults(command=_logout)


def _push(arguments: argparse.Namespace, terminal: Terminal) -> None:
    settings = settings_of(arguments)
    with client_of(settings, reach_server(settings, terminal)) as client, terminal.bar() as bar:
        for part in client.push(arguments.model, insecure=arguments.insecure, stream=True) or ():
            bar.show(part.status or "", part.completed, part.total)


def _login(arguments: argparse.Namespace, terminal: Terminal) -> None:
    """Tries the login first: a wrong one isn't kept."""
    import asyncio

    from oprel.server.compose import logins_file
    from oprel.sources.registry import Login, Logins, Reach, check_login

    settings = settings_of(arguments)
    login = Login(_user(arguments), _password(arguments))
    reach = Reach(is_insecure=arguments.insecure, trusted=settings.trusted_registries, login=login)
    asyncio.run(check_login(arguments.registry, reach))
    Logins(logins_file(settings)).keep(arguments.registry, login)
    terminal.remark(f"logged in to {arguments.registry} as {login.user}")


def _logout(arguments: argparse.Namespace, terminal: Terminal) -> None:
    from oprel.server.compose import logins_file
    from oprel.sources.registry import Logins

    was_there = Logins(logins_file(settings_of(arguments))).forget(arguments.registry)
    terminal.remark(
        f"logged out of {arguments.registry}" if was_there else f"no login at {arguments.registry} was kept"
    )


def _user(arguments: argparse.Namespace) -> str:
    from oprel.errors import ConfigError

    if arguments.user:
        return str(arguments.user)
    if arguments.password_stdin or not sys.stdin.isatty():
        raise ConfigError("say who you are with --user")
    return input("user: ")


def _password(arguments: argparse.Namespace) -> str:
    from oprel.errors import ConfigError

    if arguments.password_stdin:
        password = sys.stdin.read(_MAX_PASSWORD_CHARS).rstrip("\r\n")
    elif sys.stdin.isatty():
        password = getpass.getpass("password: ")
    else:
        raise ConfigError("there is no terminal to ask for the password: use --password-stdin")
    if not password:
        raise ConfigError("the password is empty")
    return password
