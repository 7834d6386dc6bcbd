"""Azure Storage's wire, once for blob and queue: errors as XML, headers, ranges, hashes.

Headers that would change what a call means and that we do not implement are refused by name: a client that sends a lease id,
a tag or a CRC relies on its effect. ``x-ms-content-crc64`` is one of them: its polynomial is known (CRC-64/NVME), but no
well-kept fast implementation is among our dependencies, and one in Python would cost more than the transfer.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from email.utils import format_datetime
from xml.sax.saxutils import escape

from aiohttp import web

from undercroft.clock import timestamp
from undercroft.errors import (
    CapabilityMissing,
    InvalidInput,
    InvalidParameter,
    RangeNotSatisfiable,
    Throttled,
    UndercroftError,
)

__all__ = ["Range", "body_md5", "check_headers", "http_date", "parse_range", "render", "version"]

OLDEST_VERSION = "2020-10-02"
_VERSION = re.compile(r"20[0-9]{2}-[0-9]{2}-[0-9]{2}", re.ASCII)
_RANGE = re.compile(r"bytes=([0-9]{1,18})-([0-9]{0,18})", re.ASCII)
_KNOWN = frozenset(
    {
        "x-ms-blob-type",
        "x-ms-blob-content-md5",
        "x-ms-blob-content-type",
        "x-ms-client-request-id",
        "x-ms-date",
        "x-ms-range",
        "x-ms-return-client-request-id",
        "x-ms-version",
    }
)
_UNSUPPORTED_CONDITIONS = ("If-Modified-Since", "If-Unmodified-Since", "Content-Encoding")
_CODES = {"ObjectNotFound": "BlobNotFound", "ObjectAlreadyExists": "BlobAlreadyExists"}
"""The store's words, in Azure's."""


@dataclass(frozen=True, slots=True)
class Range:
    offset: int
    length: int


def render(error: UndercroftError, request_id: str, now: datetime, *, head: bool = False) -> web.Response:
    """The one renderer of errors on the storage wires (REST reference: *Status and error codes*)."""
    code = _CODES.get(error.code, error.code)
    headers = {"x-ms-error-code": code}
    if isinstance(error, RangeNotSatisfiable) and error.target:
        headers["Content-Range"] = f"bytes */{error.target}"
    if isinstance(error, Throttled):
        headers["Retry-After"] = "1"
    if head:
        return web.Response(status=error.status, headers=headers)
    message = escape(f"{error.message}\nRequestId:{request_id}\nTime:{timestamp(now)}")
    body = (
        f'<?xml version="1.0" encoding="utf-8"?><Error><Code>{escape(code)}</Code><Message>{message}</Message></Error>'
    )
    return web.Response(status=error.status, headers=headers, body=body.encode(), content_type="application/xml")


def version(headers: Mapping[str, str]) -> str:
    """``x-ms-version``; a SAS carries one of its own, so that it may be left out."""
    found = headers.get("x-ms-version", OLDEST_VERSION)
    if _VERSION.fullmatch(found) is None or found < OLDEST_VERSION:
        raise InvalidInput(
            f"x-ms-version '{found[:40]}' is not supported; send {OLDEST_VERSION} or later.", code="InvalidHeaderValue"
        )
    return found


def check_headers(headers: Mapping[str, str]) -> None:
    for name in headers:
        lower = name.lower()
        if lower.startswith("x-ms-") and lower not in _KNOWN:
            raise CapabilityMissing(f"The header '{lower}' is not implemented by this service.", target=lower)
    for name in _UNSUPPORTED_CONDITIONS:
        if name in headers:
            raise CapabilityMissing(f"The header '{name}' is not implemented by this service.", target=name)


def parse_range(headers: Mapping[str, str], size: int) -> Range | None:
    """``x-ms-range`` goes before ``Range`` (REST reference: *Specifying the range header*). None: the whole object."""
    text = headers.get("x-ms-range") or headers.get("Range")
    if not text:
        return None
    match = _RANGE.fullmatch(text.strip())
    if match is None or (match[2] and int(match[2]) < int(match[1])):
        raise InvalidParameter(
            f"The range '{text[:80]}' is not understood; send bytes=first-last or bytes=first-.",
            code="InvalidHeaderValue",
        )
    first = int(match[1])
    if first >= size:
        raise RangeNotSatisfiable(f"The range begins at {first}, and the object has {size} bytes.", target=str(size))
    last = min(int(match[2]), size - 1) if match[2] else size - 1
    return Range(first, last - first + 1)


def body_md5(headers: Mapping[str, str]) -> tuple[bytes, ...]:
    """The MD5s that the body must have: ``Content-MD5`` and ``x-ms-blob-content-md5``, as far as they are sent."""
    found = []
    for name in ("Content-MD5", "x-ms-blob-content-md5"):
        if text := headers.get(name):
            try:
                value = base64.b64decode(text, validate=True)
            except ValueError:
                value = b""
            if len(value) != 16:
                raise InvalidParameter(f"The header '{name}' is not an MD5 in base64.", code="InvalidMd5", target=name)
            found.append(value)
    return tuple(found)


def http_date(moment: datetime) -> str:
    return format_datetime(moment, usegmt=True)
