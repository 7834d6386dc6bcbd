"""The one door to time. Everything that needs the time takes a ``Clock``; tests pass one that they move by hand."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

__all__ = ["Clock", "ManualClock", "Steps", "SystemClock", "timestamp"]


class Clock(Protocol):
    def now(self) -> datetime:
        """The current time, aware, in UTC."""

    def monotonic(self) -> float:
        """Seconds that never run backwards, for durations and deadlines."""


class SystemClock:
    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()


class ManualClock:
    """A clock that stands still until it is moved."""

    def __init__(self, start: datetime | None = None) -> None:
        self._now = start or datetime(2026, 1, 1, tzinfo=UTC)
        self._elapsed = 0.0

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        return self._elapsed

    def advance(self, by: timedelta) -> None:
        self._now += by
        self._elapsed += by.total_seconds()

    def step(self, by: timedelta) -> None:
        """Somebody sets the clock, forward or back: no time passes."""
        self._now += by


class Steps:
    """Notices that somebody set the wall clock: it moved otherwise than the time that passed."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last = clock.now(), clock.monotonic()

    def since_last(self) -> timedelta:
        """How far it was set since this was asked last; zero but for what the two readings are apart."""
        (wall, passed), self._last = self._last, (self._clock.now(), self._clock.monotonic())
        now, monotonic = self._last
        return now - wall - timedelta(seconds=monotonic - passed)


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC with seven decimals and Z, as Azure writes times."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f0Z")
