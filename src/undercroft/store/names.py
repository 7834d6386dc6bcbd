"""Which names an object may have: what every store can keep and no file system reads as a path elsewhere."""

from __future__ import annotations

import re

from undercroft.errors import InvalidParameter

__all__ = ["checked", "checked_prefix"]

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,254}(?:/[A-Za-z0-9_-][A-Za-z0-9._-]{0,254})*")
_PREFIX = re.compile(r"(?:[A-Za-z0-9_-][A-Za-z0-9._-]{0,254}/)*(?:[A-Za-z0-9_-][A-Za-z0-9._-]{0,254})?")
_LONGEST = 1024


def checked(name: str) -> str:
    """``name``, or ``InvalidParameter``: segments of ``[A-Za-z0-9._-]``, none empty, none starting with a dot."""
    if len(name) > _LONGEST or _NAME.fullmatch(name) is None:
        raise InvalidParameter(
            f"'{name[:200]}' is not the name of an object: segments of letters, digits, '.', '_' and '-', separated by '/', "
            f"none starting with a dot, at most {_LONGEST} characters.",
            code="InvalidResourceName",
        )
    return name


def checked_prefix(prefix: str) -> str:
    """A prefix is the beginning of a name, the empty one included."""
    if len(prefix) > _LONGEST or _PREFIX.fullmatch(prefix) is None:
        raise InvalidParameter(
            f"'{prefix[:200]}' is not the beginning of an object's name.", code="InvalidResourceName"
        )
    return prefix
