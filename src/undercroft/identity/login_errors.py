"""Refusals of the login endpoint, in Entra's JSON form: clients show the description and branch on the numbers."""

from __future__ import annotations

from typing import Any

from undercroft.clock import Clock
from undercroft.errors import UndercroftError
from undercroft.identity.wire import WebReply, WebRequest

__all__ = ["LoginRefused", "render"]


class LoginRefused(UndercroftError):
    """``number`` is Entra's (AADSTS…), ``error`` OAuth's (RFC 6749, section 5.2)."""

    default_code = "LoginRefused"

    def __init__(self, status: int, error: str, number: int, message: str) -> None:
        super().__init__(message)
        self.http_status = status
        self.error = error
        self.number = number


def render(refusal: LoginRefused, request: WebRequest, clock: Clock) -> WebReply:
    now = f"{clock.now():%Y-%m-%d %H:%M:%SZ}"
    correlation = request.correlation
    body: dict[str, Any] = {
        "error": refusal.error,
        "error_description": (
            f"AADSTS{refusal.number}: {refusal.message} Trace ID: {correlation.request_id} "
            f"Correlation ID: {correlation.correlation_id} Timestamp: {now}"
        ),
        "error_codes": [refusal.number],
        "timestamp": now,
        "trace_id": correlation.request_id,
        "correlation_id": correlation.correlation_id,
    }
    return WebReply(refusal.http_status, body, {"Cache-Control": "no-store"})
