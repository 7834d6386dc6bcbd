"""Service SAS of Azure Storage, version 2020-12-06 and later, signed with the account's key.

String to sign: REST reference *Create a service SAS*, section *Version 2020-12-06 and later*. Supported: ``sr=c`` (all blobs of
a container) and ``sr=b`` (one blob), permissions and times in the token itself. Everything that would narrow a token further
and that we do not enforce (a stored policy, an address range, response headers …) is refused by name, never ignored.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlencode

from undercroft.errors import CapabilityMissing, NotAuthenticated

__all__ = ["PARAMETERS", "Sas", "grant", "parse", "unknown_account", "verify"]

VERSION = "2020-12-06"
PARAMETERS = frozenset({"sv", "st", "se", "sr", "sp", "spr", "sig"})
_UNSUPPORTED = {
    "si": "stored access policies",
    "sip": "address ranges",
    "ses": "encryption scopes",
    "ss": "account SAS",
    "srt": "account SAS",
    "skoid": "user delegation SAS",
    "sktid": "user delegation SAS",
    "skt": "user delegation SAS",
    "ske": "user delegation SAS",
    "sks": "user delegation SAS",
    "skv": "user delegation SAS",
    "saoid": "user delegation SAS",
    "suoid": "user delegation SAS",
    "scid": "user delegation SAS",
    "sduoid": "user delegation SAS",
    "sdd": "directory SAS",
    "tn": "table SAS",
    "rscc": "response headers",
    "rscd": "response headers",
    "rsce": "response headers",
    "rscl": "response headers",
    "rsct": "response headers",
}
_PERMISSIONS = frozenset("racwdxyltmeopi")
_TIME = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})(?:T([0-9]{2}:[0-9]{2})(?::([0-9]{2})(?:\.([0-9]{1,7}))?)?Z)?", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Sas:
    """The parameters as they came (the signature is over the text), and the times as times."""

    version: str
    resource: str
    permissions: frozenset[str]
    starts: datetime | None
    expires: datetime
    signature: bytes
    text: tuple[str, str, str, str]
    """``sp``, ``st``, ``se``, ``spr`` as sent."""


def parse(query: Mapping[str, str]) -> Sas:
    for name, what in _UNSUPPORTED.items():
        if name in query:
            raise CapabilityMissing(
                f"The SAS parameter '{name}' ({what}) is not implemented by this service.", target=name
            )
    version = query.get("sv", "")
    if re.fullmatch(r"20[0-9]{2}-[0-9]{2}-[0-9]{2}", version, re.ASCII) is None or version < VERSION:
        raise _failed(f"sv must be a version of {VERSION} or later")
    resource = query.get("sr", "")
    if resource not in ("b", "c"):
        raise _failed("sr must be b or c")
    protocol = query.get("spr", "")
    if protocol not in ("", "https", "https,http"):
        raise _failed("spr must be https or https,http")
    permissions = query.get("sp", "")
    if not permissions or not _PERMISSIONS.issuperset(permissions):
        raise _failed("sp must name permissions")
    try:
        signature = base64.b64decode(query.get("sig", ""), validate=True)
    except ValueError as error:
        raise _failed("sig is not base64") from error
    start, end = query.get("st", ""), query.get("se", "")
    return Sas(
        version,
        resource,
        frozenset(permissions),
        _time(start, "st") if start else None,
        _time(end, "se"),
        signature,
        (permissions, start, end, protocol),
    )


def verify(sas: Sas, account: str, key: bytes, container: str, blob: str | None, now: datetime) -> None:
    """``NotAuthenticated`` unless ``key`` signed exactly this for that resource, and now is within its time."""
    resource = f"/blob/{account}/{container}"
    if sas.resource == "b":
        if blob is None:
            raise _failed("a SAS of one blob was sent with a call about its container")
        resource += f"/{blob}"
    expected = _sign(key, sas.text, resource, sas.version, sas.resource)
    if not hmac.compare_digest(expected, sas.signature):
        raise _failed("the signature is not of this account and resource")
    if sas.starts is not None and now < sas.starts:
        raise _failed(f"it starts at {sas.text[1]}, and the server's clock says {now:%Y-%m-%dT%H:%M:%SZ}")
    if now >= sas.expires:
        raise _failed(f"it expired at {sas.text[2]}; ask the backup service for a new one")


def unknown_account() -> NotAuthenticated:
    """Said like a wrong signature: an account's existence is nobody's to learn by asking."""
    return _failed("the signature is not of this account and resource")


def grant(account: str, key: bytes, container: str, permissions: str, starts: datetime, expires: datetime) -> str:
    """The query string of a SAS over one container, without the question mark."""
    text = (permissions, f"{starts:%Y-%m-%dT%H:%M:%SZ}", f"{expires:%Y-%m-%dT%H:%M:%SZ}", "https")
    signature = _sign(key, text, f"/blob/{account}/{container}", VERSION, "c")
    return urlencode(
        {
            "sv": VERSION,
            "sr": "c",
            "sp": text[0],
            "st": text[1],
            "se": text[2],
            "spr": text[3],
            "sig": base64.b64encode(signature).decode(),
        }
    )


def _sign(key: bytes, text: tuple[str, str, str, str], resource: str, version: str, kind: str) -> bytes:
    permissions, start, end, protocol = text
    fields = (permissions, start, end, resource, "", "", protocol, version, kind, "", "", "", "", "", "", "")
    return hmac.digest(key, "\n".join(fields).encode(), hashlib.sha256)


def _time(text: str, name: str) -> datetime:
    match = _TIME.fullmatch(text)
    if match is None:
        raise _failed(f"{name} is not a time in UTC")
    seconds = f"{match[1]}T{match[2] or '00:00'}:{match[3] or '00'}"
    try:
        return datetime.strptime(seconds, "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC)
    except ValueError as error:
        raise _failed(f"{name} is not a time in UTC") from error


def _failed(why: str) -> NotAuthenticated:
    return NotAuthenticated(
        f"Server failed to authenticate the request. The shared access signature was not accepted: {why}.",
        code="AuthenticationFailed",
    )
