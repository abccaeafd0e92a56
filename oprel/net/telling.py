"""What libraries raise, turned into ours."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from oprel.errors import SourceError
from oprel.net.addresses import shown_url

__all__ = ["telling"]


class telling:
    """A context for work with `url`: what it raises becomes what `problem_of(error, where)` makes of it, or stays as it
    is where that is None. Costs nothing while all goes well."""

    def __init__(self, url: str, problem_of: Callable[[BaseException, str], SourceError | None]) -> None:
        self._url = url
        self._problem_of = problem_of

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and (problem := self._problem_of(error, shown_url(self._url))) is not None:
            raise problem from error
