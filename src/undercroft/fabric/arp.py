"""ARP on a real interface (RFC 5227): ask whether anybody has an address, and tell everybody that we have it now.

A *probe* is a request without a sender's address, so it changes nobody's tables. Whoever has the address answers; whoever is
probing for it at the same time is heard as well (RFC 5227 section 2.1.1). An *announcement* is a request in which sender and target are
the address: neighbours that knew another MAC for it learn ours (section 2.3).
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from types import TracebackType

__all__ = ["Arp", "Packet", "written"]

PROTOCOL = 0x0806
_ETHERNET, _IPV4, _REQUEST = 1, 0x0800, 1
_PACKET = struct.Struct("!6s6sHHHBBH6s4s6s4s")
_EVERYBODY = b"\xff" * 6
_NOBODY = IPv4Address(0)
_PROBES = 3


@dataclass(frozen=True, slots=True)
class Packet:
    """One ARP packet for IPv4 over Ethernet. ``target_mac`` is of no interest in a request."""

    operation: int
    sender_mac: bytes
    sender: IPv4Address
    target: IPv4Address

    def frame(self) -> bytes:
        """To everybody, as every packet of ours is; the link pads it."""
        return _PACKET.pack(
            _EVERYBODY,
            self.sender_mac,
            PROTOCOL,
            _ETHERNET,
            _IPV4,
            6,
            4,
            self.operation,
            self.sender_mac,
            self.sender.packed,
            bytes(6),
            self.target.packed,
        )

    @classmethod
    def parse(cls, frame: bytes) -> Packet | None:
        """None for whatever is not one."""
        if len(frame) < _PACKET.size:
            return None
        _, _, protocol, hardware, network, long, short, operation, mac, sender, _, target = _PACKET.unpack_from(frame)
        if (protocol, hardware, network, long, short) != (PROTOCOL, _ETHERNET, _IPV4, 6, 4):
            return None
        return cls(operation, mac, IPv4Address(sender), IPv4Address(target))

    def claims(self, address: IPv4Address) -> bool:
        """Whether its sender has the address, or is about to take it."""
        if self.sender == address:
            return True
        return self.operation == _REQUEST and self.sender == _NOBODY and self.target == address


def written(mac: bytes) -> str:
    return ":".join(f"{byte:02x}" for byte in mac)


class Arp:
    """A packet socket of one interface; ``OSError`` as the kernel gave it (EPERM without CAP_NET_RAW). Use it in a ``with``."""

    def __init__(self, interface: str) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.htons(PROTOCOL))
        try:
            self._socket.bind((interface, PROTOCOL))
        except BaseException:
            self._socket.close()
            raise
        _, _, _, kind, mac = self._socket.getsockname()
        self.ethernet: bool = kind == _ETHERNET
        self.mac: bytes = mac

    def __enter__(self) -> Arp:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def probe(self, addresses: Collection[IPv4Address], seconds: float) -> dict[IPv4Address, bytes]:
        """Those addresses that somebody else has, each with the MAC that said so. Three probes for each in the first half of
        ``seconds``; with 4 the times are those of RFC 5227 (PROBE_MIN 1 s, ANNOUNCE_WAIT 2 s). Blocks for as long."""
        start = time.monotonic()
        due = [start + seconds * number / 4 for number in range(_PROBES)]
        open_questions = set(addresses)
        taken: dict[IPv4Address, bytes] = {}
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        while open_questions and (now := time.monotonic()) < start + seconds:
            if due and now >= due[0]:
                del due[0]
                for address in sorted(open_questions):
                    self._send(Packet(_REQUEST, self.mac, _NOBODY, address))
            next_step = due[0] if due else start + seconds
            if poll.poll(max(0.0, next_step - time.monotonic()) * 1000):
                packet = Packet.parse(self._socket.recv(2048))
                if packet is None or packet.sender_mac == self.mac:
                    continue
                for address in [one for one in open_questions if packet.claims(one)]:
                    taken[address] = packet.sender_mac
                    open_questions.discard(address)
        return taken

    def heard(self) -> Iterator[Packet]:
        """What others say, one after the other, for as long as the link is up; ``OSError`` then."""
        while True:
            packet = Packet.parse(self._socket.recv(2048))
            if packet is not None and packet.sender_mac != self.mac:
                yield packet

    def announce(self, addresses: Collection[IPv4Address]) -> None:
        for address in sorted(addresses):
            self._send(Packet(_REQUEST, self.mac, address, address))

    def _send(self, packet: Packet) -> None:
        self._socket.send(packet.frame())
