"""HTTP clients: the quick one for engines; `oprel.net.outside` holds the hardened one for what leaves the machine."""

from oprel.net.failures import AnswerTimeout, BadAnswer, CannotConnect, ConnectionCut, QuickError
from oprel.net.quick import QuickClient, QuickResponse, QuickStream

__all__ = [
    "AnswerTimeout",
    "BadAnswer",
    "CannotConnect",
    "ConnectionCut",
    "QuickClient",
    "QuickError",
    "QuickResponse",
    "QuickStream",
]
