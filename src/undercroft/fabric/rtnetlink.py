"""Raw rtnetlink: the few messages that networks need, sent in one write, and the kernel's tables read back as values.

A netlink socket stays in the namespace in which it was made, so it is used from any thread afterwards. Interface indexes are
chosen by the caller; nothing has to be looked up between messages and a whole batch travels at once. Only the last message
asks for an acknowledgement: the kernel handles them in order and reports every failure anyway (netlink(7)).

Sources: linux/rtnetlink.h, linux/if_link.h, linux/neighbour.h; per-interface IPv4 settings are IFLA_INET_CONF, which the
kernel accepts in RTM_SETLINK and shows in every dump of links (net/ipv4/devinet.c), so no walk through /proc is needed.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import IPv4Address, IPv4Network

from undercroft.errors import LocalProblem

__all__ = [
    "LOOPBACK",
    "Address",
    "Link",
    "Message",
    "Netlink",
    "Route",
    "RouteKind",
    "Setting",
    "add_address",
    "add_pair",
    "add_route",
    "delete_address",
    "delete_link",
    "delete_route",
    "set_arp_timing",
    "set_link",
]

LOOPBACK = 1
"""The index of ``lo`` in every namespace (LOOPBACK_IFINDEX)."""

_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_REPLACE, _EXCLUSIVE, _CREATE = 0x100, 0x200, 0x400
_ERROR, _DONE = 2, 3
_DUMP_INTERRUPTED = 0x10
_NEWLINK, _DELLINK, _GETLINK, _SETLINK = 16, 17, 18, 19
_NEWADDR, _DELADDR, _GETADDR = 20, 21, 22
_NEWROUTE, _DELROUTE, _GETROUTE = 24, 25, 26
_SETNEIGHTBL = 67
_UP, _NOARP, _CARRIER = 0x1, 0x80, 0x10000
_SOL_NETLINK = 270
_SO_NETNS_COOKIE = 71
_LITTLE = sys.byteorder == "little"
_BATCH = 128
"""Messages per write; failures of one batch have to fit the receive buffer."""

_HEADER = struct.Struct("=IHHII")
_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBi")
_ROUTE = struct.Struct("=BBBBBBBBI")
_ATTRIBUTE = struct.Struct("=HH")
_MAIN_TABLE, _STATIC = 254, 4
_SCOPE_UNIVERSE, _SCOPE_LINK, _SCOPE_ANY = 0, 253, 255


class Setting(IntEnum):
    """Per-interface IPv4 settings (IPV4_DEVCONF_* of linux/ip.h)."""

    FORWARDING = 1
    PROXY_ARP = 3
    SEND_REDIRECTS = 6
    RP_FILTER = 8


class RouteKind(IntEnum):
    UNICAST = 1
    UNREACHABLE = 7


@dataclass(frozen=True, slots=True)
class Link:
    index: int
    name: str
    up: bool
    mac: bytes
    settings: Mapping[int, int] = field(hash=False)
    arp: bool = True
    carrier: bool = True


@dataclass(frozen=True, slots=True)
class Address:
    link: int
    address: IPv4Address
    length: int

    def __str__(self) -> str:
        return f"{self.address}/{self.length}"


@dataclass(frozen=True, slots=True)
class Route:
    """A route of the main table. ``link`` is 0 and ``gateway`` None where there is none."""

    destination: IPv4Network
    kind: int = RouteKind.UNICAST
    link: int = 0
    gateway: IPv4Address | None = None
    metric: int = 0

    def __str__(self) -> str:
        return f"{'unreachable ' if self.kind == RouteKind.UNREACHABLE else ''}{self.destination}"


@dataclass(frozen=True, slots=True)
class Message:
    """One request. ``step`` is what an error message says about it; ``forgiven`` errors count as success."""

    kind: int
    flags: int
    body: bytes
    step: str
    forgiven: frozenset[int] = frozenset()


_GONE = frozenset({errno.ENODEV, errno.EADDRNOTAVAIL, errno.ESRCH})


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


def _attributes(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    offset, end = 0, len(data)
    while offset + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4:
            return
        yield kind & 0x3FFF, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def _u32(value: int) -> bytes:
    return struct.pack("=I", value)


def _name(text: str) -> bytes:
    return text.encode("ascii") + b"\0"


def add_pair(
    *,
    index: int,
    name: str,
    mac: bytes,
    peer_index: int,
    peer_name: str,
    peer_mac: bytes,
    peer_namespace: int,
    arp: bool = True,
) -> Message:
    """A veth pair, one end here and one in the namespace of that descriptor. Both are down: a peer that is created up
    is refused (ENOTCONN), so they are set up afterwards. Without ``arp`` neither end asks for the other's MAC; it takes it to
    be its own."""
    flags = 0 if arp else _NOARP
    peer = _LINK.pack(0, 0, peer_index, flags, flags)
    peer += _attribute(3, _name(peer_name)) + _attribute(1, peer_mac) + _attribute(28, _u32(peer_namespace))
    information = _attribute(1, b"veth") + _attribute(2, _attribute(1, peer))
    body = _LINK.pack(0, 0, index, flags, flags) + _attribute(3, _name(name))
    body += _attribute(1, mac) + _attribute(18, information)
    return Message(_NEWLINK, _CREATE | _EXCLUSIVE, body, f"create link {name}")


def delete_link(index: int) -> Message:
    return Message(_DELLINK, 0, _LINK.pack(0, 0, index, 0, 0), f"delete link {index}", _GONE)


def set_link(
    index: int, *, mac: bytes | None = None, settings: Mapping[int, int] | None = None, arp: bool | None = None
) -> Message:
    """Set the interface up, and what else is given."""
    change = _UP if arp is None else _UP | _NOARP
    body = _LINK.pack(0, 0, index, _UP if arp in (None, True) else _UP | _NOARP, change)
    if mac is not None:
        body += _attribute(1, mac)
    if settings:
        values = b"".join(_attribute(kind, _u32(value)) for kind, value in settings.items())
        body += _attribute(26, _attribute(socket.AF_INET, _attribute(1, values)))
    return Message(_SETLINK, 0, body, f"set up link {index}")


def set_arp_timing(index: int, *, proxy_delay: int | None = None, retry: int | None = None) -> Message:
    """In milliseconds. ``proxy_delay``: how long proxy ARP waits before it answers on that interface (the kernel's
    default is up to 0.8 s); ``retry``: between two questions, of which there are three (default 1 s)."""
    parameters = _attribute(1, _u32(index))
    for kind, value in ((13, proxy_delay), (5, retry)):
        if value is not None:
            parameters += _attribute(kind, struct.pack("=Q", value))
    body = struct.pack("=BxH", socket.AF_INET, 0) + _attribute(1, _name("arp_cache")) + _attribute(6, parameters)
    return Message(_SETNEIGHTBL, 0, body, f"set the ARP timing of link {index}")


def _address_body(address: Address) -> bytes:
    raw = address.address.packed
    body = _ADDRESS.pack(socket.AF_INET, address.length, 0, _SCOPE_UNIVERSE, address.link)
    return body + _attribute(2, raw) + _attribute(1, raw)


def add_address(address: Address, label: str = "") -> Message:
    """``label`` begins with the interface's name, as ``eth1:x``; ``ip addr`` shows it."""
    body = _address_body(address) + (_attribute(3, _name(label)) if label else b"")
    return Message(_NEWADDR, _CREATE | _REPLACE, body, f"add address {address}")


def delete_address(address: Address) -> Message:
    return Message(_DELADDR, 0, _address_body(address), f"delete address {address}", _GONE)


def _route_body(route: Route, scope: int) -> bytes:
    destination = route.destination
    body = _ROUTE.pack(
        socket.AF_INET,
        destination.prefixlen,
        0,
        0,
        _MAIN_TABLE,
        _STATIC if scope != _SCOPE_ANY else 0,
        scope,
        route.kind,
        0,
    )
    if destination.prefixlen:
        body += _attribute(1, destination.network_address.packed)
    if route.link:
        body += _attribute(4, _u32(route.link))
    if route.gateway is not None:
        body += _attribute(5, route.gateway.packed)
    if route.metric:
        body += _attribute(6, _u32(route.metric))
    return body


def add_route(route: Route) -> Message:
    direct = route.kind == RouteKind.UNICAST and route.gateway is None
    body = _route_body(route, _SCOPE_LINK if direct else _SCOPE_UNIVERSE)
    return Message(_NEWROUTE, _CREATE | _REPLACE, body, f"add route {route}")


def delete_route(route: Route) -> Message:
    return Message(_DELROUTE, 0, _route_body(route, _SCOPE_ANY), f"delete route {route}", _GONE)


class Netlink:
    """A routing socket of the namespace in which it is made. Not for use by two threads at once."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        # A lost acknowledgement (no memory) must become an error, not a wait for ever.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 5, 0))
        self._socket.setsockopt(_SOL_NETLINK, 10, 1)  # NETLINK_CAP_ACK: failures do not repeat the request
        self._socket.setsockopt(_SOL_NETLINK, 11, 1)  # NETLINK_EXT_ACK: failures say why
        self._socket.bind((0, 0))
        self._sequence = 0
        try:
            cookie = self._socket.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
        except OSError:  # before Linux 5.14
            cookie = b""
        self.cookie: int = int.from_bytes(cookie, "little" if _LITTLE else "big")
        """Names the namespace as long as the machine runs; every socket in it says the same. 0: this kernel has none."""

    def close(self) -> None:
        self._socket.close()

    def send(self, messages: Sequence[Message], where: str) -> None:
        """Carry out all of them in order; a failure does not stop the later ones. Raises ``LocalProblem`` with the
        first failure, naming the step."""
        failure: tuple[Message, int, str] | None = None
        for start in range(0, len(messages), _BATCH):
            batch = messages[start : start + _BATCH]
            failed = self._send(batch)
            for number, (code, why) in sorted(failed.items()):
                if code not in batch[number].forgiven and failure is None:
                    failure = (batch[number], code, why)
        if failure is not None:
            message, code, why = failure
            reason = os.strerror(code) + (f": {why}" if why else "")
            raise LocalProblem(f"The kernel refused to {message.step} in {where}: {reason}.")

    def _send(self, batch: Sequence[Message]) -> dict[int, tuple[int, str]]:
        first = self._sequence + 1
        self._sequence += len(batch)
        parts: list[bytes] = []
        for number, message in enumerate(batch):
            flags = _REQUEST | message.flags | (_ACK if number == len(batch) - 1 else 0)
            parts.append(_HEADER.pack(16 + len(message.body), message.kind, flags, first + number, 0))
            parts.append(message.body + bytes(-len(message.body) % 4))
        self._socket.send(b"".join(parts))
        failed: dict[int, tuple[int, str]] = {}
        while True:
            for kind, flags, sequence, body in self._receive():
                if kind != _ERROR or sequence < first:
                    continue
                code = -int(struct.unpack_from("=i", body)[0])
                if code:
                    failed[sequence - first] = (code, self._explanation(flags, body))
                if sequence == self._sequence:
                    return failed

    @staticmethod
    def _explanation(flags: int, body: memoryview) -> str:
        if not flags & 0x200:  # NLM_F_ACK_TLVS
            return ""
        for kind, value in _attributes(body[20:]):
            if kind == 1:
                return bytes(value).rstrip(b"\0").decode("utf-8", "replace").rstrip(".")
        return ""

    def _receive(self) -> Iterator[tuple[int, int, int, memoryview]]:
        data = memoryview(self._socket.recv(1 << 18))
        offset = 0
        while offset + 16 <= len(data):
            length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
            yield kind, flags, sequence, data[offset + 16 : offset + length]
            offset += (length + 3) & ~3

    def _dump(self, kind: int, body: bytes) -> list[memoryview]:
        for _ in range(8):  # a table that changes while it is read is read again
            self._sequence += 1
            header = _HEADER.pack(16 + len(body), kind, _REQUEST | _DUMP, self._sequence, 0)
            self._socket.send(header + body)
            rows: list[memoryview] = []
            interrupted = done = False
            while not done:
                for answer, flags, sequence, row in self._receive():
                    if sequence != self._sequence:
                        continue
                    interrupted = interrupted or bool(flags & _DUMP_INTERRUPTED)
                    if answer == _ERROR:
                        code = -int(struct.unpack_from("=i", row)[0])
                        raise LocalProblem(f"The kernel refused to list network state: {os.strerror(code)}.")
                    if answer == _DONE:
                        done = True
                    else:
                        rows.append(row)
            if not interrupted:
                return rows
        raise LocalProblem("The kernel's network tables kept changing while they were read; something else edits them.")

    def links(self) -> dict[int, Link]:
        result: dict[int, Link] = {}
        without_statistics = _attribute(29, _u32(8))
        for row in self._dump(_GETLINK, _LINK.pack(0, 0, 0, 0, 0) + without_statistics):
            _, _, index, flags, _ = _LINK.unpack_from(row)
            name, mac, settings = "", b"", {}
            for kind, value in _attributes(row[16:]):
                if kind == 3:
                    name = bytes(value).rstrip(b"\0").decode("ascii", "replace")
                elif kind == 1:
                    mac = bytes(value)
                elif kind == 26:
                    settings = _settings(value)
            up, arp, carrier = bool(flags & _UP), not flags & _NOARP, bool(flags & _CARRIER)
            result[index] = Link(index, name, up, mac, settings, arp, carrier)
        return result

    def addresses(self) -> frozenset[Address]:
        result = set()
        for row in self._dump(_GETADDR, _ADDRESS.pack(socket.AF_INET, 0, 0, 0, 0)):
            _, length, _, _, link = _ADDRESS.unpack_from(row)
            found: dict[int, bytes] = {kind: bytes(value) for kind, value in _attributes(row[8:])}
            local = found.get(2) or found.get(1)
            if local is not None:
                result.add(Address(link, IPv4Address(local), length))
        return frozenset(result)

    def routes(self) -> frozenset[Route]:
        """The main table. Routes that the kernel made by itself for addresses are among them."""
        result = set()
        for row in self._dump(_GETROUTE, _ROUTE.pack(socket.AF_INET, 0, 0, 0, 0, 0, 0, 0, 0)):
            _, length, _, _, table, _, _, route_kind, _ = _ROUTE.unpack_from(row)
            if table != _MAIN_TABLE:
                continue
            found: dict[int, bytes] = {kind: bytes(value) for kind, value in _attributes(row[12:])}
            gateway = found.get(5)
            result.add(
                Route(
                    IPv4Network((found.get(1, bytes(4)), length)),
                    route_kind,
                    int.from_bytes(found.get(4, b""), "little" if _LITTLE else "big"),
                    None if gateway is None else IPv4Address(gateway),
                    int.from_bytes(found.get(6, b""), "little" if _LITTLE else "big"),
                )
            )
        return frozenset(result)


def _settings(families: memoryview) -> dict[int, int]:
    for family, inside in _attributes(families):
        if family == socket.AF_INET:
            for kind, values in _attributes(inside):
                if kind == 1:
                    return dict(enumerate(struct.unpack(f"={len(values) // 4}I", values), start=1))
    return {}
