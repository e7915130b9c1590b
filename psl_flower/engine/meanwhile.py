"""Work for the time in which an exchange waits for answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Meanwhile(Generic[T]):
    """A computation that is handed to an exchange, which calls it once; afterwards it has the result."""

    def __init__(self, compute: Callable[[], T]) -> None:
        self._compute = compute
        self._results: list[T] = []

    def __call__(self) -> None:
        """Compute; whatever that raises is raised here."""
        self._results.append(self._compute())

    @property
    def result(self) -> T:
        """What the one call has computed."""
        (result,) = self._results
        return result
