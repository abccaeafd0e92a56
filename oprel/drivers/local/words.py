"""What plans, logs and starts of local engines say in common."""

from __future__ import annotations

from typing import Literal

__all__ = ["SOCKET", "TEMPLATE", "Cause"]

# Words of a plan's command line that are known only when the engine is started.
SOCKET = "{socket}"
TEMPLATE = "{template}"

Cause = Literal["gpu", "memory", "model", "engine"]
"""Why an engine could not load a model, as `oprel.errors.EngineStartError` has it."""
