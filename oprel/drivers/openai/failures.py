"""What a remote says when it refuses or fails, and how its connection fails, each as one clear sentence.

No sentence holds a key, or an address: that is for the log and for `oprel plan`.
"""

from __future__ import annotations

import os
import socket
import ssl

from oprel.config.remotes import Remote
from oprel.drivers.upstream.failures import Failures, Told, retry_after_s, shortened
from oprel.errors import BusyError, EngineFailedError, OprelError
from oprel.net import BadAnswer, BadCertificate, CannotConnect, QuickError

__all__ = ["RemoteFailures", "RemoteGoneError"]

_BUSY = (429, 503, 529)
_GONE = (502,)
_SOON_S = 1.0


class RemoteGoneError(EngineFailedError):
    """It can't be reached, or the connection broke: another replica may answer, or this one a little later."""


class RemoteFailures(Failures):
    """For one remote; `id` is what it calls the model."""

    def __init__(self, remote: Remote, *, driver: str, model: str, id: str) -> None:
        super().__init__(driver, model, named=f"the remote {remote.name!r}")
        self._remote = remote
        self._id = id

    def answered(self, status: int, body: bytes, content_type: str = "", retry_after: str = "") -> OprelError:
        if status in (401, 403):
            return self._refused_key(status)
        if 300 <= status < 400:
            return self._failed(f"redirects (status {status}): set its url to where that leads, nothing is followed")
        is_page = content_type.startswith("text/html") or body.lstrip()[:1] == b"<"
        if status in _BUSY:
            return self._busy(status, self._said(body), retry_after, self._code(body))
        if status in _GONE:
            return RemoteGoneError(f"{self.named} isn't there: what stands before it says {status}", driver=self.driver)
        if is_page:
            return self._failed(
                f"answered a web page (status {status}) instead of the API: look at its url, which is what an OpenAI "
                "client would be given and mostly ends with /v1"
            )
        if status == 404:
            return self._not_there(self._said(body) or "it doesn't say why")
        return super().answered(status, body, content_type, retry_after)

    def by_status(self, status: int, told: Told) -> OprelError:
        """For an error in the middle of a stream too."""
        if status in (401, 403):
            return self._refused_key(status)
        if status in _BUSY:
            return self._busy(status, told.text, f"{told.retry_after_s:g}", told.code)
        if status == 404:
            return self._not_there(told.text)
        return super().by_status(status, told)

    def lost(self, error: QuickError) -> EngineFailedError:
        """For a connection that failed."""
        if isinstance(error, BadCertificate):
            place = "ca_file" if self._remote.ca_file is None else "its ca_file"
            return self._failed(
                f"shows a certificate that isn't trusted ({error.why}): name its authority with {place}"
            )
        if isinstance(error, BadAnswer):
            return self._failed(f"doesn't speak HTTP as it should: {error}")
        if isinstance(error, CannotConnect):
            return RemoteGoneError(f"{self.named} can't be reached: {_reason(error)}", driver=self.driver)
        return RemoteGoneError(f"{self.named} broke off its answer: the connection was cut", driver=self.driver)

    def _refused_key(self, status: int) -> EngineFailedError:
        place = self._remote.key_place
        if place is None:
            return self._failed(f"wants a key (status {status}) and has none: name one with key_env or key_file")
        return self._failed(f"refuses its key (status {status}): look at {place}")

    def _not_there(self, text: str) -> EngineFailedError:
        return self._failed(
            f"doesn't have the model {self._id!r}, or its url isn't that of an API (status 404: {text})"
        )

    def _busy(self, status: int, text: str, retry_after: str, code: str) -> OprelError:
        if "quota" in text.lower() or code == "insufficient_quota":
            return self._failed(f"has no quota left: {text or code}")  # waiting doesn't help
        wait_s = retry_after_s(retry_after)
        said = f": {text}" if text else ""
        return BusyError(
            f"{self.named} is busy (status {status}{said}); try again",
            retry_after_s=_SOON_S if wait_s is None else wait_s,
        )

    def _said(self, body: bytes) -> str:
        """What it said, for a sentence of ours."""
        error = self.error_in(body)
        return shortened(error.message or "") if error is not None else ""

    def _code(self, body: bytes) -> str:
        error = self.error_in(body)
        return str(error.code or "") if error is not None else ""

    def _failed(self, text: str) -> EngineFailedError:
        return EngineFailedError(f"{self.named} {text}", driver=self.driver)


def _reason(error: CannotConnect) -> str:
    """Without the address, which asyncio puts into the text."""
    cause = error.__cause__
    if isinstance(cause, ssl.SSLError):
        return f"it doesn't speak TLS as it should ({(cause.reason or 'no reason given').replace('_', ' ').lower()})"
    if isinstance(cause, socket.gaierror):
        return "its host name isn't known"
    if isinstance(cause, OSError):
        return os.strerror(cause.errno) if cause.errno else "none of its addresses takes connections"
    return "it doesn't take the connection in time"
