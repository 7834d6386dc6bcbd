"""The only place that writes an ARM error: ``{"error":{"code","message","target","details"}}``."""

from __future__ import annotations

import re
from typing import Any

import structlog

from undercroft.arm.call import Reply, Rights
from undercroft.errors import MethodNotAllowed, NotAuthenticated, Throttled, Unavailable, UndercroftError
from undercroft.names import ResourceId
from undercroft.trace import Correlation

__all__ = ["body", "hide", "render", "unexpected"]

_log = structlog.get_logger("undercroft.arm")
_HIDDEN = "a resource that you may not read"


async def hide(error: UndercroftError, rights: Rights) -> None:
    """Take out of the message the ids that it ``mentions`` and the caller may not read."""
    for text in sorted(set(error.mentions), key=len, reverse=True):
        id = ResourceId.parse(text)
        if not await rights.may(f"{id.type}/read", id):
            error.message = re.sub(re.escape(text) + r"(?![\w/-])", _HIDDEN, error.message)


def body(code: str, message: str, target: str | None = None) -> dict[str, Any]:
    error: dict[str, Any] = {"code": code, "message": message, "details": []}
    if target is not None:
        error["target"] = target
    return {"error": error}


def render(error: UndercroftError, authorization_uri: str) -> Reply:
    headers: dict[str, str] = {"x-ms-failure-cause": "gateway"} if isinstance(error, NotAuthenticated) else {}
    if isinstance(error, NotAuthenticated):
        # clients learn from this header where to log in (RFC 6750, section 3)
        headers["WWW-Authenticate"] = f'Bearer authorization_uri="{authorization_uri}", error="invalid_token"'
    if isinstance(error, Throttled | Unavailable):
        headers["Retry-After"] = "1"  # 0 and fractions mislead or crash the SDKs
    if isinstance(error, MethodNotAllowed):
        headers["x-ms-failure-cause"] = "gateway"
    return Reply(error.status, body(error.code, error.message, error.target), headers)


def unexpected(error: Exception, correlation: Correlation) -> Reply:
    """A defect of ours. The client gets the id to report; the log gets the traceback."""
    _log.error(
        "unexpected error", request_id=correlation.request_id, correlation_id=correlation.correlation_id, exc_info=error
    )
    return Reply(
        500,
        body(
            "InternalServerError",
            f"The request failed because of an error in the service. Its log has the details under the request id "
            f"'{correlation.request_id}'.",
        ),
    )
