"""Names in wire form: labels behind their lengths, up to the empty one of the root. No compression here (see ``packer``).

A name is looked up by its *key*, the wire form in lower case: a length byte is at most 63, and so never a letter. Lookups need no
parser that way: the names above a name are its tails.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from dns.exception import DNSException
from dns.name import Name, from_text, from_wire, root

from undercroft.errors import InvalidParameter

__all__ = ["ROOT", "above", "encoded", "of_name", "shown", "tails"]

ROOT: Final = b"\0"
_LONGEST = 255  # RFC 1035 section 2.3.4
_PLAIN = re.compile(r"(?:[A-Za-z0-9_*-]{1,63}\.)*[A-Za-z0-9_*-]{1,63}\.?\Z")
"""Spelled without escapes and without letters that IDNA must encode: nearly all names, and ten times quicker by hand."""


@lru_cache(maxsize=65536)
def encoded(text: str, what: str = "name") -> bytes:
    """The wire form of a fully qualified name, spelled as given. Raises ``InvalidParameter`` naming ``what`` and the text.

    Remembered, because the public names are published whole when one of them has changed.
    """
    if _PLAIN.match(text) and len(text) < _LONGEST - 1:
        return b"".join(bytes((len(label),)) + label for label in text.rstrip(".").encode().split(b".")) + ROOT
    try:
        return of_name(from_text(text, root))
    except (DNSException, UnicodeError, ValueError) as error:
        raise InvalidParameter(f"The {what} '{text}' is not a DNS name: {error}", target=text) from error


def of_name(name: Name) -> bytes:
    wire = name.to_wire()
    assert wire is not None  # only with a file is there nothing to return
    return wire


def shown(name: bytes) -> str:
    """For people: without the last dot."""
    return from_wire(name, 0)[0].to_text(omit_final_dot=True)


def tails(name: bytes) -> list[bytes]:
    """The name and all names above it, nearest first, without the root."""
    found = []
    at = 0
    while size := name[at]:
        found.append(name[at:])
        at += size + 1
    return found


def above(name: bytes) -> list[bytes]:
    """The names above the name, nearest first, without the root."""
    return tails(name)[1:]
