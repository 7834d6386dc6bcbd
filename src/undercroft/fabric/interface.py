"""The host driver: one network, whose addresses stand on a real interface of this machine, beside the machine's own.

Vocabulary: *ours* are the addresses that we added, each a /32 with the label ``INTERFACE:uc``. Only they are ever removed.

- **Before an address is used** its neighbours are asked for it (``arp``). One that somebody has is *refused*: not added, reported
  with the MAC that answered, and tried again with every ``apply``. Then it is added and announced.
- **The record** beside the socket names what is ours, on disk before the kernel hears of it. Whoever starts next (or ``down``) takes
  away what a killed process left; the same driver on the same interface takes it over instead, so that a restart breaks nobody's
  connection. A record of another boot is void: addresses do not survive one.
- **The machine stays the operator's.** The interface is not set up or down, no route, sysctl or neighbour is touched, nothing listens on
  every address. ``host.address`` may be an address that the machine has already; then it is used and never removed.

- **Afterwards** every ARP packet on the wire is looked at (RFC 5227 section 2.4). Whoever claims an address of ours is answered with an
  announcement, at most once in ten seconds, and reported by the next ``apply``: the address stays ours, but two machines answer for it.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import subprocess
import threading
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import msgspec

from undercroft.errors import CapabilityMissing, Conflict, InvalidParameter, LocalProblem, NotFound
from undercroft.fabric.arp import Arp, written
from undercroft.fabric.capabilities import capabilities_of
from undercroft.fabric.occupants import Record
from undercroft.fabric.rtnetlink import Address, Link, Netlink, add_address, delete_address
from undercroft.fabric.specification import Capabilities, Drift, Execution, NetworkSpecification, Transport

__all__ = ["Interface", "InterfaceDriver", "InterfaceOptions", "interfaces", "require", "take_away"]

_NOBODYS = IPv4Address("192.0.2.255")
"""Of TEST-NET-1: the kernel is asked to delete it, which changes nothing and shows whether we may."""
_IP_FREEBIND = 15
_LABEL = ":uc"
_LONGEST_LABEL = 15
_SECOND_ANNOUNCEMENT = 2.0
_DEFEND_SECONDS = 10.0
"""Of RFC 5227: ANNOUNCE_INTERVAL, DEFEND_INTERVAL."""
_LINK_SECONDS = 1.0
"""Between two looks whether a link is back."""


@dataclass(frozen=True, slots=True)
class InterfaceOptions:
    """``[host]`` of the settings."""

    name: str
    address: IPv4Address
    """Where the name server, login and management answer."""
    probe_seconds: float


@dataclass(frozen=True, slots=True)
class Interface:
    """One interface of this machine and the networks that it is attached to."""

    name: str
    index: int
    mac: bytes
    up: bool
    on_link: tuple[IPv4Network, ...]


class AddressRecord(msgspec.Struct, frozen=True):
    """What the next process has to know, in a small file. Atomic; not synced: after a power failure it is of another boot."""

    boot: str
    interface: str
    index: int
    network: str
    addresses: tuple[str, ...]

    def write(self, path: Path) -> None:
        new = path.with_name(path.name + ".new")
        new.write_bytes(msgspec.json.encode(self))
        new.replace(path)


def interfaces() -> tuple[Interface, ...]:
    """Those of this process's network namespace that can carry a network: Ethernet, with an IPv4 prefix of its own."""
    netlink = Netlink()
    try:
        links, addresses = netlink.links(), netlink.addresses()
    finally:
        netlink.close()
    found = []
    for link in sorted(links.values(), key=lambda one: one.index):
        if len(link.mac) == 6 and any(link.mac):
            found.append(Interface(link.name, link.index, link.mac, link.up, _on_link(link, addresses)))
    return tuple(found)


def _on_link(link: Link, addresses: Collection[Address]) -> tuple[IPv4Network, ...]:
    prefixes = {
        IPv4Network((one.address, one.length), strict=False)
        for one in addresses
        if one.link == link.index and one.length < 31
    }
    return tuple(sorted(prefixes))


def require(options: InterfaceOptions) -> Interface:
    """The interface, if this process may do there what the driver does; else ``LocalProblem`` naming what is in the way, and
    ``InvalidParameter`` for options that cannot be."""
    known = interfaces()
    found = next((one for one in known if one.name == options.name), None)
    if found is None:
        names = ", ".join(f"{one.name} ({', '.join(map(str, one.on_link)) or 'no address'})" for one in known)
        raise InvalidParameter(
            f"This machine has no interface '{options.name}'. It has: {names or 'none that could be used'}.",
            target="host.interface",
        )
    if not any(options.address in prefix for prefix in found.on_link):
        raise InvalidParameter(
            f"host.address {options.address} is in no network of {found.name} "
            f"({', '.join(map(str, found.on_link)) or 'it has no address'}).",
            target="host.address",
        )
    _require_rights(found)
    return found


def _require_rights(interface: Interface) -> None:
    missing = []
    netlink = Netlink()
    try:
        netlink.send([delete_address(Address(interface.index, _NOBODYS, 32))], f"interface {interface.name}")
    except LocalProblem:
        missing.append("CAP_NET_ADMIN (to add addresses)")
    finally:
        netlink.close()
    try:
        with Arp(interface.name) as arp:
            if not arp.ethernet:
                raise LocalProblem(f"{interface.name} is no Ethernet interface, so nobody can be asked for an address.")
    except PermissionError:
        missing.append("CAP_NET_RAW (to ask for them with ARP)")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as trial:
        try:
            trial.bind(("127.0.0.1", 53))
        except PermissionError:
            missing.append("CAP_NET_BIND_SERVICE (ports 53 and 443)")
        except OSError:
            pass  # somebody has it: not ours to need
    if missing:
        raise LocalProblem(
            f"The host driver lacks {', '.join(missing)} on {interface.name}. Run as root, or give the service these "
            "capabilities (systemd: AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW CAP_NET_BIND_SERVICE).",
            code="DriverNotPossible",
        )


def take_away(path: Path) -> int:
    """Remove the addresses that a killed host driver left on its interface, and its record; how many. ``LocalProblem`` when
    this process may not."""
    record = _read(path)
    if record is None:
        return 0
    netlink = Netlink()
    try:
        left = _left(netlink, record)
        netlink.send([delete_address(one) for one in left], f"interface {record.interface}")
    finally:
        netlink.close()
    path.unlink(missing_ok=True)
    return len(left)


def _read(path: Path) -> AddressRecord | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=AddressRecord)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise LocalProblem(
            f"{path} is damaged ({error}). Remove the addresses labelled '{_LABEL}' ('ip addr') by hand, then the file."
        ) from error


def _left(netlink: Netlink, record: AddressRecord) -> frozenset[Address]:
    if record.boot != Record.current_boot():
        return frozenset()
    link = netlink.links().get(record.index)
    if link is None or link.name != record.interface:
        return frozenset()  # that interface is gone, and its addresses with it
    named = {Address(record.index, IPv4Address(text), 32) for text in record.addresses}
    return netlink.addresses() & named


class InterfaceDriver:
    """See the module. Neighbours are asked in a thread, in which all changes are made, one after the other."""

    def __init__(self, options: InterfaceOptions, record: Path) -> None:
        self._options = options
        self._claims: dict[IPv4Address, bytes] = {}
        """Who else claimed an address of ours since the last ``apply``."""
        self._path = record
        self._changes = ThreadPoolExecutor(1, "changes")
        self._boot = Record.current_boot()
        self._ours: frozenset[Address] = frozenset()
        self._network: str | None = None
        self._carried = True
        self._again: threading.Timer | None = None
        interface = require(options)
        self._index = interface.index
        self._capabilities = capabilities_of("host", interface=options.name, on_link=interface.on_link)
        self._netlink = Netlink()
        self._adopt()
        threading.Thread(target=self._watch, name="arp", daemon=True).start()

    def _watch(self) -> None:
        """For life: hear who else claims what is ours."""
        defended: dict[IPv4Address, float] = {}
        while True:
            try:
                with Arp(self._options.name) as arp:
                    for packet in arp.heard():
                        if any(one.address == packet.sender for one in self._ours):
                            self._claims[packet.sender] = packet.sender_mac
                            now = time.monotonic()
                            if now - defended.get(packet.sender, 0.0) > _DEFEND_SECONDS:
                                defended[packet.sender] = now
                                arp.announce([packet.sender])
            except OSError:  # the link is down, or gone
                time.sleep(_LINK_SECONDS)

    def _adopt(self) -> None:
        record = _read(self._path)
        if record is None:
            return
        if (record.interface, record.index) == (self._options.name, self._index):
            self._ours = _left(self._netlink, record)
            self._network = record.network if self._ours else None
        else:
            take_away(self._path)
        self._write()

    def _write(self) -> None:
        if self._network is None and not self._ours:
            self._path.unlink(missing_ok=True)
            return
        addresses = tuple(str(one.address) for one in sorted(self._ours, key=lambda one: one.address))
        AddressRecord(self._boot, self._options.name, self._index, self._network or "", addresses).write(self._path)

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    def networks(self) -> frozenset[str]:
        return frozenset() if self._network is None else frozenset({self._network})

    async def apply(self, specification: NetworkSpecification) -> tuple[Drift, ...]:
        return await asyncio.get_running_loop().run_in_executor(self._changes, self._apply, specification)

    def _apply(self, specification: NetworkSpecification) -> tuple[Drift, ...]:
        for what, ability, wanted in (
            ("virtual machines", "execute", specification.hosts),
            ("peerings", "peerings", specification.links),
            ("security groups", "security groups", specification.filters),
        ):
            if wanted:
                reason = dict(self._capabilities.missing)[ability]
                raise CapabilityMissing(f"Network {specification.id} cannot have {what}: {reason}.")
        if self._network not in (None, specification.id):
            reason = dict(self._capabilities.missing)["several networks"]
            raise Conflict(f"{self._options.name} carries the network {self._network} already: {reason}.")
        link = self._require_link(specification)
        drifts = []
        if self._network is None:
            drifts.append(Drift(specification.id, "network", created=True))
        self._network = specification.id
        return (*drifts, *self._converge(link, specification))

    def _require_link(self, specification: NetworkSpecification) -> Link:
        link = self._netlink.links().get(self._index)
        name = self._options.name
        if link is None or link.name != name:
            raise LocalProblem(f"The interface {name} is gone. Bring it back, or stop and change host.interface.")
        if not link.up:
            raise LocalProblem(f"The interface {name} is down. Set it up: 'ip link set {name} up'.")
        on_link = _on_link(link, self._netlink.addresses())
        if len(specification.prefixes) != 1 or specification.prefixes[0] not in on_link:
            wanted = ", ".join(map(str, specification.prefixes))
            raise LocalProblem(
                f"Network {specification.id} ({wanted}) is not what {name} is attached to: "
                f"{', '.join(map(str, on_link)) or 'it has no address'}."
            )
        return link

    def _converge(self, link: Link, specification: NetworkSpecification) -> list[Drift]:
        network, index = specification.id, self._index
        seen = self._netlink.addresses()
        wanted = {Address(index, one, 32) for one in {*specification.addresses, self._options.address}}
        own = {one.address for one in seen - self._ours}
        if self._options.address in own:
            wanted.discard(Address(index, self._options.address, 32))
        drifts = self._remove(network, (self._ours - wanted) & seen)
        lost = self._ours & wanted - seen
        refused: dict[IPv4Address, str] = {}
        for one in wanted - seen:
            if one.address in own:
                refused[one.address] = "this machine has it already"
        for one in wanted & seen - self._ours:
            refused[one.address] = "this machine has it already"
        asked = {one for one in wanted - seen if one.address not in refused}
        if asked and not link.carrier:
            refused |= {one.address: f"{link.name} has no carrier, so nobody can be asked for it" for one in asked}
        elif asked:
            with Arp(link.name) as arp:
                taken = arp.probe([one.address for one in asked], self._options.probe_seconds)
            refused |= {address: f"{written(mac)} has it already" for address, mac in taken.items()}
        added = {one for one in asked if one.address not in refused}
        self._ours = frozenset((self._ours & wanted & seen) | added)
        self._write()
        self._add(network, added)
        returned = link.carrier and not self._carried
        self._carried = link.carrier
        self._announce([one.address for one in (self._ours if returned else added)])
        drifts += [Drift(network, f"address {one}", created=one not in lost) for one in sorted(added, key=_order)]
        claims, self._claims = self._claims, {}
        drifts += [
            Drift(network, f"address {address}: {written(mac)} claims it as well; announced again", created=False)
            for address, mac in sorted(claims.items())
        ]
        drifts += [
            Drift(network, f"address {address} is refused: {why}", created=False, refused=address)
            for address, why in sorted(refused.items())
        ]
        return drifts

    def _remove(self, network: str, addresses: Collection[Address]) -> list[Drift]:
        if not addresses:
            return []
        ordered = sorted(addresses, key=_order)
        self._netlink.send([delete_address(one) for one in ordered], f"network {network}")
        return [Drift(network, f"stray address {one}", created=True) for one in ordered]

    def _add(self, network: str, addresses: Collection[Address]) -> None:
        label = self._options.name + _LABEL
        chosen = label if len(label) <= _LONGEST_LABEL else ""
        self._netlink.send([add_address(one, chosen) for one in sorted(addresses, key=_order)], f"network {network}")

    def _announce(self, addresses: Collection[IPv4Address]) -> None:
        """Twice, as RFC 5227 section 2.3 says; the second time by itself."""
        if not addresses:
            return

        def say() -> None:
            try:
                with Arp(self._options.name) as arp:
                    arp.announce(addresses)
            except OSError:
                return  # the link went down; when it is back they are announced again

        say()
        self._again = threading.Timer(_SECOND_ANNOUNCEMENT, say)
        self._again.daemon = True
        self._again.start()

    async def remove(self, network: str) -> None:
        await asyncio.get_running_loop().run_in_executor(self._changes, self._take_away, network)

    def _take_away(self, network: str) -> None:
        if network == self._network:
            self._remove(network, self._ours & self._netlink.addresses())
            self._ours, self._network = frozenset(), None
            self._write()

    def listen(self, network: str, address: IPv4Address | None, port: int, transport: Transport) -> socket.socket:
        if network != self._network:
            raise NotFound(f"There is no network {network} in this fabric.")
        if address is None:
            raise InvalidParameter("On a real interface nothing listens on every address; name one.", target="address")
        kind = socket.SOCK_STREAM if transport is Transport.TCP else socket.SOCK_DGRAM
        made = socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            made.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
            if transport is Transport.TCP:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind((str(address), port))
            if transport is Transport.TCP:
                made.listen(1024)
        except OSError as error:
            made.close()
            hint = ""
            if error.errno == errno.EADDRINUSE:
                hint = (
                    f" Something else of this machine listens there, perhaps on every address ('ss -lnp sport = :{port}'); "
                    "let it listen on its own addresses only."
                )
            raise LocalProblem(
                f"The kernel refused to listen on {address}:{port}/{transport}: {os.strerror(error.errno or 0)}.{hint}"
            ) from error
        return made

    def spawn(self, execution: Execution) -> subprocess.Popen[bytes] | int:
        reason = dict(self._capabilities.missing)["execute"]
        raise CapabilityMissing(f"There are no virtual machines here: {reason}.")

    def cookies(self) -> dict[str, int]:
        return {} if self._network is None else {self._network: self._netlink.cookie}

    def close(self) -> None:
        self._changes.shutdown(cancel_futures=True)
        if self._again is not None:
            self._again.cancel()
        if self._network is not None:
            self._take_away(self._network)
        self._netlink.close()


def _order(address: Address) -> IPv4Address:
    return address.address
