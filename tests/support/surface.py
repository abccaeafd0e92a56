"""The whole server for tests that ask it anything: scripted engines, a real store to throw away, and no way outside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from oprel.config import Settings
from oprel.sources import Puller
from oprel.store import Catalog, Store
from support.servers import ScriptedServer, scripted_server
from support.tiny_gguf import CHAT_VALUES, EMBED_VALUES, write_tiny_gguf

__all__ = ["CHAT", "EMBED", "RANK", "surface_server"]

CHAT = "able"
EMBED = "mini"
RANK = "ranks"

_TEMPLATE = (
    "{% if tools %}{{ tools }}{% endif %}{% for m in messages %}{{ m.role }}: {{ m.content }}"
    "{% if m.tool_calls %}{{ m.tool_calls }}{% endif %}{% if m.reasoning_content %}<think>{{ m.reasoning_content }}"
    "</think>{% endif %}{% endfor %}{% if enable_thinking %}<think>{% endif %}"
)
_NOWHERE = "http://127.0.0.1:9"  # nobody listens on the port of `discard`


@contextmanager
def surface_server(folder: Path) -> Iterator[ScriptedServer]:
    """With the models CHAT (it thinks and calls tools), EMBED and RANK. Whatever would be fetched fails at once."""
    store = Store(folder / "models", state_dir=folder / "state")
    chat = {**CHAT_VALUES, "tokenizer.chat_template": _TEMPLATE}
    for name, values in ((CHAT, chat), (EMBED, EMBED_VALUES), (RANK, {**EMBED_VALUES, "bert.pooling_type": 4})):
        store.import_gguf(write_tiny_gguf(folder / f"{name}.gguf", values), name)
    catalog = Catalog(store)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("oprel.net.outside.getproxies", lambda: {"all": _NOWHERE})
        settings = Settings(state_dir=folder / "state")
        with scripted_server(catalog=catalog, puller=Puller(catalog), settings=settings) as server:
            yield server
