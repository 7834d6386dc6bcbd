"""Correlation: which request a line of log or a stored operation belongs to."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

__all__ = ["Correlation", "correlated", "current", "fresh"]


@dataclass(frozen=True, slots=True)
class Correlation:
    """``request_id`` is ours and new for every request; ``client_request_id`` is what the client sent, echoed."""

    request_id: str
    correlation_id: str
    client_request_id: str | None = None


_current: ContextVar[Correlation | None] = ContextVar("correlation", default=None)


def fresh(correlation_id: str | None = None, client_request_id: str | None = None) -> Correlation:
    request_id = str(uuid.uuid4())
    return Correlation(request_id, correlation_id or request_id, client_request_id)


def current() -> Correlation | None:
    return _current.get()


@contextmanager
def correlated(correlation: Correlation) -> Iterator[Correlation]:
    """Within the block, ``current()`` (and so every log line) names this correlation."""
    token = _current.set(correlation)
    try:
        yield correlation
    finally:
        _current.reset(token)
