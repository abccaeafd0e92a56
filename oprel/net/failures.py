"""What can go wrong between the quick client and an engine. Drivers translate these; users never see them as such."""

from __future__ import annotations

__all__ = ["AnswerTimeout", "BadAnswer", "BadCertificate", "CannotConnect", "ConnectionCut", "QuickError"]


class QuickError(Exception):
    """Base of all; the text is a sentence, without addresses' secrets (there are none in an address)."""


class CannotConnect(QuickError):
    """Nothing listens there, or it didn't take the connection in time. Nothing was sent."""


class BadCertificate(CannotConnect):
    """Who answered couldn't show that it is whom we meant; `why` is OpenSSL's reason. Nothing was sent."""

    def __init__(self, message: str, *, why: str) -> None:
        super().__init__(message)
        self.why = why


class ConnectionCut(QuickError):
    """The connection ended before the answer did: a dead engine, or our own `aclose`."""


class AnswerTimeout(QuickError):
    """No answer, or not all of it, within the time that the caller gave."""


class BadAnswer(QuickError):
    """The answer isn't HTTP, or is larger than it may be."""
