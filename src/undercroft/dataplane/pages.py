"""Lists are answered a page at a time, so that no answer grows with what a vault holds.

A *mark* says where a page ended: (text that the list is sorted by, name), as opaque text that only we read. It is in ``next`` of the
answer, and comes back as ``after``.
"""

from __future__ import annotations

import base64
import binascii

from undercroft.errors import InvalidParameter

__all__ = ["LONGEST", "mark", "read_mark"]

LONGEST = 1000
"""Entries of a page."""


def mark(order: str, name: str) -> str:
    return base64.urlsafe_b64encode(f"{order}\n{name}".encode()).decode()


def read_mark(text: str | None) -> tuple[str, str] | None:
    if text is None:
        return None
    try:
        order, separator, name = base64.urlsafe_b64decode(text.encode("ascii")).decode().partition("\n")
    except (ValueError, binascii.Error) as error:
        raise _unknown(text) from error
    if not separator or len(text) > 2000:
        raise _unknown(text)
    return order, name


def _unknown(text: str) -> InvalidParameter:
    return InvalidParameter(f"'{text[:60]}' is no mark of a page: 'after' is what 'next' said.", target="after")
