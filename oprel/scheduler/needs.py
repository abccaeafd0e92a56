"""What a model can be asked for: from its metadata before anything is loaded, from its engine once it is there."""

from __future__ import annotations

from typing import Literal

from oprel.config import Settings
from oprel.drivers import Engine
from oprel.errors import ModelDamagedError, UnsupportedError
from oprel.schema import LoadOptions, Model

__all__ = ["NEEDS", "Need", "check_engine", "check_model", "check_undamaged"]

Need = Literal["chat", "complete", "embed", "rerank", "load"]
NEEDS = ("chat", "complete", "embed", "rerank", "load")


def check_undamaged(model: Model) -> None:
    if model.damage is not None:
        raise ModelDamagedError(f"{model.name!r} can't be loaded: {model.damage}", model=model.name)


def check_model(model: Model, need: str, *, load: LoadOptions, settings: Settings) -> None:
    """Raises UnsupportedError (its `capability` is the need) where the metadata tells already. A model whose
    capabilities aren't known (a remote one) is left to its engine."""
    if not model.capabilities or need == "load":
        return
    if need == "rerank":
        if model.pooling != "rank":
            raise _unsupported(model, need, "doesn't rank documents: choose a model that was made for it")
        return
    if need == "embed" and model.pooling == "rank":
        raise _unsupported(model, need, "ranks documents and makes no embeddings: choose an embedding model")
    if need == "embed":
        if not model.is_embedding:
            raise _unsupported(model, need, "makes text and no embeddings: choose an embedding model")
        return
    if "completion" not in model.capabilities:
        verb = "chat" if need == "chat" else "complete text"
        raise _unsupported(model, need, f"is an embedding model and can't {verb}: choose a text model")
    has_template = model.chat_form or load.chat_template or settings.chat_template
    if need == "chat" and model.format == "gguf" and not has_template:
        raise _unsupported(
            model, need, "has no chat template, and none is guessed: name one with chat_template, or use completion"
        )


def check_engine(model: Model, need: str, engine: Engine) -> None:
    """Raises UnsupportedError where the engine that was loaded can't do it."""
    if need != "load" and not getattr(engine.capabilities, need):
        raise _unsupported(model, need, f"doesn't support {need} on this engine", driver=engine.plan.driver)


def _unsupported(model: Model, need: str, what: str, *, driver: str | None = None) -> UnsupportedError:
    return UnsupportedError(f"{model.name!r} {what}", capability=need, model=model.name, driver=driver)
