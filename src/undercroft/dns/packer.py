"""Writing one message: header, question, record sets, OPT; names compressed as dnspython compresses them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from undercroft.dns.answers import NameData, Placed, RecordSet

__all__ = ["Packed", "pack"]

_HEADER: Final = struct.Struct("!6H")
_FIXED: Final = struct.Struct("!HHIH")
_SIZE: Final = struct.Struct("!H")
_IN: Final = 1
_QR_RA: Final = 0x8080
_POINTER: Final = 0xC000
_FARTHEST: Final = 0x3FFF
_QUESTION_AT: Final = 12
_AT_QUESTION: Final = b"\xc0\x0c"
"""A pointer to the question's name: the owner of most records."""


class Packed:
    """A message without id, name of the question and OPT: what answers to all spellings of a question share.

    ``head`` is flags and counts, the additional count left at zero; ``tail`` what follows the question.
    """

    __slots__ = ("head", "tail")

    def __init__(self, head: bytes, tail: bytes) -> None:
        self.head = head
        self.tail = tail


def pack(name: bytes, key: bytes, flags: int, answer: Sequence[Placed], authority: Placed | None) -> Packed:
    """``flags`` without QR and RA, which every answer of ours has. ``key`` is ``name`` in lower case."""
    if authority is None and len(answer) == 1 and answer[0][0] is name and len(name) > 1:
        plain = _plain(answer[0][1])
        if plain is not None:
            return Packed(_HEADER.pack(0, flags | _QR_RA, 1, len(answer[0][1].data), 0, 0)[2:], plain)
    writer = _Writer(name, key)
    answers = 0
    for owner, records in answer:
        answers += writer.put(owner, records)
    authorities = 0 if authority is None else writer.put(*authority)
    head = _HEADER.pack(0, flags | _QR_RA, 1, answers, authorities, 0)[2:]
    return Packed(head, bytes(writer.out))


def _plain(records: RecordSet) -> bytes | None:
    """One set at the question's name without a name in it: most answers. Nothing in it can be compressed but the owner."""
    parts: list[bytes] = []
    for data in records.data:
        if not isinstance(data, bytes):
            return None
        parts += (_AT_QUESTION, _FIXED.pack(records.type, _IN, records.ttl, len(data)), data)
    return b"".join(parts)


class _Writer:
    def __init__(self, name: bytes, key: bytes) -> None:
        self.out = bytearray()
        self._name = name if len(name) > 1 else None  # a pointer is longer than the root
        self._base = _QUESTION_AT + len(name) + 4
        self._offsets: dict[bytes, int] = {}
        at = 0
        while size := key[at]:
            self._offsets[key[at:]] = _QUESTION_AT + at
            at += size + 1

    def put(self, owner: bytes, records: RecordSet) -> int:
        """Append the set; how many records it has."""
        out = self.out
        for data in records.data:
            if owner is self._name:
                out += _AT_QUESTION
            else:
                self._put_name(owner)
            if isinstance(data, bytes):
                out += _FIXED.pack(records.type, _IN, records.ttl, len(data))
                out += data
            else:
                self._put_names(records, data)
        return len(records.data)

    def _put_names(self, records: RecordSet, data: NameData) -> None:
        out = self.out
        out += _FIXED.pack(records.type, _IN, records.ttl, 0)
        begin = len(out)
        out += data.before
        for name in data.names:
            self._put_name(name)
        out += data.after
        _SIZE.pack_into(out, begin - 2, len(out) - begin)

    def _put_name(self, name: bytes) -> None:
        key = name.lower()
        at = 0
        while size := name[at]:
            known = self._offsets.get(key[at:])
            if known is not None:
                self.out += _SIZE.pack(_POINTER | known)
                return
            here = self._base + len(self.out)
            if here <= _FARTHEST:
                self._offsets[key[at:]] = here
            self.out += name[at : at + size + 1]
            at += size + 1
        self.out.append(0)
