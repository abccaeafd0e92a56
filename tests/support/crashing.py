"""Death at any step that changes the disk: a real SIGKILL of a child process, or a simulated one in this process.

An action is a function of a test module, `action(folder, disk)`: it makes its store in `folder` over that disk and
does one thing. `tests/faults/test_store_crash.py` shows the use:

    with killer() as kill:
        for step in steps():                       # prepare a fresh folder for each
            if not kill("faults_actions:copy", folder, step):   # False: it came to its end
                break

`DyingDisk` does the same without a process: what comes at and after a step raises `Died`, as nothing happens any more
in a dead process.
"""

from __future__ import annotations

import errno
import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from oprel.store.disk import Disk

__all__ = ["STEPS", "Died", "DyingDisk", "Kill", "UnsyncedDisk", "killer", "steps"]

STEPS = tuple(name for name in vars(Disk) if not name.startswith("_") and name not in ("free_bytes", "total_bytes"))
"""Every method of the disk that changes it."""

MAX_STEPS = 400
Kill = Callable[..., bool]


class Died(BaseException):
    """Not an Exception, so that nothing handles it but clean-up, which can't change the disk either."""


class UnsyncedDisk(Disk):
    """Syncs nothing: where a process dies and not the machine, what it wrote stays. `support.power_loss` is about the
    machine."""

    def sync(self, descriptor: int) -> None:
        """Not needed."""

    def sync_folder(self, path: Path) -> None:
        """Not needed."""


class DyingDisk(UnsyncedDisk):
    """Lives for `steps_left` steps. A write that it dies in arrives by half. `links` False: as if every file were on
    another file system. `die` is what happens at the step; the default raises `Died`."""

    def __init__(self, steps_left: int, *, links: bool = True, die: Callable[[], None] | None = None) -> None:
        self.steps_left = steps_left
        self.steps_done = 0
        self.links = links
        self._die = die

    @property
    def is_dead(self) -> bool:
        return self.steps_left < 0

    def _step(self) -> bool:
        """Whether it dies here."""
        self.steps_left -= 1
        self.steps_done += self.steps_left >= 0
        return self.steps_left < 0

    def _end(self) -> None:
        if self._die is not None:
            self._die()
        raise Died

    def make_folder(self, path: Path, *, mode: int = 0o777) -> None:
        if path.is_dir():
            return
        self.make_folder(path.parent, mode=mode)
        self._stepped("mkdir", lambda: path.mkdir(mode=mode))
        self.sync_folder(path.parent)

    def write(self, descriptor: int, data: bytes | memoryview) -> None:
        if self.steps_left == 0 and len(data) > 1:
            os.write(descriptor, bytes(data)[: len(data) // 2])
        self._stepped("write", lambda: super(DyingDisk, self).write(descriptor, data))

    def write_at(self, descriptor: int, data: bytes | memoryview, offset: int) -> None:
        if self.steps_left == 0 and len(data) > 1:
            os.pwrite(descriptor, bytes(data)[: len(data) // 2], offset)
        self._stepped("write_at", lambda: super(DyingDisk, self).write_at(descriptor, data, offset))

    def _stepped(self, name: str, work: Callable[[], object]) -> object:
        if name in ("link", "clone") and not self.links:
            raise OSError(errno.EXDEV, "another file system")
        if self._step():
            self._end()
        return work()


def _counted(name: str) -> Callable[..., object]:
    def step(self: DyingDisk, *args: object, **kwargs: object) -> object:
        return self._stepped(name, lambda: getattr(UnsyncedDisk, name)(self, *args, **kwargs))

    return step


for _name in STEPS:
    if _name not in vars(DyingDisk):
        setattr(DyingDisk, _name, _counted(_name))


def steps() -> Iterator[int]:
    """0, 1, 2, … up to a number that no action should need."""
    yield from range(MAX_STEPS)
    raise AssertionError(f"it takes more than {MAX_STEPS} steps")


@contextmanager
def killer() -> Iterator[Kill]:
    """`kill("module:function", folder, step, links=True)`: runs the action in a process of its own that is killed at
    that step; False if it ended before. Any other end of it is an AssertionError with what it wrote."""
    process = subprocess.Popen(
        [sys.executable, "-c", "from support.crashing import _serve; _serve()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def kill(action: str, folder: Path, step: int, *, links: bool = True) -> bool:
        print(action, step, int(links), folder, file=process.stdin, flush=True)
        code = int(process.stdout.readline())  # type: ignore[union-attr]  # it is a pipe
        assert code in (0, -signal.SIGKILL), f"{action} ended with {code}"
        return code != 0

    try:
        yield kill
    finally:
        process.stdin.close()
        process.stdout.close()
        assert process.wait(30) == 0


def _serve() -> None:
    """One fork for each line: forking a test process, which has threads, isn't safe."""
    for line in sys.stdin:
        action, step, links, folder = line.rstrip("\n").split(" ", 3)
        module, function = action.split(":")
        run = getattr(importlib.import_module(module), function)
        child = os.fork()
        if child:
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
            continue
        disk = DyingDisk(int(step), links=links == "1", die=lambda: os.kill(os.getpid(), signal.SIGKILL))
        try:
            run(Path(folder), disk)
        except BaseException:
            sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]  # there is one
            os._exit(1)
        os._exit(0)
