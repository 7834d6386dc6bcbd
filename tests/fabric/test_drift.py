"""Damage by hand is found in the kernel's own tables, mended and reported; nothing else is touched."""

from __future__ import annotations

import subprocess
from ipaddress import IPv4Address

import pytest

from tests.fabric.machine import DATABASE, ENDPOINT, PATHS, PUBLIC, PYTHON, WEB, Machine, host, network, run
from tests.fabric.test_execution import start_daemon
from tests.fabric.test_packets import greeter
from undercroft.fabric.client import FabricClient
from undercroft.fabric.plan import LinkPlan, Observed, Plan, compare
from undercroft.fabric.rtnetlink import LOOPBACK, Address, Link, Netlink

pytestmark = pytest.mark.rootless

SPECIFICATION = network("a", host("web"), host("database", DATABASE))

IN_THE_NETWORK = [
    (f"ip addr del {ENDPOINT}/32 dev lo", [f"address {ENDPOINT}/32"]),
    ("ip addr add 10.0.1.99/32 dev lo", ["stray address 10.0.1.99/32"]),
    ("ip route del unreachable 10.0.0.0/16", ["route unreachable 10.0.0.0/16"]),
    ("ip route add 192.0.2.0/24 dev vm1000", ["stray route 192.0.2.0/24"]),
    (f"ip route replace {WEB}/32 dev vm1001", [f"stray route {WEB}/32", f"route {WEB}/32"]),
    ("ip link set vm1000 down", ["link of VM web", f"route {WEB}/32"]),
    ("ip link set vm1000 address 02:00:00:00:00:01", ["link of VM web"]),
    ("/sbin/sysctl -q net.ipv4.conf.vm1000.proxy_arp=0", ["link of VM web"]),
    ("/sbin/sysctl -q net.ipv4.conf.vm1000.rp_filter=0", ["link of VM web"]),
    ("/sbin/sysctl -q net.ipv4.conf.vm1000.forwarding=0", ["link of VM web"]),
    ("ip link set lo down", ["loopback link"]),
    ("ip link add vm1007 index 1007 type veth peer name far", ["stray link vm1007"]),
]

IN_THE_VM = [
    (f"ip addr del {WEB}/24 dev eth0", f"address {WEB}/24 in VM web"),
    ("ip addr add 10.0.1.200/24 dev eth0", "stray address 10.0.1.200/24 in VM web"),
    ("ip route del default", "route 0.0.0.0/0 in VM web"),
    ("ip route del 10.0.1.0/24", "route 10.0.1.0/24 in VM web"),
    ("ip link set eth0 down", "link in VM web"),
    ("ip link del eth0", "link of VM web"),
    ("ip link set eth0 down name other", "link of VM web"),
]


async def reaches(client: FabricClient) -> None:
    """What must hold whatever was done: every address answers both VMs, and tells who called."""
    ask = (
        "import socket, sys\nfor address in sys.argv[1:]:\n"
        " with socket.create_connection((address, 443), 8) as c: print(c.recv(100).decode())"
    )
    async with await greeter(client):
        for vm, own in (("web", WEB), ("database", DATABASE)):
            output = await run(client, vm, PYTHON, "-c", ask, str(ENDPOINT), str(PUBLIC), "168.63.129.16")
            assert output.out.splitlines() == [f"a {there} {own}" for there in (ENDPOINT, PUBLIC, "168.63.129.16")], (
                output
            )


@pytest.mark.parametrize(("damage", "expected"), IN_THE_NETWORK, ids=[damage for damage, _ in IN_THE_NETWORK])
async def test_damaged_network(client: FabricClient, machine: Machine, damage: str, expected: list[str]) -> None:
    drifts = await client.apply(SPECIFICATION)
    assert drifts and all(drift.created for drift in drifts)
    assert await client.apply(SPECIFICATION) == ()
    machine.inside(machine.namespace_with(ENDPOINT), *damage.split())
    drifts = await client.apply(SPECIFICATION)
    assert not any(drift.created for drift in drifts)
    assert [drift.what for drift in drifts] == expected or set(expected) <= {drift.what for drift in drifts}
    assert await client.apply(SPECIFICATION) == ()
    await reaches(client)


@pytest.mark.parametrize(("damage", "expected"), IN_THE_VM, ids=[damage for damage, _ in IN_THE_VM])
async def test_damaged_vm(client: FabricClient, machine: Machine, damage: str, expected: str) -> None:
    """What runs in the VM survives the mending."""
    await client.apply(SPECIFICATION)
    daemon = await start_daemon(client, machine)
    machine.inside(machine.namespace_with(WEB), *damage.split())
    drifts = await client.apply(SPECIFICATION)
    assert expected in {drift.what for drift in drifts}
    assert not any(drift.created for drift in drifts)
    assert await client.apply(SPECIFICATION) == ()
    await reaches(client)
    assert (await run(client, "web", "kill", str(daemon))).status == 0


async def test_deleted_link_of_the_network(client: FabricClient, machine: Machine) -> None:
    """Both ends of a pair go at once; the VM gets a new one, with the same MAC as before."""
    await client.apply(SPECIFICATION)
    before = await run(client, "web", "cat", "/proc/net/arp")
    machine.inside(machine.namespace_with(ENDPOINT), "ip", "link", "del", "vm1000")
    drifts = {drift.what for drift in await client.apply(SPECIFICATION)}
    assert {"link of VM web", f"route {WEB}/32", f"address {WEB}/24 in VM web"} <= drifts
    assert before.status == 0
    await reaches(client)


async def test_a_vms_own_additions_stay(client: FabricClient, machine: Machine) -> None:
    """A VM may have links and routes of its own."""
    await client.apply(SPECIFICATION)
    inside = machine.namespace_with(WEB)
    machine.inside(inside, "ip", "route", "add", "192.0.2.0/24", "via", "10.0.1.1")
    machine.inside(inside, "ip", "link", "add", "own0", "type", "bridge")
    assert await client.apply(SPECIFICATION) == ()
    assert "192.0.2.0/24" in machine.inside(inside, "ip", "route")
    assert "own0" in machine.inside(inside, "ip", "link")


async def test_resolver_file_is_kept(client: FabricClient) -> None:
    await client.apply(SPECIFICATION)
    assert (await run(client, "web", "sh", "-c", "echo nameserver 192.0.2.1 > /etc/resolv.conf")).status == 0
    drifts = await client.apply(SPECIFICATION)
    assert [(drift.what, drift.created) for drift in drifts] == [("resolv.conf of VM web", False)]
    assert (await run(client, "web", "cat", "/etc/resolv.conf")).out == "nameserver 168.63.129.16\n"


async def test_every_change_of_address(client: FabricClient) -> None:
    """Within a subnet the old address is the link's last, and takes its routes with it; across subnets the gateway moves."""
    other = IPv4Address("10.0.1.44")
    for address in (WEB, other, WEB, IPv4Address("10.0.2.44"), other):
        wanted = network("a", host("web", address))
        drifts = await client.apply(wanted)
        assert drifts and all(drift.created for drift in drifts if "route" not in drift.what)
        assert await client.apply(wanted) == ()
        async with await greeter(client):
            ask = "import socket; print(socket.create_connection(('168.63.129.16', 443), 8).recv(99).decode())"
            output = await run(client, "web", PYTHON, "-c", ask)
            assert output.out == f"a 168.63.129.16 {address}\n", output


REFUSED = """
from ipaddress import IPv4Address, IPv4Network
from undercroft.errors import LocalProblem
from undercroft.fabric.namespace import Namespace, enter_user_namespace
from undercroft.fabric.rtnetlink import LOOPBACK, Address, Route, add_address, add_route, delete_link, set_link

enter_user_namespace()
netlink = Namespace(forwarding=False).netlink
gateway = Route(IPv4Network("198.51.100.0/24"), link=LOOPBACK, gateway=IPv4Address("192.0.2.1"))
address = Address(LOOPBACK, IPv4Address("192.0.2.7"), 32)
netlink.send([set_link(LOOPBACK)], "a test")
netlink.send([delete_link(4_000_000)], "a test")
netlink.send([], "a test")
for messages in ([add_route(gateway), add_address(address)], [add_address(Address(4_000_000, address.address, 32))]):
    try:
        netlink.send(messages, "a test")
    except LocalProblem as error:
        print(error.message)
print(address in netlink.addresses())
"""


def test_kernels_refusal_names_the_step() -> None:
    """And the messages after the refused one are carried out all the same; to delete what is gone is no failure."""
    done = subprocess.run(
        [PYTHON, "-c", REFUSED], env={"PYTHONPATH": PATHS}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    route, address, present = done.stdout.splitlines()
    assert route.startswith("The kernel refused to add route 198.51.100.0/24 in a test: Network is unreachable")
    assert address.startswith("The kernel refused to add address 192.0.2.7/32 in a test: ")
    assert present == "True"


def test_tables_are_read_as_ip_reads_them() -> None:
    netlink = Netlink()
    try:
        shown = subprocess.run(["ip", "-o", "-4", "addr"], check=True, capture_output=True, text=True).stdout
        assert {str(address) for address in netlink.addresses()} == {line.split()[3] for line in shown.splitlines()}
        shown = subprocess.run(["ip", "-o", "link"], check=True, capture_output=True, text=True).stdout
        names = {line.split()[1].rstrip(":").partition("@")[0] for line in shown.splitlines()}
        assert {link.name for link in netlink.links().values()} == names
        shown = subprocess.run(["ip", "-o", "-4", "route"], check=True, capture_output=True, text=True).stdout
        assert len(netlink.routes()) == len(shown.splitlines())
    finally:
        netlink.close()


def test_comparison_tells_damage_from_change() -> None:
    """The same lack is damage if the plan before wanted it too, and news otherwise."""
    address = Address(LOOPBACK, IPv4Address("10.0.0.1"), 32)
    plan = Plan((LinkPlan(LOOPBACK, "lo"),), frozenset({address}), frozenset(), exact_routes=True)
    seen = Observed({LOOPBACK: Link(LOOPBACK, "lo", True, b"", {})}, frozenset(), frozenset())
    assert [(step.what, step.created) for step in compare(plan, None, seen)] == [("address 10.0.0.1/32", True)]
    assert [(step.what, step.created) for step in compare(plan, plan, seen)] == [("address 10.0.0.1/32", False)]
