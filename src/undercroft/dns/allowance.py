"""How many questions each client of a network may ask by UDP in one second; Azure gives a VM 1000 (azure-facts section 4)."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Final

__all__ = ["Allowance", "Verdict"]

_SECOND: Final = 1.0
_CLIENTS: Final = 4096
"""Clients counted at once. In a network nobody has another's address, so more of them are no VM's."""


class Verdict(Enum):
    ANSWER = "answer"
    TRUNCATE = "truncate"
    """Over the limit: told to come back by TCP, where a flood is slowed by its own connection and a real client is not lost."""
    DROP = "drop"
    """Over twice the limit: it is not waiting for answers."""


class Allowance:
    """Counts one network's clients. A limit of 0 is none."""

    __slots__ = ("_counts", "_monotonic", "_until", "limit")

    def __init__(self, limit: int, monotonic: Callable[[], float]) -> None:
        self.limit = limit
        self._monotonic = monotonic
        self._counts: dict[str, int] = {}
        self._until = 0.0

    def begin(self) -> None:
        """Called before a batch of questions: a new second starts from nothing."""
        now = self._monotonic()
        if now >= self._until:
            self._counts.clear()
            self._until = now + _SECOND

    def spend(self, client: str) -> Verdict:
        counts = self._counts
        spent = counts.get(client, 0)
        if not spent and len(counts) >= _CLIENTS:
            return Verdict.DROP
        counts[client] = spent + 1
        if spent < self.limit:
            return Verdict.ANSWER
        return Verdict.TRUNCATE if spent < 2 * self.limit else Verdict.DROP
