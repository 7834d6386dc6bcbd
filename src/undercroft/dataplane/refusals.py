"""Errors of the backup service, and of the front, as the JSON that they become: the one renderer of this wire."""

from __future__ import annotations

import msgspec
from aiohttp import web

from undercroft.dataplane import messages
from undercroft.errors import Conflict, NotAuthenticated, Throttled, Unavailable, UndercroftError

__all__ = ["ObjectsMissing", "render"]


class ObjectsMissing(Conflict):
    """A commit named objects that are not there: nothing was committed."""

    default_code = "UserErrorObjectsMissing"

    def __init__(self, missing: tuple[str, ...]) -> None:
        super().__init__(
            f"{len(missing)} of the objects that the recovery point needs are not in the vault. Send them again and repeat the "
            "commit."
        )
        self.missing = missing


def render(error: UndercroftError) -> web.Response:
    text = messages.ErrorText(error.code, error.message)
    body: msgspec.Struct = messages.ErrorBody(text)
    if isinstance(error, ObjectsMissing):
        body = messages.Missing(text, error.missing)
    headers = {"WWW-Authenticate": 'Bearer error="invalid_token"'} if isinstance(error, NotAuthenticated) else {}
    if isinstance(error, (Throttled, Unavailable)):
        headers["Retry-After"] = "1"
    return web.Response(
        status=error.status, headers=headers, body=msgspec.json.encode(body), content_type="application/json"
    )
