"""Several faults of one dataset in one error, so that a person can correct them together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from casam_core.errors import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")


class DataFaultsError(DataError):
    """One or more faults. The message has the first one and the number of others; `faults` holds all."""

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        more = len(self.faults) - 1
        tail = f" (and {more} more fault{'s' if more > 1 else ''}: see `casam data check`)" if more else ""
        super().__init__(f"{self.faults[0]}{tail}")


def faults_of(error: DataError) -> tuple[str, ...]:
    """All faults in an error."""
    return error.faults if isinstance(error, DataFaultsError) else (str(error),)


def for_each(action: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Call `action` with every item; all DataErrors are raised together as one DataFaultsError."""
    results: list[Result] = []
    faults: list[str] = []
    for item in items:
        try:
            results.append(action(item))
        except DataError as error:
            faults.extend(faults_of(error))
    if faults:
        raise DataFaultsError(faults)
    return results
