"""Where the lines of the log go, and what each of them carries."""

from __future__ import annotations

import logging
import os
import sys
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path

from oprel.errors import ConfigError
from oprel.server.gate import request_id

__all__ = ["configure_logging", "with_request_id"]

MAX_BYTES = 10 << 20


def configure_logging(*, verbose: bool, log_file: Path | None = None) -> None:
    """Lines of the log go to stderr, or to a file: past 10 MiB that becomes `FILE.1`, in place of an older one. Each
    carries the id of the request it is about. Raises ConfigError."""
    handler = logging.StreamHandler(sys.stderr) if log_file is None else _log_file(log_file)
    handler.addFilter(with_request_id)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s [%(request)s] %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("oprel").setLevel(logging.DEBUG if verbose else logging.INFO)


def _log_file(path: Path) -> logging.Handler:
    try:
        return _OwnersLog(path, maxBytes=MAX_BYTES, backupCount=1, encoding="utf-8", errors="replace")
    except OSError as problem:
        raise ConfigError(f"the log can't be written to {path}: {problem.strerror}") from problem


def with_request_id(record: logging.LogRecord) -> bool:
    """A filter that lets all pass: `record.request` is the id of the request that the line is about."""
    record.request = request_id.get()
    return True


class _OwnersLog(RotatingFileHandler):
    """Readable by its owner only, the older part too."""

    def _open(self) -> TextIOWrapper:
        return open(self.baseFilename, "a", encoding=self.encoding, errors=self.errors, opener=_opened)


def _opened(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
