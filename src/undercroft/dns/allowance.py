"""How many questions each client of a network may ask by UDP in one second; Azure gives a VM 1000 (azure-facts section 4)."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Final

__all__ = ["Allowance", "Verdict"]

_SECOND: Final = 1.0
_QUIET_SECONDS: Final = 60.0
"""Between two reports about one network."""
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

    __slots__ = ("_counts", "_monotonic", "_quiet_until", "_until", "limit")

    def __init__(self, limit: int, monotonic: Callable[[], float]) -> None:
        self.limit = limit
        self._monotonic = monotonic
        self._counts: dict[str, int] = {}
        self._until = 0.0
        self._quiet_until = 0.0

    def begin(self) -> tuple[str, int] | None:
        """Called before a batch of questions: a new second starts from nothing. Returns, once in a while, who asked most in the last
        one when that was too much, and how much."""
        now = self._monotonic()
        if now < self._until:
            return None
        worst = max(self._counts.items(), key=lambda one: one[1], default=None)
        self._counts.clear()
        self._until = now + _SECOND
        if worst is None or worst[1] <= self.limit or now < self._quiet_until:
            return None
        self._quiet_until = now + _QUIET_SECONDS
        return worst

    def spend(self, client: str) -> Verdict:
        counts = self._counts
        spent = counts.get(client, 0)
        if not spent and len(counts) >= _CLIENTS:
            return Verdict.DROP
        counts[client] = spent + 1
        if spent < self.limit:
            return Verdict.ANSWER
        return Verdict.TRUNCATE if spent < 2 * self.limit else Verdict.DROP
