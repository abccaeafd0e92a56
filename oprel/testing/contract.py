"""The driver contract as tests. Make a class of them for your driver:

    from oprel.testing.contract import DriverContract, Subject

    class TestMyDriver(DriverContract):
        @pytest.fixture(scope="class")
        @classmethod
        def subject(cls):
            return Subject(make=MyDriver, chat=model, kill=lambda engine: os.kill(engine.pid, 9))

Each test's sentence is a rule of the contract. One engine is shared by those that only ask it; those that end engines
start their own.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from oprel.drivers import (
    Engine,
)
from oprel.schema import (
    Model,
)
from oprel.testing.driver_rules import DriverRules
from oprel.testing.end_rules import EndRules
from oprel.testing.engine_rules import EmbeddingRules, EngineRules
from oprel.testing.subject import Bench, Subject

__all__ = ["DriverContract", "Subject"]


@pytest.mark.driver_contract
class DriverContract(DriverRules, EngineRules, EmbeddingRules, EndRules):
    """Subclass it with a `subject` fixture of class scope."""

    @pytest.fixture(scope="class")
    @classmethod
    def subject(cls) -> Subject:
        raise NotImplementedError("a subclass gives the subject")

    @pytest.fixture(scope="class")
    @classmethod
    def bench(cls, subject: Subject) -> Iterator[Bench]:
        with Bench(subject) as bench:
            yield bench

    @pytest.fixture
    def chat_model(self, subject: Subject) -> Model:
        return subject.chat or pytest.skip("the subject has no chat model")

    @pytest.fixture
    def embed_model(self, subject: Subject) -> Model:
        return subject.embed or pytest.skip("the subject has no embedding model")

    @pytest.fixture
    def any_model(self, subject: Subject) -> Model:
        return subject.chat or subject.embed or pytest.skip("the subject has no model")

    @pytest.fixture
    def engine(self, bench: Bench, subject: Subject, chat_model: Model) -> Engine:
        return bench.engine(chat_model, subject.chat_options)

    @pytest.fixture
    def embedder(self, bench: Bench, embed_model: Model) -> Engine:
        return bench.engine(embed_model)
