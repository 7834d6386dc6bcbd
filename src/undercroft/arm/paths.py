"""Paths and queries as they arrive: split at slashes first, then decoded, so that ``%3B`` is a ``;`` in a name and ``%2F`` cannot
make a new segment."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, unquote_to_bytes

from undercroft.errors import InvalidInput, InvalidParameter
from undercroft.names import ResourceId

__all__ = ["Target", "named_id", "parse_query", "parse_target"]

_LONGEST_SEGMENT = 260
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")

Target = tuple[tuple[str, ...], str]
"""(segments, query)"""


def parse_target(raw: str) -> Target:
    """The segments, decoded, and the query, as it came. Slashes at both ends do not count (clients double them)."""
    if raw.lower().startswith(("http://", "https://")):  # the absolute form of RFC 9112, section 3.2.2
        raw = "/" + raw.split("//", 1)[1].partition("/")[2]
    path, _, query = raw.partition("#")[0].partition("?")
    parts = path.strip("/").split("/") if path.strip("/") else []
    # 'az resource' leaves the parent of a top-level resource out, and keeps its slash: providers/{namespace}//{type}/{name}.
    parts = [part for at, part in enumerate(parts) if part or at < 2 or parts[at - 2].lower() != "providers"]
    return tuple(_decode(part) for part in parts), query


def _decode(segment: str) -> str:
    if _BAD_ESCAPE.search(segment):
        raise InvalidInput(
            f"The path segment '{segment[:80]}' has a '%' that begins no escape.", code="InvalidRequestUri"
        )
    try:
        text = unquote_to_bytes(segment).decode()
    except UnicodeError as error:
        raise InvalidInput("The path is not valid UTF-8.", code="InvalidRequestUri") from error
    if text in ("", ".", "..") or "/" in text or "\\" in text or not text.isprintable():
        raise InvalidInput(
            f"The path segment '{segment[:80]}' is not a name: it is empty, dots only, or has a slash or an unprintable character.",
            code="InvalidRequestUri",
        )
    if len(text) > _LONGEST_SEGMENT:
        raise InvalidInput(f"A path segment is longer than {_LONGEST_SEGMENT} characters.", code="InvalidRequestUri")
    return text


def parse_query(query: str) -> dict[str, str]:
    """Every parameter once; ``api-version`` and the ``$`` options in lower-case keys are left to ``routes`` to recognize."""
    if not query:
        return {}
    try:
        pairs = parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=50)
    except ValueError as error:
        raise InvalidInput(f"The query string is not usable: {error}.", code="InvalidRequestUri") from error
    found: dict[str, str] = {}
    for name, value in pairs:
        if name in found:
            raise InvalidParameter(f"The query parameter '{name[:80]}' is there twice.", target=name[:80])
        found[name] = value
    return found


def named_id(segments: tuple[str, ...]) -> ResourceId:
    """The resource that the path names; for a collection or an action, the enclosing resource or scope."""
    subscription = group = None
    rest = segments
    if len(rest) >= 2 and rest[0].lower() == "subscriptions":
        subscription, rest = rest[1], rest[2:]
        if len(rest) >= 2 and rest[0].lower() == "resourcegroups":
            group, rest = rest[1], rest[2:]
    if len(rest) >= 4 and rest[0].lower() == "providers":
        pairs = rest[2:]
        names = pairs[1::2]
        return ResourceId(subscription, group, rest[1], pairs[0::2][: len(names)], names)
    return ResourceId(subscription, group, None, (), ())
