"""Becomes the engine, once it is sure that the engine can't outlive its parent.

Run as `python -I -S shim.py MODE PARENT_PID PRIVILEGES COMMAND…`: no site, nothing of Oprel, so that it costs a
few milliseconds. Modes: `signal` asks the kernel for SIGKILL when the parent ends, checks that it hasn't ended
already, and execs COMMAND in its own place (Linux). `watch` starts COMMAND as its child and kills its whole process
group when standard input, a pipe that only the parent holds open, reaches its end (macOS, which has no such signal).
PRIVILEGES is `none` to give up gaining any (setuid programs), or `keep`.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import sys

__all__: list[str] = []

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38


def main() -> None:
    mode, parent, privileges, *command = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux" and privileges == "none":
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    if mode == "watch":
        _watch(command)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # A parent that ended before the line above sends no signal any more.
    if os.getppid() != int(parent):
        sys.exit("the parent process has ended")
    _become(command)


def _prctl(option: int, value: int) -> None:
    import ctypes

    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        sys.exit(f"prctl({option}) failed: {os.strerror(ctypes.get_errno())}")


def _become(command: list[str]) -> None:
    # Python ignores these two, and what is ignored stays so in the program that is exec'd.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    try:
        os.execv(command[0], command)  # noqa: S606 - no shell is what we want
    except OSError as error:
        sys.stderr.write(f"cannot run {command[0]}: {error.strerror}\n")
        sys.stderr.flush()
        os._exit(127)


def _watch(command: list[str]) -> None:
    ended, ending = os.pipe()
    os.set_blocking(ending, False)
    signal.set_wakeup_fd(ending)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    pid = os.fork()
    if pid == 0:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        devnull = os.open(os.devnull, os.O_RDONLY)
        os.dup2(devnull, 0)
        _become(command)
    # TERM goes to the whole group: the engine acts on it, and this process stays to see the end of it.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # So that nobody waits for the end of the engine's log because of this process.
    for stream in (1, 2):
        os.close(stream)
    while True:
        ready, _, _ = select.select([0, ended], [], [])
        if 0 in ready and not os.read(0, 4096):
            os.killpg(0, signal.SIGKILL)
        if ended in ready:
            os.read(ended, 4096)
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                _end_alike(os.waitstatus_to_exitcode(status))


def _end_alike(code: int) -> None:
    """Ends as the engine did, so that the parent reads the engine's own status."""
    if code >= 0:
        os._exit(code)
    if -code != signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
    os._exit(128 - code)


if __name__ == "__main__":
    main()
