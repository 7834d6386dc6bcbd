"""The plain HTTP pages that need no ARM: login, cloud metadata, Graph. A request in, a reply out, no server in between.

``arm.application`` parses the request, finds the first surface that serves the path, and writes its reply.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from undercroft.trace import Correlation

__all__ = ["Surface", "WebReply", "WebRequest"]


@dataclass(frozen=True, slots=True)
class WebRequest:
    method: str
    segments: tuple[str, ...]
    """The path, split at slashes and then decoded; without empty segments at the ends."""
    query: Mapping[str, str]
    body: bytes
    content_type: str
    authorization: str | None
    base_url: str
    """How the client addressed us: scheme, host and port, without a slash at the end."""
    correlation: Correlation


@dataclass(frozen=True, slots=True)
class WebReply:
    """``body`` is anything msgspec encodes to JSON; None sends no body."""

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)


class Surface(Protocol):
    def serves(self, segments: tuple[str, ...]) -> bool:
        """Whether this path belongs to the surface; then no other part of the application sees the request."""

    async def answer(self, request: WebRequest) -> WebReply:
        """An ``UndercroftError`` that is raised here is rendered as ARM renders it."""
