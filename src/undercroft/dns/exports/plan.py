"""What a renderer is given and what it returns, and the words that every file opens with."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from ipaddress import IPv4Address
from typing import Literal

from undercroft.dns.requirements import Requirements

__all__ = ["ConfigurationFile", "Mode", "Plan", "Renderer", "stamp_in", "title_in"]

Mode = Literal["forward", "records"]

_OPENING = "Undercroft dns export of private endpoints: "
_TITLE = re.compile(re.escape(_OPENING) + "(.+)")
_STAMP = re.compile(r"\bwritten[\": ]+(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)")


@dataclass(frozen=True, slots=True)
class ConfigurationFile:
    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What to write for whom. ``folder`` is where the files will lie on the server: some name each other by path."""

    required: Requirements
    mode: Mode
    forward_to: tuple[IPv4Address, ...]
    written: datetime
    ttl: int = 10
    folder: str = "/etc/undercroft"

    @property
    def title(self) -> str:
        """What this is about, on one line of a comment; the same whenever it is made again."""
        return re.sub(r"[^\w .,()-]", "?", self.required.subject)

    @property
    def moment(self) -> str:
        return self.written.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    @property
    def serial(self) -> int:
        """A zone serial that grows with every writing."""
        return int(self.written.timestamp())

    def at(self, written: datetime) -> Plan:
        """The same, written then: equal text means that nothing else has changed since."""
        return replace(self, written=written)

    def header(self, comment: str, apply: tuple[str, ...]) -> str:
        """The opening comment; ``apply`` is how the files are put to use on this server."""
        lines = [
            f"{_OPENING}{self.title}",
            f"written {self.moment}; mode {self.mode}",
            *apply,
        ]
        if self.mode == "records":
            lines += [
                "NAMES WILL BE ADDED: blob and queue after the first registration, blob after the first backup, more as the",
                "vault grows. 'undercroft dns watch' keeps this current; 'undercroft dns diff' says what a resolver lacks.",
            ]
        else:
            lines.append(
                "Names that are added later need nothing here, as long as their zones are linked where this forwards to."
            )
        return "".join(f"{comment} {line}".rstrip() + "\n" for line in lines)


Renderer = Callable[[Plan], tuple[ConfigurationFile, ...]]


def stamp_in(text: str) -> datetime | None:
    """When a file of ours was written, by its own word."""
    found = _STAMP.search(text)
    return None if found is None else datetime.strptime(found[1], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


def title_in(text: str) -> str | None:
    """What a file of ours is about, by its own word; None where its format has no comments."""
    found = _TITLE.search(text)
    return None if found is None else found[1].rstrip()
