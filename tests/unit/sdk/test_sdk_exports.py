"""What `import oprel` gives, and what it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import oprel

PUBLIC = {
    "AsyncClient", "BackendError", "ChatResponse", "Client", "Config", "EmbedResponse", "GenerateResponse",
    "ListResponse", "MemoryError", "Message", "Model", "ModelInfo", "ModelNotFoundError", "OprelError",
    "ProcessResponse", "ProgressResponse", "ShowResponse", "__version__", "chat", "delete", "download_model", "embed",
    "generate", "get_hardware_info", "list", "ps", "pull", "show",
}  # fmt: skip


def test_the_public_names() -> None:
    assert set(oprel.__all__) == PUBLIC


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_each_is_there(name: str) -> None:
    assert getattr(oprel, name) is not None


def test_errors_are_one_tree() -> None:
    for error in (oprel.ModelNotFoundError, oprel.MemoryError, oprel.BackendError):
        assert issubclass(error, oprel.OprelError)


def test_an_unknown_name() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        oprel.nothing  # noqa: B018


def test_importing_it_imports_nothing_else() -> None:
    code = "import sys; before = {*sys.modules, '__future__'}; import oprel; print(sorted(set(sys.modules) - before))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert ended.stdout.strip() == "['oprel', 'oprel.version']"


@pytest.mark.parametrize(
    "light",
    ["from oprel import Client", "import oprel.cli.program", "from oprel.sdk.background import ensure_server"],
)
def test_clients_need_no_web_framework(light: str) -> None:
    """Asking a server costs no more than an HTTP client."""
    code = f"import sys; {light}; print([m for m in ('litestar', 'uvicorn', 'xllamacpp') if m in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert ended.stdout.strip() == "[]"
