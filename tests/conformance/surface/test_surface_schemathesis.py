"""Every operation of every document, asked what its document allows and what it forbids, by schemathesis.

Each answer has to be one that the document describes: status, content type, headers, body, each event of a stream. What
the document forbids is refused, and what it allows is refused only for a reason that stands in its words.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator

import pytest
import requests
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode, Response
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    status_code_conformance,
)
from support.documents import Described, is_lenient, is_said, may_fail, operations
from support.servers import ScriptedServer
from support.surface import surface_server

from oprel.server.documents import documents
from oprel.testing.strict import Observed, departures

EXAMPLES = int(os.environ.get("OPREL_TEST_SURFACE_EXAMPLES", "6"))  # each operation's beside those at its limits
LIMIT_S = 20
CONFORMANCE = [status_code_conformance, content_type_conformance, response_headers_conformance]
OPERATIONS = {f"{name} {each.label}": each for name in documents() for each in operations(name)}
WITH_INPUT = [name for name, each in OPERATIONS.items() if each.has_input]
FUZZED = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


class Asker:
    """Asks and judges; `statuses` are those of all answers."""

    def __init__(self, url: str, described: Described) -> None:
        self.statuses: Counter[int] = Counter()
        self._described = described
        self._url = url + described.base
        self._session = requests.Session()

    def __enter__(self) -> Asker:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def answer(self, case: Case) -> Response:
        answer = case.call(base_url=self._url, session=self._session, timeout=LIMIT_S)
        self.statuses[answer.status_code] += 1
        assert answer.headers["x-request-id"]
        if answer.status_code >= 500:
            assert may_fail(self._described.path, told(answer)), (answer.status_code, told(answer), case.body)
        if case.method == self._described.method:
            case.validate_response(answer, checks=CONFORMANCE)
            self._check_body(answer)
        return answer

    def _check_body(self, answer: Response) -> None:
        if self._described.method == "HEAD":
            assert answer.content == b""
            return
        seen = Observed(
            self._described.method,
            answer.request.path_url,
            answer.status_code,
            "".join(answer.headers.get("content-type", [""])),
            body=answer.content,
            is_whole=True,
            document=self._described.document,
        )
        assert list(departures(seen)) == []


def told(answer: Response) -> str:
    """What a failure says."""
    said = answer.json()["error"]
    return str(said if isinstance(said, str) else said["message"])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScriptedServer]:
    with pytest.MonkeyPatch.context() as patch, surface_server(tmp_path_factory.mktemp("surface")) as server:
        # Registries that aren't there are asked as often as ever, without the waits in between.
        patch.setattr("oprel.sources.retries.wait_before_retry", lambda state: 0.01)
        yield server


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_a_document_allows_is_answered_as_it_describes(server: ScriptedServer, name: str) -> None:
    described = OPERATIONS[name]
    with Asker(server.url, described) as asker:

        def ask(case: Case) -> None:
            answer = asker.answer(case)
            if answer.status_code >= 400 and described.method != "HEAD":
                text = told(answer)
                is_known = is_said(described.document, text) or may_fail(described.path, text)
                assert is_known, f"refused though it is allowed: {text}: {case.body}"

        for case in described.covering(GenerationMode.POSITIVE):
            ask(case)
        if described.has_input:
            FUZZED(given(described.fuzzing(GenerationMode.POSITIVE))(ask))()
        assert any(status < 300 for status in asker.statuses) or described.needs_something, asker.statuses


@pytest.mark.parametrize("name", WITH_INPUT)
def test_what_a_document_forbids_is_refused_as_it_describes(server: ScriptedServer, name: str) -> None:
    described = OPERATIONS[name]
    with Asker(server.url, described) as asker:

        def ask(case: Case) -> None:
            answer = asker.answer(case)
            if case.method != described.method:
                assert answer.status_code == (204 if case.method == "OPTIONS" else 405)
            elif answer.status_code < 400:
                assert is_lenient(described, case), f"answered though it is forbidden: {case.meta}: {case.body}"

        for case in described.covering(GenerationMode.NEGATIVE):
            ask(case)
        if described.can_be_forbidden:
            FUZZED(given(described.fuzzing(GenerationMode.NEGATIVE))(ask))()
        assert asker.statuses


def test_the_server_is_as_it_was(server: ScriptedServer) -> None:
    assert requests.get(f"{server.url}/health", timeout=LIMIT_S).json()["status"] == "ok"
    assert all(engine.running == 0 for engine in server.driver.engines)
