"""HTTP clients: the quick one for engines; `oprel.net.outside` holds the hardened one for what leaves the machine."""

from oprel.net.failures import AnswerTimeout, BadAnswer, BadCertificate, CannotConnect, ConnectionCut, QuickError
from oprel.net.quick import QuickClient, QuickResponse, QuickStream
from oprel.net.tls import tls_context

__all__ = [
    "AnswerTimeout",
    "BadAnswer",
    "BadCertificate",
    "CannotConnect",
    "ConnectionCut",
    "QuickClient",
    "QuickError",
    "QuickResponse",
    "QuickStream",
    "tls_context",
]
