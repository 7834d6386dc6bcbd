"""The host driver on a LAN made of a veth: what the other host on the wire hears, and what stands on the interface."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from tests.fabric.lan import INTERFACE, MACHINE, NEIGHBOUR, PREFIX, SERVICE, Lan, environment, lan
from undercroft.errors import UndercroftError
from undercroft.fabric.arp import Packet
from undercroft.fabric.client import FabricClient
from undercroft.fabric.specification import Drift, HostSpecification, NetworkSpecification, Transport

pytestmark = pytest.mark.rootless

FIRST, SECOND = IPv4Address("192.168.7.100"), IPv4Address("192.168.7.101")


def network(*addresses: IPv4Address, name: str = "/vnet/lan", prefix: str = PREFIX) -> NetworkSpecification:
    space = IPv4Network(prefix)
    return NetworkSpecification(name, (space,), (space,), frozenset(addresses))


class Fabric:
    """A fabric process with the host driver inside the LAN's machine."""

    def __init__(self, wire: Lan, folder: Path) -> None:
        self.wire = wire
        self.socket = folder / "run" / "fabric.sock"
        self.record = folder / "run" / "fabric.sock.addresses"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, interface: str = INTERFACE, address: IPv4Address = SERVICE, driver: str = "host") -> str | None:
        """What it said if it ended instead of becoming ready."""
        reader, writer = os.pipe()
        words: list[str | Path] = [
            "--socket",
            self.socket,
            "--vms",
            self.socket.parent,
            "--driver",
            driver,
            "--ready-fd",
            str(writer),
        ]
        if driver == "host":
            words += ["--interface", interface, "--address", str(address), "--probe-seconds", "0.2"]
        with tempfile.TemporaryFile() as log:
            process = subprocess.Popen(
                self.wire.machine.command(sys.executable, "-P", "-m", "undercroft.fabric", *words),
                pass_fds=(writer,),
                stderr=log,
                env=environment(),
            )
            os.close(writer)
            said = os.read(reader, 16) if select.select([reader], [], [], 30)[0] else b""
            os.close(reader)
            if said:
                self.process = process
                return None
            process.kill()
            process.wait()
            log.seek(0)
            return log.read().decode()

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(20)
            self.process = None

    async def apply(self, wanted: NetworkSpecification) -> tuple[Drift, ...]:
        client = await FabricClient.connect(self.socket)
        try:
            return await client.apply(wanted)
        finally:
            await client.close()


@pytest.fixture(scope="module")
def wire() -> Iterator[Lan]:
    with lan() as made:
        yield made


@pytest.fixture
def fabric(wire: Lan, tmp_path: Path) -> Iterator[Fabric]:
    made = Fabric(wire, tmp_path)
    try:
        assert made.start() is None
        yield made
    finally:
        made.end()
        assert wire.machine.addresses().keys() == {MACHINE}, "what was added is gone"


def refused(drifts: tuple[Drift, ...]) -> dict[IPv4Address, str]:
    return {drift.refused: drift.what for drift in drifts if drift.refused is not None}


def until(true: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not become true"
        time.sleep(0.05)


async def test_an_address_is_asked_for_then_announced_and_goes_with_the_network(fabric: Fabric) -> None:
    machine = fabric.wire.machine
    mac = machine.run("ip", "-o", "link", "show", INTERFACE).split("link/ether ")[1].split()[0]
    with fabric.wire.listening() as ear:
        drifts = await fabric.apply(network(FIRST))
        assert {drift.what for drift in drifts} == {"network", f"address {FIRST}/32", f"address {SERVICE}/32"}
        assert all(drift.created for drift in drifts)
        heard = ear.heard()
        asked = [one.probes for one in heard if one.probes]
        assert asked.count(FIRST) == 3 and asked.count(SERVICE) == 3
        said = [one for one in heard if one.announces]
        assert {(one.mac, one.announces) for one in said} == {(mac, FIRST), (mac, SERVICE)}
        assert heard.index(said[0]) > max(number for number, one in enumerate(heard) if one.probes)
        assert machine.addresses() == {MACHINE: INTERFACE, FIRST: f"{INTERFACE}:uc", SERVICE: f"{INTERFACE}:uc"}
        assert await fabric.apply(network(FIRST)) == (), "and that is all"
        until(lambda: FIRST in [one.announces for one in ear.heard()])
    drifts = await fabric.apply(network(SECOND))
    assert [drift.what for drift in drifts] == [f"stray address {FIRST}/32", f"address {SECOND}/32"]
    client = await FabricClient.connect(fabric.socket)
    try:
        await client.remove("/vnet/lan")
        assert await client.networks() == frozenset()
    finally:
        await client.close()
    assert machine.addresses().keys() == {MACHINE}
    assert not fabric.record.exists()


async def test_an_address_that_somebody_has_is_refused_until_it_is_free(fabric: Fabric) -> None:
    neighbour = fabric.wire.neighbour
    mac = neighbour.run("ip", "-o", "link", "show", INTERFACE).split("link/ether ")[1].split()[0]
    neighbour.ip(f"addr add {FIRST}/24 dev {INTERFACE}")
    try:
        drifts = await fabric.apply(network(FIRST, SECOND))
        assert refused(drifts) == {FIRST: f"address {FIRST} is refused: {mac} has it already"}
        assert FIRST not in fabric.wire.machine.addresses() and SECOND in fabric.wire.machine.addresses()
        assert refused(await fabric.apply(network(FIRST, SECOND))).keys() == {FIRST}, "said again, tried again"
    finally:
        neighbour.ip(f"addr del {FIRST}/24 dev {INTERFACE}")
    drifts = await fabric.apply(network(FIRST, SECOND))
    assert [(drift.what, drift.refused) for drift in drifts] == [(f"address {FIRST}/32", None)]


async def test_the_machines_own_addresses_are_never_taken_or_removed(fabric: Fabric) -> None:
    machine = fabric.wire.machine
    assert "this machine has it" in refused(await fabric.apply(network(MACHINE)))[MACHINE]
    machine.ip(f"addr add {SECOND}/32 dev {INTERFACE}")
    try:
        assert SECOND in refused(await fabric.apply(network(SECOND)))
        fabric.end()
        assert machine.addresses().keys() == {MACHINE, SECOND}
        assert fabric.start(address=MACHINE) is None, "the machine's own address may be the service's"
        assert refused(await fabric.apply(network(FIRST))) == {}
        assert machine.addresses().keys() == {MACHINE, SECOND, FIRST}
        assert machine.addresses()[MACHINE] == INTERFACE
    finally:
        machine.ip(f"addr del {SECOND}/32 dev {INTERFACE}")


async def test_somebody_who_claims_an_address_later_is_answered_and_told_of(fabric: Fabric) -> None:
    await fabric.apply(network(FIRST))
    neighbour = fabric.wire.neighbour
    mac = neighbour.run("ip", "-o", "link", "show", INTERFACE).split("link/ether ")[1].split()[0]
    claim = (
        "from ipaddress import IPv4Address; from undercroft.fabric.arp import Arp\n"
        f"with Arp('{INTERFACE}') as arp: arp.announce([IPv4Address('{FIRST}')] * 3)"
    )
    with fabric.wire.listening() as ear:
        ear.heard()
        neighbour.run(sys.executable, "-c", claim)
        until(lambda: any(one.announces == FIRST and one.mac != mac for one in ear.heard()))
    drifts = await fabric.apply(network(FIRST))
    assert [(drift.what, drift.created, drift.refused) for drift in drifts] == [
        (f"address {FIRST}: {mac} claims it as well; announced again", False, None)
    ]
    assert await fabric.apply(network(FIRST)) == ()


async def test_what_somebody_removed_comes_back_and_is_announced(fabric: Fabric) -> None:
    await fabric.apply(network(FIRST))
    fabric.wire.machine.ip(f"addr del {FIRST}/32 dev {INTERFACE}")
    with fabric.wire.listening() as ear:
        drifts = await fabric.apply(network(FIRST))
        assert [(drift.what, drift.created) for drift in drifts] == [(f"address {FIRST}/32", False)]
        assert FIRST in [one.announces for one in ear.heard()]


async def test_after_kill_9_the_next_one_takes_over_and_down_takes_away(fabric: Fabric) -> None:
    machine = fabric.wire.machine
    await fabric.apply(network(FIRST))
    fabric.end(signal.SIGKILL)
    assert machine.addresses().keys() == {MACHINE, FIRST, SERVICE}
    assert json.loads(fabric.record.read_text())["addresses"] == [str(SERVICE), str(FIRST)]
    assert fabric.start() is None
    assert await fabric.apply(network(FIRST)) == (), "connections by these addresses go on"
    fabric.end(signal.SIGKILL)
    machine.ip(f"addr del {SERVICE}/32 dev {INTERFACE}")
    machine.run(
        sys.executable,
        "-c",
        "import sys; from pathlib import Path; from undercroft.fabric.process import clear; clear(Path(sys.argv[1]))",
        fabric.socket,
    )
    assert machine.addresses().keys() == {MACHINE}
    assert not fabric.record.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: the driver netns")
async def test_another_driver_takes_away_what_was_left(fabric: Fabric) -> None:
    await fabric.apply(network(FIRST))
    fabric.end(signal.SIGKILL)
    assert fabric.start(driver="netns") is None
    assert fabric.wire.machine.addresses().keys() == {MACHINE}


async def test_a_listener_has_one_address(fabric: Fabric) -> None:
    await fabric.apply(network(FIRST))
    client = await FabricClient.connect(fabric.socket)
    try:
        with pytest.raises(UndercroftError, match="nothing listens on every address"):
            await client.listen("/vnet/lan", None, 443, Transport.TCP)
        with await client.listen("/vnet/lan", FIRST, 443, Transport.TCP) as made:
            assert made.getsockname() == (str(FIRST), 443)
            with pytest.raises(UndercroftError, match="ss -lnp"):
                await client.listen("/vnet/lan", FIRST, 443, Transport.TCP)
            connect = f"import socket; socket.create_connection(('{FIRST}', 443), 5)"
            fabric.wire.neighbour.run(sys.executable, "-c", connect)
            accepted, peer = made.accept()
            accepted.close()
            assert peer[0] == str(NEIGHBOUR)
    finally:
        await client.close()


async def test_what_the_driver_cannot_is_refused_by_name(fabric: Fabric) -> None:
    host = HostSpecification("/vm/web", "web", SECOND)
    with_host = NetworkSpecification(
        "/vnet/lan", (IPv4Network(PREFIX),), (IPv4Network(PREFIX),), frozenset(), frozenset(), (host,)
    )
    with pytest.raises(UndercroftError, match="virtual machines"):
        await fabric.apply(with_host)
    with pytest.raises(UndercroftError, match=f"not what {INTERFACE} is attached to: {PREFIX}"):
        await fabric.apply(network(prefix="192.168.8.0/24"))
    await fabric.apply(network())
    with pytest.raises(UndercroftError, match="carries the network /vnet/lan already"):
        await fabric.apply(network(name="/vnet/other"))


async def test_a_link_that_is_down_is_told_and_announced_when_it_is_back(fabric: Fabric) -> None:
    await fabric.apply(network(FIRST))
    fabric.wire.neighbour.ip(f"link set {INTERFACE} down")
    try:
        assert "no carrier" in refused(await fabric.apply(network(FIRST, SECOND)))[SECOND]
        fabric.wire.machine.ip(f"link set {INTERFACE} down")
        with pytest.raises(UndercroftError, match="is down"):
            await fabric.apply(network(FIRST, SECOND))
    finally:
        for place in (fabric.wire.machine, fabric.wire.neighbour):
            place.ip(f"link set {INTERFACE} up")
    with fabric.wire.listening() as ear:
        assert refused(await fabric.apply(network(FIRST, SECOND))) == {}
        assert {FIRST, SECOND} <= {one.announces for one in ear.heard()}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"interface": "eth7"}, "no interface 'eth7'. It has: lan0 (192.168.7.0/24)"),
        ({"address": IPv4Address("10.0.0.1")}, "host.address 10.0.0.1 is in no network of lan0"),
        ({"interface": "lo"}, "no interface 'lo'"),
    ],
)
def test_a_wrong_option_is_named(wire: Lan, tmp_path: Path, options: dict[str, str], named: str) -> None:
    said = Fabric(wire, tmp_path).start(**options)  # type: ignore[arg-type]
    assert said is not None and named in said


def test_missing_rights_are_named(wire: Lan) -> None:
    """In the machine's namespace, as a user without any right there."""
    ask = (
        "import ctypes\nlibc = ctypes.CDLL(None)\n"
        "assert libc.capset((ctypes.c_uint * 2)(0x20080522, 0), (ctypes.c_uint * 6)()) == 0\n"
        "from ipaddress import IPv4Address\nfrom undercroft.errors import LocalProblem\n"
        "from undercroft.fabric.interface import InterfaceOptions, require\n"
        f"try: require(InterfaceOptions('{INTERFACE}', IPv4Address('{SERVICE}'), 1))\n"
        "except LocalProblem as error: print(error.code, error.message)\n"
    )
    said = wire.machine.run(sys.executable, "-c", ask)
    assert said.startswith("DriverNotPossible")
    for right in ("CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_NET_BIND_SERVICE"):
        assert right in said


def test_packets_of_arp() -> None:
    packet = Packet(1, bytes.fromhex("020000000001"), IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2"))
    assert Packet.parse(packet.frame()) == packet
    assert packet.claims(IPv4Address("10.0.0.1")) and not packet.claims(IPv4Address("10.0.0.2"))
    probe = Packet(1, bytes.fromhex("020000000001"), IPv4Address(0), IPv4Address("10.0.0.2"))
    assert probe.claims(IPv4Address("10.0.0.2"))
    for length in range(len(packet.frame())):
        assert Packet.parse(packet.frame()[:length]) is None
    assert Packet.parse(bytes(60)) is None
