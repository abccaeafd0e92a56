"""A program that is asked on its command line: what it says, within limits, and nothing of it left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from typing import IO

from msgspec import Struct

from oprel.drivers.children.environment import built_environment
from oprel.drivers.children.shim_command import shim_command

__all__ = ["NoAnswerError", "Said", "ask"]


class NoAnswerError(Exception):
    """Why a program said nothing, in the words that follow its name."""


class Said(Struct, frozen=True):
    """`code` is the program's exit status, `text` what it wrote to both streams, cut at the limit."""

    code: int
    text: str

    @property
    def last_line(self) -> str:
        """What a failed program says last, without the blank lines; or how it ended, where it says nothing."""
        lines = [line.strip() for line in self.text.splitlines() if line.strip()]
        return lines[-1] if lines else f"it ended with code {self.code}"


def ask(
    command: Sequence[str],
    *,
    timeout_s: float,
    max_bytes: int = 1024 * 1024,
    may_gain_privileges: bool = False,
    question: str = "",
) -> Said:
    """Runs `command` (its first word an absolute path) to its end, in a built environment. Blocks for `timeout_s` at
    the most, and kills what it started. Raises NoAnswerError, which names the `question`."""
    with tempfile.TemporaryFile() as output:
        code = _run(shim_command(command, may_gain_privileges=may_gain_privileges), output, timeout_s)
        if code is None:
            raise NoAnswerError(" ".join(f"doesn't answer {question} within {timeout_s:g} s".split()))
        output.seek(0)
        return Said(code, output.read(max_bytes).decode("utf-8", "replace"))


def _run(command: Sequence[str], output: IO[bytes], timeout_s: float) -> int | None:
    """The exit status; None where it was killed, for time."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=built_environment(),
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        raise NoAnswerError(f"can't be run: {error.strerror}") from error
    with process:
        try:
            return process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
