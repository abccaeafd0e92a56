"""What LangChain's standard suites run on: a real engine and a scripted one, each behind a proxy that holds every
answer and event against the document; and what the suites need of pytest."""

from __future__ import annotations

from collections.abc import Iterator

import ollama
import pytest
from support.able_model import able_script
from support.checking_proxy import CheckingProxy, checking_proxy
from support.langchain_suites import COPY, MODEL
from support.models import CHAT_MODEL, make_store
from support.servers import TEST_DRIVER, real_server, scripted_server

from oprel.testing import scripted_model

# SmolLM2's own template has no place for tools; this one is its own with such a place, and SYSTEM its own default.
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
TEMPLATE = """\
{{- if or .System .Tools }}<|im_start|>system
{{ .System }}
{{- if .Tools }}
You may call these functions:
{{- range .Tools }}
{{ .Function }}
{{- end }}
A call is written <tool_call>{"name": NAME, "arguments": OBJECT}</tool_call>
{{- end }}<|im_end|>
{{ end }}
{{- range .Messages }}
{{- if ne .Role "system" }}<|im_start|>{{ .Role }}
{{ .Content }}
{{- range .ToolCalls }}<tool_call>{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}</tool_call>
{{- end }}<|im_end|>
{{ end }}
{{- end }}<|im_start|>assistant
"""


@pytest.fixture(scope="session")
def real_proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CheckingProxy]:
    if TEST_DRIVER != "llama_cpp":
        pytest.skip("the model is made of a GGUF file, for llama.cpp")
    models_dir = make_store(tmp_path_factory.mktemp("langchain") / "models", linked=True)
    with real_server("--driver", "llama_cpp", models_dir=models_dir) as server:
        with ollama.Client(host=server.url) as client:
            # A thread is enough for so small a model; more wait for each other where others have work, too.
            parameters = {"num_ctx": 2048, "num_thread": 1, "stop": ["<|im_end|>"]}
            client.create(MODEL, from_=CHAT_MODEL, template=TEMPLATE, system=SYSTEM, parameters=parameters)
            client.copy(MODEL, COPY)
        with checking_proxy(server.url) as proxy:
            yield proxy


@pytest.fixture(scope="session")
def scripted_proxy() -> Iterator[CheckingProxy]:
    able = frozenset({"completion", "tools"})
    models = [scripted_model(f"{name}:latest", capabilities=able) for name in (MODEL, COPY)]
    with scripted_server(able_script(), models=models) as server, checking_proxy(server.url) as proxy:
        yield proxy


@pytest.fixture
def real_url(real_proxy: CheckingProxy) -> Iterator[str]:
    yield from checked(real_proxy)


@pytest.fixture
def scripted_url(scripted_proxy: CheckingProxy) -> Iterator[str]:
    yield from checked(scripted_proxy)


def checked(proxy: CheckingProxy) -> Iterator[str]:
    """What clients are given; all that passed, if anything did, is checked when the test is over."""
    proxy.exchanges.clear()
    yield proxy.url
    if proxy.exchanges:
        proxy.check()


@pytest.fixture
def anyio_backend() -> str:
    """The suites' asynchronous tests are run by anyio's plugin, where pytest-asyncio would warn."""
    return "asyncio"


@pytest.fixture
def benchmark() -> None:
    """The suites ask for pytest-benchmark's, for a test of time that is skipped."""


@pytest.fixture
def vcr() -> None:
    """The suites ask for pytest-recording's, for the same test."""
