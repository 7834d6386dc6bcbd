"""Entity tags and the conditions on them (RFC 9110, section 13.1), compared weakly: ARM's are ``W/"guid"``."""

from __future__ import annotations

import uuid

from undercroft.errors import PreconditionFailed

__all__ = ["check", "fresh", "quoted"]


def fresh() -> str:
    return str(uuid.uuid4())


def quoted(etag: str) -> str:
    return f'W/"{etag}"'


def _bare(text: str) -> str:
    return text.strip().removeprefix("W/").strip('"')


def check(existing: str | None, if_match: str | None, if_none_match: str | None) -> None:
    """``existing`` is the etag of what is there, None when nothing is. Raises ``PreconditionFailed``."""
    if if_match is not None:
        wanted = {_bare(part) for part in if_match.split(",")}
        if existing is None or ("*" not in wanted and existing not in wanted):
            raise PreconditionFailed(
                f"The condition 'If-Match: {if_match}' is not met: the resource "
                f"{'does not exist' if existing is None else 'was changed since'}. Read it again and repeat."
            )
    if if_none_match is not None and existing is not None:
        unwanted = {_bare(part) for part in if_none_match.split(",")}
        if "*" in unwanted or existing in unwanted:
            raise PreconditionFailed(f"The condition 'If-None-Match: {if_none_match}' is not met: the resource exists.")
