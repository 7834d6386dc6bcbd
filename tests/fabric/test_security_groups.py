"""What packets do when the hosts and addresses of a network have filters; seen from inside VMs, on both drivers."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import time
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network
from typing import cast

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fabric.machine import (
    DATABASE,
    ENDPOINT,
    PUBLIC,
    PYTHON,
    WEB,
    Machine,
    connect,
    eventually,
    host,
    network,
    run,
)
from tests.fabric.test_links import PAIR, door, vm
from tests.fabric.test_packets import greeter
from undercroft.errors import InvalidParameter, Unavailable
from undercroft.fabric.addresses import AddressSets
from undercroft.fabric.client import FabricClient
from undercroft.fabric.specification import (
    METADATA_ADDRESS,
    WIRE_ADDRESS,
    AddressSet,
    Guard,
    NetworkSpecification,
    PacketFilter,
    PacketRule,
    Transport,
)

pytestmark = pytest.mark.rootless

ANY = (IPv4Network("0.0.0.0/0"),)
REFUSED, TIMED_OUT = f"ConnectionRefusedError {errno.ECONNREFUSED}", "TimeoutError None"
SECOND = IPv4Address("10.0.1.11")


def only(*addresses: IPv4Address) -> tuple[IPv4Network, ...]:
    return tuple(IPv4Network(address) for address in addresses)


SETS = AddressSets()
"""Of every network here: more than its own rules refer to."""


def packet_rule(
    allow: bool,
    protocol: str,
    sources: tuple[IPv4Network, ...],
    destinations: tuple[IPv4Network, ...],
    source_ports: tuple[tuple[int, int], ...],
    destination_ports: tuple[tuple[int, int], ...],
) -> PacketRule:
    source, destination = (SETS.number(tuple(map(str, networks)), networks) for networks in (sources, destinations))
    return PacketRule(allow, protocol, source, destination, source_ports, destination_ports)


def rule(
    allow: bool,
    destinations: tuple[IPv4Network, ...] = ANY,
    port: int | None = None,
    *,
    protocol: str = "tcp",
    sources: tuple[IPv4Network, ...] = ANY,
) -> PacketRule:
    return packet_rule(allow, protocol, sources, destinations, (), () if port is None else ((port, port),))


ALLOW, DENY = rule(True, protocol=""), rule(False, protocol="")


def filtered(
    *rules: PacketRule,
    inbound: Sequence[PacketRule] = (ALLOW,),
    platform: Sequence[PacketRule] = (),
    id: str = "/nsg/a",
) -> PacketFilter:
    """``rules`` are the outbound ones."""
    return PacketFilter(id, tuple(inbound), rules, tuple(platform))


def spec(
    *filters: PacketFilter,
    web: Iterable[str] | None = None,
    database: Iterable[str] = (),
    guards: tuple[Guard, ...] = (),
    addresses: Sequence[IPv4Address] = (ENDPOINT, SECOND),
) -> NetworkSpecification:
    """``web`` has every filter unless said otherwise, ``database`` none."""
    made = network(
        "a",
        replace(host("web"), filters=tuple(filter.id for filter in filters) if web is None else tuple(web)),
        replace(host("database", DATABASE), filters=tuple(database)),
        addresses=addresses,
    )
    return replace(made, address_sets=SETS.values, filters=filters, guards=guards)


async def quick(client: FabricClient, vm: str, address: IPv4Address, port: int = 443) -> str:
    """As ``connect``, but half a second is enough to call it dropped."""
    code = (
        "import socket, sys\nc = socket.socket(); c.settimeout(0.5)\n"
        "try: c.connect((sys.argv[1], int(sys.argv[2]))); print(c.recv(99).decode())\n"
        "except OSError as e: print(type(e).__name__, e.errno)"
    )
    return (await run(client, vm, PYTHON, "-c", code, str(address), str(port))).out.strip()


async def test_outbound_rules_stand_before_endpoints_and_the_public_side(client: FabricClient) -> None:
    """First match decides; the platform is exempt; what is denied gets no answer, what is allowed and closed is refused."""
    await client.apply(spec(filtered(rule(False, only(SECOND)), rule(True, only(ENDPOINT, SECOND), 443), DENY)))
    async with await greeter(client):
        assert await connect(client, "web", ENDPOINT) == f"a {ENDPOINT} {WEB}"
        denied = await asyncio.gather(*(quick(client, "web", one) for one in (SECOND, PUBLIC, IPv4Address("10.0.1.1"))))
        assert denied == [TIMED_OUT] * 3
        assert await quick(client, "web", ENDPOINT, 444) == TIMED_OUT
        for address in (WIRE_ADDRESS, METADATA_ADDRESS):
            assert await connect(client, "web", address) == f"a {address} {WEB}"
        assert await connect(client, "database", SECOND) == f"a {SECOND} {DATABASE}", "the other VM has no filter"


async def test_the_platform_can_be_denied_by_name(client: FabricClient) -> None:
    named = rule(False, only(WIRE_ADDRESS), 443)
    await client.apply(spec(filtered(ALLOW, platform=(named,))))
    async with await greeter(client):
        assert await quick(client, "web", WIRE_ADDRESS) == TIMED_OUT
        assert await connect(client, "web", METADATA_ADDRESS) == f"a {METADATA_ADDRESS} {WEB}"
        assert await connect(client, "database", WIRE_ADDRESS) == f"a {WIRE_ADDRESS} {DATABASE}"


SERVE = """
import socket, sys, threading
listener = socket.create_server(("0.0.0.0", int(sys.argv[1])))
print("up", flush=True)
def echo(connection):
    connection.sendall(b"hello")
    while data := connection.recv(100): connection.sendall(data)
while True: threading.Thread(target=echo, args=listener.accept()[:1], daemon=True).start()
"""


@contextlib.asynccontextmanager
async def serving(client: FabricClient, vm: str, port: int) -> AsyncIterator[None]:
    task = asyncio.ensure_future(run(client, vm, PYTHON, "-c", SERVE, str(port)))
    try:
        for _ in range(100):
            if await quick(client, vm, WEB if vm == "web" else DATABASE, port) != REFUSED:  # to itself: never filtered
                break
            await asyncio.sleep(0.05)
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_between_machines_the_senders_and_the_receivers_filters_both_decide(client: FabricClient) -> None:
    """And subnet and interface of each: a packet needs the consent of all four. Answers need none."""
    sender = filtered(
        rule(True, only(DATABASE), 8080), rule(True, only(DATABASE), 8082), DENY, inbound=(DENY,), id="/nsg/s"
    )
    subnet = filtered(ALLOW, inbound=(rule(True, port=8080), rule(True, port=8081)), id="/nsg/subnet")
    card = filtered(DENY, inbound=(rule(True, port=8080), rule(True, port=8082)), id="/nsg/card")
    await client.apply(spec(sender, subnet, card, web=["/nsg/s"], database=["/nsg/subnet", "/nsg/card"]))
    async with serving(client, "database", 8080), serving(client, "database", 8081), serving(client, "database", 8082):
        said = await asyncio.gather(*(quick(client, "web", DATABASE, port) for port in (8080, 8081, 8082)))
        assert said == ["hello", TIMED_OUT, TIMED_OUT]
        assert await quick(client, "database", WEB, 8080) == TIMED_OUT
        await client.apply(spec(subnet, card, web=(), database=["/nsg/subnet"]))
        said = await asyncio.gather(*(quick(client, "web", DATABASE, port) for port in (8080, 8081, 8082)))
        assert said == ["hello", "hello", TIMED_OUT]
        await client.apply(spec())
        assert await quick(client, "web", DATABASE, 8082) == "hello", "without filters everything passes again"


async def test_a_guard_stands_before_addresses_whoever_comes(client: FabricClient) -> None:
    guarding = filtered(DENY, inbound=(rule(True, only(ENDPOINT, SECOND), 443, sources=only(WEB)),), id="/nsg/pe")
    await client.apply(spec(guarding, web=(), guards=(Guard(frozenset({ENDPOINT}), ("/nsg/pe",)),)))
    async with await greeter(client):
        assert await connect(client, "web", ENDPOINT) == f"a {ENDPOINT} {WEB}"
        assert await quick(client, "database", ENDPOINT) == TIMED_OUT
        for vm, address in (("web", WEB), ("database", DATABASE)):
            assert await connect(client, vm, SECOND) == f"a {SECOND} {address}", "not guarded"


TALK = """
import os, socket, sys, time
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])), 8)
connection.settimeout(2)
assert connection.recv(100)
open(sys.argv[3], "w").close()
while not os.path.exists(sys.argv[4]): time.sleep(0.01)
connection.sendall(b"still there")
print(connection.recv(100).decode())
"""


async def test_changed_rules_decide_about_new_connections_only(client: FabricClient, machine: Machine) -> None:
    """As in Azure ("modifying rules affects only new connections"): what was let in stays until it ends."""
    await client.apply(spec(filtered(ALLOW)))
    home = machine.agent_home("web")
    async with serving(client, "database", 8080):
        arguments = [str(DATABASE), "8080", str(home / "connected"), str(home / "go")]
        talking = asyncio.ensure_future(run(client, "web", PYTHON, "-c", TALK, *arguments))
        await eventually((home / "connected").exists)
        drifts = await client.apply(spec(filtered(DENY)))
        assert [(drift.what, drift.created) for drift in drifts] == [("security rules", True)]
        assert await quick(client, "web", DATABASE, 8080) == TIMED_OUT
        (home / "go").touch()
        output = await talking
        assert output.out == "still there\n", output


async def test_connections_from_before_the_first_filter_meet_it(client: FabricClient, machine: Machine) -> None:
    """Nobody kept track of them: the next packet of each is looked at as if it were the first."""
    await client.apply(spec())
    home = machine.agent_home("web")
    async with serving(client, "database", 8080):
        talking = [
            asyncio.ensure_future(
                run(client, "web", PYTHON, "-c", TALK, str(DATABASE), "8080", str(home / f"up{go}"), str(home / go))
            )
            for go in ("allowed", "denied")
        ]
        for go in ("allowed", "denied"):
            await eventually((home / f"up{go}").exists)
        await client.apply(spec(filtered(rule(True, only(DATABASE), 8080), DENY)))
        (home / "allowed").touch()
        assert (await talking[0]).out == "still there\n"
        await client.apply(spec())
        await client.apply(spec(filtered(DENY)))
        (home / "denied").touch()
        assert "TimeoutError" in (await talking[1]).err


async def test_a_spoofed_source_does_not_pass_for_somebody_else(client: FabricClient, machine: Machine) -> None:
    """Filters go by the link; a packet with the address of an unfiltered VM is dropped before them."""
    await client.apply(spec(filtered(DENY)))
    async with await greeter(client):
        assert await quick(client, "database", ENDPOINT) == f"a {ENDPOINT} {DATABASE}"
        machine.inside(machine.namespace_with(WEB), "ip", "addr", "add", f"{DATABASE}/32", "dev", "eth0")
        code = (
            "import socket, sys\nc = socket.socket(); c.settimeout(1); c.bind((sys.argv[2], 0))\n"
            "try: c.connect((sys.argv[1], 443)); print('through')\nexcept OSError as e: print(type(e).__name__)"
        )
        assert (await run(client, "web", PYTHON, "-c", code, str(ENDPOINT), str(DATABASE))).out != "through\n"


async def test_damaged_rules_come_back_and_are_reported(client: FabricClient, machine: Machine) -> None:
    """Deleted, or with a rule put in front; a table that somebody adds for themselves is theirs."""
    wanted = spec(filtered(rule(True, only(ENDPOINT)), DENY))
    await client.apply(wanted)
    assert await client.apply(wanted) == ()
    descriptor = machine.namespace_with(WIRE_ADDRESS)
    async with await greeter(client):
        for damage in (
            "delete table ip undercroft\n",
            "insert rule ip undercroft f0_out accept\n",
            "flush ruleset\n",
        ):
            machine.inside(descriptor, PYTHON, "-c", NFT, damage)
            assert await quick(client, "web", SECOND) == f"a {SECOND} {WEB}", "the damage is real"
            drifts = await client.apply(wanted)
            assert [(drift.what, drift.created) for drift in drifts] == [("security rules", False)], damage
            assert await quick(client, "web", SECOND) == TIMED_OUT
            assert await quick(client, "web", ENDPOINT) == f"a {ENDPOINT} {WEB}"
        machine.inside(descriptor, PYTHON, "-c", NFT, "table ip theirs {\n chain c {\n }\n}\n")
        assert await client.apply(wanted) == ()


NFT = """
import ctypes, sys
library = ctypes.CDLL("libnftables.so.1")
library.nft_ctx_new.restype = ctypes.c_void_p
assert library.nft_run_cmd_from_buffer(ctypes.c_void_p(library.nft_ctx_new(0)), sys.argv[1].encode()) == 0
"""


async def test_a_filter_that_is_not_there_is_refused(client: FabricClient) -> None:
    with pytest.raises(InvalidParameter, match="/nsg/none"):
        await client.apply(spec(web=["/nsg/none"]))


async def test_filters_decide_on_both_sides_of_a_link(client: FabricClient) -> None:
    """The sender's in its own network, the endpoint's guard and the receiver's filter in theirs."""
    hub, spoke = PAIR
    only_door = filtered(rule(True, only(door("hub"), vm("hub")), 443), DENY, inbound=(DENY,), id="/nsg/spoke")
    guarding = filtered(DENY, inbound=(rule(True, sources=only(vm("spoke"))), DENY), id="/nsg/hub")

    def hub_with(*rules: PacketRule) -> NetworkSpecification:
        made = replace(guarding, inbound=rules)
        hosts = tuple(replace(one, filters=("/nsg/hub",)) for one in hub.hosts)
        guards = (Guard(frozenset({door("hub")}), ("/nsg/hub",)),)
        return replace(hub, hosts=hosts, filters=(made,), guards=guards, address_sets=SETS.values)

    await client.apply(
        replace(
            spoke,
            hosts=tuple(replace(one, filters=("/nsg/spoke",)) for one in spoke.hosts),
            filters=(only_door,),
            address_sets=SETS.values,
        )
    )
    await client.apply(hub_with(*guarding.inbound))
    async with await greeter(client, "hub"):
        assert await connect(client, "spoke", door("hub")) == f"hub {door('hub')} {vm('spoke')}"
        assert await quick(client, "spoke", vm("hub"), 443) == REFUSED
        assert await quick(client, "spoke", door("hub"), 444) == TIMED_OUT, "the sender's filter"
        assert await quick(client, "hub", vm("spoke")) == TIMED_OUT, "the receiver's filter"
        await client.apply(hub_with(DENY))
        said = await asyncio.gather(quick(client, "spoke", door("hub")), quick(client, "spoke", vm("hub"), 443))
        assert set(said) == {TIMED_OUT}, "the guard, and the filter of the VM behind the link"


# --- against a model -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Packet:
    protocol: str
    source: IPv4Address
    source_port: int
    destination: IPv4Address
    port: int


def holds(addresses: AddressSet, address: IPv4Address) -> bool:
    return any(first <= int(address) <= last for first, last in addresses)


def matches(rule: PacketRule, packet: Packet) -> bool:
    def within(ports: tuple[tuple[int, int], ...], port: int) -> bool:
        return not ports or any(first <= port <= last for first, last in ports)

    return (
        rule.protocol in ("", packet.protocol)
        and holds(SETS.values[rule.sources], packet.source)
        and holds(SETS.values[rule.destinations], packet.destination)
        and within(rule.source_ports, packet.source_port)
        and within(rule.destination_ports, packet.port)
    )


def allowed(rules: Sequence[PacketRule], packet: Packet) -> bool:
    return next((rule.allow for rule in rules if matches(rule, packet)), False)


PROBE = """
# Sends every packet at once, and says which got an answer. It waits longer while answers that are expected are missing.
import json, select, socket, sys, time
packets, links = json.load(sys.stdin), {}
poll = select.poll()
for number, (protocol, source, source_port, destination, port, _) in enumerate(packets):
    link = socket.socket(type=socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    link.setblocking(False)
    link.bind((source, source_port))
    link.connect_ex((destination, port))
    if protocol == "udp": link.send(b"x")
    poll.register(link, select.POLLIN if protocol == "udp" else select.POLLOUT)
    links[link.fileno()] = number, link
answered, missing = set(), {number for number, packet in enumerate(packets) if packet[5]}
end = time.monotonic() + 5
while True:
    if missing <= answered: end = min(end, time.monotonic() + 0.3); missing = {-1}
    left = end - time.monotonic()
    if left <= 0: break
    for descriptor, _ in poll.poll(left * 1000):
        poll.unregister(descriptor)
        answered.add(links[descriptor][0])
print(json.dumps(sorted(answered)))
"""

DESTINATIONS = (ENDPOINT, SECOND, PUBLIC, DATABASE)
PORTS = (53, 443, 444, 8080)
NETWORKS = [
    *map(IPv4Network, ("0.0.0.0/0", "10.0.0.0/16", "10.0.1.0/24", "10.0.1.10/31", "10.0.2.4/32", "203.0.113.0/24"))
]
port_ranges = st.lists(st.tuples(st.sampled_from(PORTS), st.sampled_from((0, 1, 400))), max_size=2).map(
    lambda found: tuple((first, first + more) for first, more in found)
)
rules = st.builds(
    packet_rule,
    st.booleans(),
    st.sampled_from(("", "tcp", "udp", "icmp")),
    st.sampled_from((ANY, only(WEB), only(DATABASE), (IPv4Network("10.0.0.0/16"), IPv4Network("10.0.1.0/24")))),
    st.lists(st.sampled_from(NETWORKS), max_size=3).map(tuple),
    st.sampled_from(((), ((40000, 40999),), ((0, 65535),))),
    port_ranges,
)
rule_lists = st.lists(rules, min_size=2, max_size=12).map(tuple)


class Echo(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, peer: tuple[str, int]) -> None:
        self.transport.sendto(data, peer)


def test_packets_do_what_the_rules_say(machine: Machine) -> None:
    """Any rules on the sender, the receiver and the endpoints, against a model of ten lines. TCP to closed ports is refused at
    once when it is let through; UDP is answered by an echo on the addresses of the network."""

    loop = asyncio.new_event_loop()
    manager = machine.client()
    client = loop.run_until_complete(manager.__aenter__())
    numbers = iter(range(40000, 60000))
    try:
        loop.run_until_complete(client.apply(spec()))
        echoes = [
            loop.run_until_complete(_echo(client, address, port)) for address in DESTINATIONS[:3] for port in PORTS
        ]

        @settings(
            max_examples=8,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(rule_lists, rule_lists, rule_lists)
        def check(
            outbound: tuple[PacketRule, ...], inbound: tuple[PacketRule, ...], guarding: tuple[PacketRule, ...]
        ) -> None:
            made = spec(
                filtered(*outbound, id="/nsg/web"),
                filtered(ALLOW, inbound=inbound, id="/nsg/database"),
                filtered(DENY, inbound=guarding, id="/nsg/pe"),
                web=["/nsg/web"],
                database=["/nsg/database"],
                guards=(Guard(frozenset({ENDPOINT}), ("/nsg/pe",)),),
            )
            sent = []
            for destination in DESTINATIONS:
                for protocol in ("tcp", "udp") if destination != DATABASE else ("tcp",):
                    for port in PORTS:
                        sent.append(Packet(protocol, WEB, next(numbers), destination, port))
            expected = [
                allowed(outbound, packet)
                and (packet.destination != ENDPOINT or allowed(guarding, packet))
                and (packet.destination != DATABASE or allowed(inbound, packet))
                for packet in sent
            ]
            answered = loop.run_until_complete(_probe(client, made, sent, expected))
            assert [number in answered for number in range(len(sent))] == expected

        check()
        for echo in echoes:
            echo.close()
    finally:
        loop.run_until_complete(manager.__aexit__(None, None, None))
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


async def _echo(client: FabricClient, address: IPv4Address, port: int) -> asyncio.DatagramTransport:
    listener = await client.listen("/vnet/a", address, port, Transport.UDP)
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Echo, sock=listener)
    return transport


async def _probe(
    client: FabricClient, made: NetworkSpecification, sent: Sequence[Packet], expected: Sequence[bool]
) -> set[int]:
    await client.apply(made)
    rows = [
        (one.protocol, str(one.source), one.source_port, str(one.destination), one.port, answer)
        for one, answer in zip(sent, expected, strict=True)
    ]
    output = await run(client, "web", PYTHON, "-c", PROBE, stdin=json.dumps(rows).encode())
    assert output.status == 0, output
    return set(json.loads(output.out))


# --- how long it takes ---------------------------------------------------------------------------------------------------


async def test_many_groups_are_one_transaction(client: FabricClient) -> None:
    """Forty groups of ten rules each, four of them at hosts, are changed at once and are one difference."""
    groups = tuple(
        filtered(*(rule(True, only(ENDPOINT), 1000 + n) for n in range(9)), DENY, id=f"/nsg/{number}")
        for number in range(40)
    )
    hosts = [replace(host(f"h{number}", WEB + number), filters=(f"/nsg/{number}",)) for number in range(4)]
    made = replace(network("a", *hosts, addresses=()), address_sets=SETS.values, filters=groups)
    await client.apply(made)
    began = time.monotonic()
    drifts = await client.apply(replace(made, filters=tuple(replace(one, outbound=(DENY,)) for one in groups)))
    assert [drift.what for drift in drifts] == ["security rules"]
    assert time.monotonic() - began < 30, "about 20 ms on a quiet machine: one by one would be a command each"


async def test_large_rules_are_carried_out_and_hold_up_nobody_else(client: FabricClient, machine: Machine) -> None:
    """A thousand rules about twenty thousand ranges: too large for one message to the kernel of an unprivileged user, and hundreds
    of milliseconds of work. Meanwhile another network's VM runs something, and that network is changed."""
    reached = tuple(IPv4Network((11 << 24 | number << 9, 24)) for number in range(20_000))
    first = rule(True, (*reached, *only(ENDPOINT)), 443, sources=(*reached, *only(WEB)))
    allowing = [replace(first, destination_ports=((port, port),)) for port in range(443, 943)]
    denying = [replace(rule, allow=False) for rule in allowing]
    mark = IPv4Address("10.0.1.99")
    large = spec(filtered(*allowing, DENY, inbound=denying), addresses=(ENDPOINT, SECOND, mark))
    other = network("b", host("elsewhere"), addresses=())
    await client.apply(spec(filtered(DENY)))
    await client.apply(other)
    async with machine.client() as second, await greeter(client):
        applying = asyncio.ensure_future(client.apply(large))
        await client.networks()  # it was received
        assert (await run(second, "elsewhere", "true")).status == 0
        assert await second.apply(replace(other, addresses=frozenset({SECOND})))
        assert not applying.done(), "the others waited"
        assert [one.what for one in await applying] == ["security rules", f"address {mark}/32"]
        assert await client.apply(large) == ()
        assert await connect(client, "web", ENDPOINT) == f"a {ENDPOINT} {WEB}"
        said = await asyncio.gather(quick(client, "web", SECOND), quick(client, "web", ENDPOINT, 1000))
        assert set(said) == {TIMED_OUT}
        descriptor = machine.namespace_with(mark)
        machine.inside(descriptor, PYTHON, "-c", NFT, "flush ruleset\n")
        assert await quick(client, "web", SECOND) == f"a {SECOND} {WEB}", "the damage is real"
        assert [(one.what, one.created) for one in await client.apply(large)] == [("security rules", False)]
        assert await quick(client, "web", SECOND) == TIMED_OUT
        await client.apply(spec(filtered(ALLOW)))
        assert await quick(client, "web", SECOND) == f"a {SECOND} {WEB}"


def several(reached: tuple[IPv4Network, ...], count: int) -> list[PacketRule]:
    first = rule(False, reached)
    return [replace(first, destination_ports=((port, port),)) for port in range(1, count)]


async def test_changes_of_one_network_come_in_order(client: FabricClient) -> None:
    """Whoever calls while one is carried out waits; the last one holds."""
    reached = tuple(IPv4Network((11 << 24 | number << 9, 24)) for number in range(5_000))
    large = spec(filtered(*several(reached, 200), DENY))
    done: list[int] = []

    async def numbered(number: int, call: Awaitable[object]) -> None:
        await call
        done.append(number)

    calls = (
        client.apply(large),
        client.apply(spec(filtered(DENY))),
        client.remove(large.id),
        client.apply(large),
        client.apply(spec(filtered(ALLOW))),
    )
    await asyncio.gather(*(numbered(number, call) for number, call in enumerate(calls)))
    assert done == [0, 1, 2, 3, 4]
    async with await greeter(client):
        assert await quick(client, "web", SECOND) == f"a {SECOND} {WEB}"


async def test_the_fabric_can_be_stopped_while_rules_are_made(machine: Machine) -> None:
    reached = tuple(IPv4Network((11 << 24 | number << 9, 24)) for number in range(20_000))
    large = spec(filtered(*several(reached, 900), DENY))
    async with machine.client() as client, machine.client() as second:
        applying = asyncio.ensure_future(client.apply(large))
        await client.networks()
        await second.stop()
        with pytest.raises(Unavailable):
            await applying
