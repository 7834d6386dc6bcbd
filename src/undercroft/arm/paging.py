"""Lists: ``{"value":[…],"nextLink":…}``. The cursor is the key of the last row shown, so pages stay right while rows come and go."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, urlencode

from undercroft.arm.call import Call, Reply
from undercroft.errors import InvalidParameter

__all__ = ["LARGEST", "after", "page", "page_of", "size"]

LARGEST = 1000


def size(call: Call) -> int:
    """How many rows to show: ``$top``, at most ``LARGEST``."""
    text = call.query.get("$top")
    if text is None:
        return LARGEST
    if not text.isascii() or not text.isdigit() or len(text) > 9 or int(text) < 1:
        raise InvalidParameter(f"'$top' must be a whole number of 1 or more, not '{text[:40]}'.", target="$top")
    return min(int(text), LARGEST)


def after(call: Call) -> str:
    """The key to continue behind; empty at the beginning."""
    text = call.query.get("$skiptoken")
    if not text:
        return ""
    try:
        return base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeError, ValueError) as error:
        raise InvalidParameter(
            "'$skiptoken' is not one that this service made. Begin the list again without it.",
            code="InvalidSkipToken",
            target="$skiptoken",
        ) from error


def page(call: Call, values: Sequence[Any], last_key: str | None) -> Reply:
    """``last_key`` is the key of the last value when more may follow, otherwise None."""
    body: dict[str, Any] = {"value": list(values)}
    if last_key is not None:
        token = base64.urlsafe_b64encode(last_key.encode()).decode().rstrip("=")
        query = {name: value for name, value in call.query.items() if name != "$skiptoken"}
        parameters = {"api-version": call.api_version, **query, "$skiptoken": token}
        body["nextLink"] = (
            f"{call.base_url}{quote(call.path, safe='/;')}?{urlencode(parameters, safe='$', quote_via=quote)}"
        )
    return Reply(200, body)


def page_of(call: Call, values: Sequence[tuple[str, Any]]) -> Reply:
    """One page of a list that is in memory anyway: (key, value) in the order of keys."""
    start, limit = after(call), size(call)
    rest = [(key, value) for key, value in values if key > start]
    shown = rest[:limit]
    return page(call, [value for _, value in shown], shown[-1][0] if len(rest) > len(shown) else None)
