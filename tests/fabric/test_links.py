"""Links between networks: what passes, what does not, and that either side may come, go and be damaged first."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from tests.fabric.machine import PUBLIC, PYTHON, Machine, connect, host, run
from tests.fabric.test_packets import greeter
from undercroft.errors import InvalidParameter
from undercroft.fabric.client import FabricClient
from undercroft.fabric.specification import METADATA_ADDRESS, WIRE_ADDRESS, LinkSpecification, NetworkSpecification

pytestmark = pytest.mark.rootless

UNREACHABLE = (f"OSError {errno.EHOSTUNREACH}", f"OSError {errno.ENETUNREACH}", "TimeoutError None")
SPACES = {name: IPv4Network(f"10.{number}.0.0/16") for number, name in enumerate(("hub", "spoke", "other", "far"), 1)}


def vm(name: str) -> IPv4Address:
    return SPACES[name][260]


def door(name: str) -> IPv4Address:
    return SPACES[name][266]


def gateway(name: str) -> IPv4Address:
    return SPACES[name][257]


def link(to: str, *more: str) -> LinkSpecification:
    """To a network, and to what is behind it."""
    return LinkSpecification(f"/vnet/{to}", tuple(SPACES[name] for name in (to, *more)), frozenset({gateway(to)}))


def linked(name: str, *links: LinkSpecification) -> NetworkSpecification:
    """10.N.0.0/16 with a subnet, a VM called as the network, and an endpoint's address."""
    space = SPACES[name]
    subnet = IPv4Network((space[256], 24))
    hosts = (host(name, vm(name)),)
    return NetworkSpecification(
        f"/vnet/{name}", (space,), (subnet,), frozenset({door(name)}), frozenset({PUBLIC}), hosts, links=links
    )


PAIR = (linked("hub", link("spoke")), linked("spoke", link("hub")))


async def meets(client: FabricClient, near: str, far: str) -> None:
    """The VM of one reaches the other's endpoint, which sees the VM's own address; and the VM itself, both ways."""
    async with await greeter(client, far):
        assert await connect(client, near, door(far)) == f"{far} {door(far)} {vm(near)}"
        for here, there in ((near, far), (far, near)):
            refused = await connect(client, here, vm(there))
            assert refused == f"ConnectionRefusedError {errno.ECONNREFUSED}"


async def apart(client: FabricClient, near: str, *addresses: IPv4Address) -> None:
    for address in addresses:
        assert await connect(client, near, address) in UNREACHABLE, address


@pytest.mark.parametrize("order", [PAIR, PAIR[::-1]], ids=["hub first", "spoke first"])
async def test_a_link_comes_with_the_second_side_and_goes_with_the_first(
    client: FabricClient, machine: Machine, order: Sequence[NetworkSpecification]
) -> None:
    first, second = order
    await client.apply(replace(second, links=()))
    await client.apply(first)
    await apart(client, "spoke", door("hub"))
    drifts = await client.apply(second)
    assert drifts and all(drift.created for drift in drifts)
    assert await client.apply(first) == () == await client.apply(second)
    await meets(client, "spoke", "hub")
    await client.apply(replace(first, links=()))
    await apart(client, "spoke", door("hub"))
    await apart(client, "hub", door("spoke"))
    await client.apply(replace(second, links=()))
    for name in ("hub", "spoke"):
        inside = machine.namespace_with(door(name))
        assert "net1" not in machine.inside(inside, "ip", "link") + machine.inside(inside, "ip", "route")
    assert await client.apply(replace(first, links=())) == ()


async def test_what_is_every_networks_own_does_not_pass_a_link(client: FabricClient) -> None:
    """The platform's and the public addresses answer from the network in which they are asked; the gateways of another are closed."""
    for specification in PAIR:
        await client.apply(specification)
    async with await greeter(client, "hub"), await greeter(client, "spoke"):
        for address in (WIRE_ADDRESS, METADATA_ADDRESS, PUBLIC, gateway("spoke")):
            assert await connect(client, "spoke", address) == f"spoke {address} {vm('spoke')}"
        await apart(client, "spoke", gateway("hub"))
    async with await greeter(client, "hub"):  # and when nobody answers at home, nobody else does
        for address in (WIRE_ADDRESS, METADATA_ADDRESS, PUBLIC):
            assert await connect(client, "spoke", address) == f"ConnectionRefusedError {errno.ECONNREFUSED}"


async def test_nothing_passes_through_a_network_that_was_not_named(client: FabricClient) -> None:
    """hub is linked with spoke and other, which do not meet; far is behind hub for spoke only, and other cannot pretend."""
    await client.apply(linked("hub", link("spoke"), link("other"), link("far")))
    await client.apply(linked("spoke", link("hub", "far")))
    await client.apply(linked("other", link("hub")))
    await client.apply(linked("far", link("hub", "spoke")))
    await meets(client, "spoke", "hub")
    await meets(client, "other", "hub")
    await apart(client, "spoke", door("other"), vm("other"))
    await apart(client, "other", door("spoke"), vm("far"))
    await meets(client, "spoke", "far")
    await meets(client, "far", "spoke")


async def test_a_link_beside_a_connection_does_not_disturb_it(client: FabricClient, machine: Machine) -> None:
    """Neither a link that comes nor one that goes, nor the mending of a third network."""
    await client.apply(linked("hub", link("spoke")))
    await client.apply(linked("spoke", link("hub")))
    await client.apply(linked("other"))
    folder = machine.agent_home("spoke")
    listen = await run(client, "hub", PYTHON, "-c", ECHO, str(machine.agent_home("hub") / "listening"))
    assert listen.status == 0, listen
    await run(client, "spoke", PYTHON, "-c", TALK, str(vm("hub")), str(folder / "go"), str(folder / "said"))
    await client.apply(linked("hub", link("spoke"), link("other")))
    await client.apply(linked("other", link("hub")))
    await meets(client, "other", "hub")
    await client.apply(linked("hub", link("spoke")))
    done = await run(
        client, "spoke", "sh", "-c", f"touch {folder}/go; while ! [ -s {folder}/said ]; do sleep 0.05; done"
    )
    assert done.status == 0
    assert (folder / "said").read_text() == "once again"


DAMAGE = [
    ("ip link del net1000000", {"link to network /vnet/spoke", f"route {SPACES['spoke']}"}),
    ("ip link set net1000000 down", {"link to network /vnet/spoke", f"route {SPACES['spoke']}"}),
    ("ip link set net1000000 arp on", {"link to network /vnet/spoke"}),
    ("ip link set net1000000 address 02:00:00:00:00:01", {"link to network /vnet/spoke"}),
    (f"ip route del {SPACES['spoke']}", {f"route {SPACES['spoke']}"}),
    (f"ip route del unreachable {gateway('spoke')}", {f"route unreachable {gateway('spoke')}/32"}),
    ("/sbin/sysctl -q net.ipv4.conf.net1000000.rp_filter=0", {"link to network /vnet/spoke"}),
    ("ip link add net1000007 index 1000007 type veth peer name lost", {"stray link net1000007"}),
]


async def test_a_damaged_link_is_mended(client: FabricClient, machine: Machine) -> None:
    hub, spoke = PAIR
    await client.apply(hub)
    await client.apply(spoke)
    inside = machine.namespace_with(door("hub"))
    for damage, expected in DAMAGE:
        machine.inside(inside, *damage.split())
        drifts = await client.apply(hub)
        assert expected <= {drift.what for drift in drifts}, damage
        assert not any(drift.created for drift in drifts), damage
        assert await client.apply(spoke) == () == await client.apply(hub), damage
    await meets(client, "spoke", "hub")
    # The far end renamed: seen from its own network.
    machine.inside(inside, "ip", "link", "set", "net1000000", "down", "name", "mine")
    assert {drift.what for drift in await client.apply(hub)} >= {"link to network /vnet/spoke"}
    await meets(client, "hub", "spoke")


async def test_a_network_that_is_built_again_is_linked_again(client: FabricClient) -> None:
    hub, spoke = PAIR
    for _ in range(2):
        await client.apply(hub)
        await client.apply(spoke)
        await meets(client, "spoke", "hub")
        await client.remove(hub.id)
        await apart(client, "spoke", door("hub"))
        assert await client.apply(spoke) == ()
    await client.apply(hub)
    await client.remove(spoke.id)
    assert await client.apply(hub) == ()


async def test_networks_with_one_range_are_linked_with_a_third(client: FabricClient) -> None:
    """twin has spoke's range; each is known only where it is linked."""
    twin = replace(linked("spoke", link("other")), id="/vnet/twin", hosts=(host("twin", vm("spoke")),))
    await client.apply(PAIR[0])
    await client.apply(PAIR[1])
    await client.apply(twin)
    await client.apply(linked("other", replace(link("spoke"), network="/vnet/twin")))
    async with await greeter(client, "twin"), await greeter(client, "spoke"):
        assert await connect(client, "hub", door("spoke")) == f"spoke {door('spoke')} {vm('hub')}"
        assert await connect(client, "other", door("spoke")) == f"twin {door('spoke')} {vm('other')}"
        await apart(client, "twin", door("hub"))


async def test_a_site_has_no_address_of_the_platform(client: FabricClient) -> None:
    site = replace(linked("far", link("hub")), platform=False)
    await client.apply(site)
    await client.apply(linked("hub", link("far")))
    async with await greeter(client, "hub"), await greeter(client, "far"):
        await apart(client, "far", WIRE_ADDRESS, METADATA_ADDRESS)
        assert await connect(client, "far", door("hub")) == f"hub {door('hub')} {vm('far')}"
        assert await connect(client, "far", PUBLIC) == f"far {PUBLIC} {vm('far')}"
        assert await connect(client, "hub", WIRE_ADDRESS) == f"hub {WIRE_ADDRESS} {vm('hub')}"


@pytest.mark.parametrize(
    ("links", "said"),
    [
        ((link("hub"),), "itself"),
        ((link("spoke"), link("spoke")), "twice"),
        ((link("spoke", "hub"),), "overlaps"),
        ((link("spoke"), link("other", "spoke")), "overlaps"),
    ],
)
async def test_impossible_links_are_refused(
    client: FabricClient, links: Sequence[LinkSpecification], said: str
) -> None:
    with pytest.raises(InvalidParameter, match=said):
        await client.apply(linked("hub", *links))
    assert await client.networks() == frozenset()


ECHO = """
import os, socket, sys
listener = socket.create_server(("", 700))
if os.fork():
    os._exit(0)
os.setsid()
for descriptor in range(3):
    os.close(descriptor)
connection, _ = listener.accept()
while data := connection.recv(99):
    connection.sendall(data)
"""
TALK = """
import os, socket, sys, time
address, go, said = sys.argv[1:]
connection = socket.create_connection((address, 700), 5)
connection.sendall(b"once ")
heard = connection.recv(99).decode()
if os.fork():
    os._exit(0)
os.setsid()
for descriptor in range(3):
    os.close(descriptor)
while not os.path.exists(go):
    time.sleep(0.05)
connection.sendall(b"again")
heard += connection.recv(99).decode()
with open(said, "w") as file:
    file.write(heard)
"""
