"""The answers of one network that were made of published records, until the next publishing: nothing here can be too old.

Two memories. By the bytes of the query, but for its id: one look-up for a client that repeats itself. By the question (name without
case, type, flags, room, EDNS): for clients whose queries never repeat, because dig and named put a random cookie into each and 0x20
a random spelling. Each network has the same bounded room, so a network that asks for ever new names loses only its own memory.
"""

from __future__ import annotations

from typing import Final

from undercroft.dns.message import Key, Rendered

__all__ = ["AnswerCache"]

_ROOM: Final = 1 << 20
_OVERHEAD: Final = 400
"""Bytes of one network's memory, and about what Python takes for one entry beyond its content."""
_LARGEST: Final = 2048
"""A longer answer, or a longer query (it may be padded to 64 KiB), is not remembered."""


class AnswerCache:
    __slots__ = ("_answers", "_room", "datagrams")

    def __init__(self) -> None:
        self.datagrams: dict[bytes, bytes] = {}
        """Query without its id to answer without it. Read where every microsecond counts, so not behind a method."""
        self._answers: dict[Key, Rendered] = {}
        self._room = _ROOM

    def __len__(self) -> int:
        """Questions that are known."""
        return len(self._answers)

    def clear(self) -> None:
        self.datagrams.clear()
        self._answers.clear()
        self._room = _ROOM

    def find(self, key: Key) -> Rendered | None:
        return self._answers.get(key)

    def keep(self, key: Key, rendered: Rendered) -> None:
        size = len(key[0]) + len(rendered.packed.tail) + len(rendered.options)
        if self._take(size):
            self._answers[key] = rendered

    def keep_datagram(self, wire: bytes, reply: bytes) -> None:
        if self._take(len(wire) + len(reply)):
            self.datagrams[wire[2:]] = reply[2:]

    def _take(self, size: int) -> bool:
        """Whether there is room now. A full memory starts anew: cheap, and what is asked often is back at once."""
        if size > _LARGEST:
            return False
        self._room -= size + _OVERHEAD
        if self._room < 0:
            self.clear()
            self._room -= size + _OVERHEAD
        return True
