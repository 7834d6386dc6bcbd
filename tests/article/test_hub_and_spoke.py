"""The article's note on on-premises hosts (*make sure your on-premises network is peered with the Azure VNet that contains a private
endpoint*) and its custom DNS server with conditional forwarders, in the network that most people have: a hub, its spokes, an office.

    office (192.168.10.0/24) ── hub (10.20.0.0/16) ── spoke (10.30.0.0/16)      uses the hub's gateway
     dc01: DNS, pc01             dns: a forwarder └── branch (10.40.0.0/16)     does not
                                 the endpoint, the zones

Spokes ask the hub's forwarder, which asks 168.63.129.16; the office asks its own server, which forwards the zones to the hub's. One
deployment per driver; the tests follow each other.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest

from tests.deployment import GROUP, Deployment, NearDeployment, drivers
from tests.nameservers import NameServer
from tests.peers import peer
from undercroft.cli.management import Arm, connect
from undercroft.cli.vms import captured
from undercroft.errors import UndercroftError
from undercroft.names import ResourceId

pytestmark = [pytest.mark.rootless, pytest.mark.slow, pytest.mark.xdist_group("hub-and-spoke")]

ZONE = "privatelink.we.backup.windowsazure.com"
FORWARDER, OFFICE_DNS, PUBLIC_DNS = "10.20.1.4", "192.168.10.4", "203.0.113.22"
SPOKE, BRANCH, PC = "10.30.1.4", "10.40.1.4", "192.168.10.20"
WIRE, METADATA = "168.63.129.16", "169.254.169.254"


@pytest.fixture(scope="module", params=drivers())
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("hub")
    deployment = NearDeployment(folder / "home", request.param)
    forwarder = NameServer(deployment, "dns", "dnsmasq", f"server={WIRE}")
    zones = (ZONE, "blob.core.windows.net", "queue.core.windows.net")
    conditional = "\n".join((f"server={PUBLIC_DNS}", *(f"server=/{zone}/{FORWARDER}" for zone in zones)))
    office = NameServer(deployment, "dc01", "dnsmasq", conditional)
    try:
        deployment.start()
        build(deployment, connect(deployment.home))
        deployment.passphrase.write_text("correct horse battery staple\n", "ascii")
        deployment.files("files", 3)
        forwarder.start()
        office.start()
        yield deployment
    finally:
        forwarder.stop()
        office.stop()
        deployment.stop()


def network_id(arm: Arm, name: str) -> ResourceId:
    return arm.id(GROUP, "Microsoft.Network", "virtualNetworks", name)


def build(site: Deployment, arm: Arm) -> None:
    arm.put(arm.id(GROUP), {"location": "westeurope"})
    make_network(arm, "hub", 20, "dns", ())
    make_network(arm, "spoke", 30, "app01", (FORWARDER,))
    make_network(arm, "branch", 40, "app02", (FORWARDER,), region="northeurope")
    site.vault("safe", deny=True)
    site.endpoint("door", "safe", "hub", "--integrate-dns")
    site.run(
        "site", "create", "office", "-g", GROUP, "--address-prefixes", "192.168.10.0/24", "--dns-servers", OFFICE_DNS
    )
    site.run("site", "attach", "office", "-g", GROUP, "--vnet-name", "hub")
    arm.put(arm.id(GROUP, "Undercroft.Fabric", "sites", "office", "hosts", "dc01"), {})
    site.run("site", "host-create", "pc01", "-g", GROUP, "--site", "office", "--address", PC)
    site.run("peering", "create", "hub-spoke", "-g", GROUP, "--vnet-name", "hub", "--remote-vnet", "spoke", "--both",
             "--allow-gateway-transit")  # fmt: skip
    for near, far in (("hub", "branch"), ("branch", "hub")):
        properties = {"remoteVirtualNetwork": {"id": str(network_id(arm, far))}}
        arm.put(network_id(arm, near).child("virtualNetworkPeerings", "hub-branch"), {"properties": properties})
    site.credentials("safe")


def make_network(arm: Arm, name: str, number: int, vm: str, dns: tuple[str, ...], region: str = "westeurope") -> None:
    id = network_id(arm, name)
    properties = {
        "addressSpace": {"addressPrefixes": [f"10.{number}.0.0/16"]},
        "dhcpOptions": {"dnsServers": dns},
        "subnets": [{"name": "work", "properties": {"addressPrefix": f"10.{number}.1.0/24"}}],
    }
    arm.put(id, {"location": region, "properties": properties})
    configuration = {"name": "ipconfig1", "properties": {"subnet": {"id": f"{id}/subnets/work"}}}
    interface = {"name": f"{vm}-nic", "properties": {"primary": True, "ipConfigurations": [configuration]}}
    profile = {"networkApiVersion": "2020-11-01", "networkInterfaceConfigurations": [interface]}
    machine = arm.id(GROUP, "Microsoft.Compute", "virtualMachines", vm)
    arm.put(machine, {"location": region, "properties": {"networkProfile": profile}})


PROBE = """
# What answers at each of these addresses: open, refused (there is somebody), or nothing.
import concurrent.futures, json, socket, sys
def ask(address):
    try:
        with socket.create_connection((address, 443), 1):
            return "open"
    except (ConnectionRefusedError, ConnectionResetError):
        return "refused"
    except OSError:
        return "nothing"
with concurrent.futures.ThreadPoolExecutor(16) as pool:
    print(json.dumps(dict(zip(sys.argv[1:], pool.map(ask, sys.argv[1:])))))
"""


def probe(site: Deployment, vm: str, *addresses: str) -> dict[str, str]:
    status, out = captured(site.home, vm, (sys.executable, "-c", PROBE, *addresses))
    assert status == 0
    found: dict[str, str] = json.loads(out)
    return found


def asked(site: Deployment, vm: str, name: str, server: str = "") -> str:
    """The address that dig is answered, or the status when there is none; by the host's own server if none is named."""
    at = (f"@{server}",) if server else ()
    _, out = captured(site.home, vm, (str(peer("dig")), "+tries=1", "+time=2", *at, name, "A"))
    lines = [line.split() for line in out.splitlines() if line and not line.startswith(";")]
    answers = [words[4] for words in lines if words[3] == "A"]
    if answers:
        return answers[-1]
    return next(
        (word for word in ("NXDOMAIN", "NOERROR", "SERVFAIL", "REFUSED") if f"status: {word}" in out), "nothing"
    )


def member(site: Deployment, service: str) -> tuple[str, str]:
    """Name and address of one of the endpoint's members."""
    arm = connect(site.home)
    shown = arm.get(arm.id(GROUP, "Microsoft.Network", "privateEndpoints", "door"))
    return next(
        (entry["fqdn"], entry["ipAddresses"][0])
        for entry in shown["properties"]["customDnsConfigs"]
        if service in entry["fqdn"]
    )


def effective_routes(site: Deployment, vm: str) -> list[dict[str, Any]]:
    arm = connect(site.home)
    id = arm.id(GROUP, "Microsoft.Network", "networkInterfaces", f"{vm}-nic")
    found: list[dict[str, Any]] = arm.post(f"{id}/effectiveRouteTable")["value"]
    return found


def change(site: Deployment, network: str, peering: str, **flags: bool) -> None:
    arm = connect(site.home)
    id = network_id(arm, network).child("virtualNetworkPeerings", peering)
    body = arm.get(id)
    body["properties"] |= flags
    arm.put(id, body)


def backs_up_privately(site: Deployment, vm: str) -> None:
    site.inside(vm, "agent", "register", "--credentials", site.home.parent / "safe.credentials")
    site.inside(vm, "agent", "backup", site.home.parent / "files", "--passphrase-file", site.passphrase)
    containers = json.loads(site.run("vault", "containers", "safe", "-g", GROUP, "--json").out)
    found = next(one for one in containers if one["properties"]["friendlyName"] == vm)
    paths = {leg["leg"]: leg["path"] for leg in found["properties"]["extendedInfo"]["paths"]}
    assert {leg for leg, path in paths.items() if path.startswith("private")} >= {"backup", "blob"}, paths


def test_validate_virtual_network_links_only_the_hub_is_linked_and_spokes_ask_its_forwarder(site: Deployment) -> None:
    name, address = member(site, "-id1.")
    assert asked(site, "dns", name) == address
    assert asked(site, "app01", name, WIRE) == "NXDOMAIN"
    assert asked(site, "app01", name) == asked(site, "app02", name) == address
    assert f"Address: {address}" in captured(site.home, "app01", (str(peer("nslookup")), name))[1]


def test_a_custom_dns_server_on_premises_forwards_the_zones_because_168_63_129_16_is_not_there(
    site: Deployment,
) -> None:
    name, address = member(site, "-id1.")
    assert asked(site, "pc01", name) == address
    assert asked(site, "pc01", name, FORWARDER) == address
    assert asked(site, "pc01", name, WIRE) == "nothing"
    assert asked(site, "pc01", name, PUBLIC_DNS) == "NXDOMAIN"
    assert asked(site, "pc01", "pod01-id1.we.backup.windowsazure.com") == "203.0.113.10"
    assert probe(site, "pc01", WIRE, METADATA, "203.0.113.10") == {
        WIRE: "nothing",
        METADATA: "nothing",
        "203.0.113.10": "open",
    }


def test_a_vm_in_a_peered_network_backs_up_through_the_hubs_private_endpoint(site: Deployment) -> None:
    backs_up_privately(site, "app01")


def test_mars_agent_on_premises_resources_are_backed_up_through_the_private_endpoint(site: Deployment) -> None:
    backs_up_privately(site, "pc01")
    name, address = member(site, "ecs01.blob.")
    assert asked(site, "pc01", name) == asked(site, "app02", name) == address


def test_what_passes_between_hub_spokes_and_office_and_what_does_not(site: Deployment) -> None:
    _, door = member(site, "-id1.")
    everybody = (door, FORWARDER, SPOKE, BRANCH, PC, "10.20.1.1", "10.30.1.1", "192.168.10.1")
    reached = {
        vm: {address for address, answer in probe(site, vm, *everybody).items() if answer != "nothing"}
        for vm in ("dns", "app01", "app02", "pc01")
    }
    assert reached == {
        "dns": {door, FORWARDER, SPOKE, BRANCH, PC, "10.20.1.1"},
        "app01": {door, FORWARDER, SPOKE, PC, "10.30.1.1"},  # uses the hub's gateway; the branch is behind the hub
        "app02": {door, FORWARDER, BRANCH},
        "pc01": {door, FORWARDER, SPOKE, PC, "192.168.10.1"},
    }


def test_the_gateway_flags_open_and_close_the_way_to_the_office(site: Deployment) -> None:
    change(site, "hub", "hub-spoke", allowGatewayTransit=False)
    assert probe(site, "app01", PC, FORWARDER) == {PC: "nothing", FORWARDER: "refused"}
    assert probe(site, "pc01", SPOKE) == {SPOKE: "nothing"}
    change(site, "hub", "hub-spoke", allowGatewayTransit=True)
    assert probe(site, "app01", PC) == {PC: "refused"}
    change(site, "hub", "hub-branch", allowGatewayTransit=True)
    change(site, "branch", "hub-branch", useRemoteGateways=True)
    assert probe(site, "pc01", BRANCH) == {BRANCH: "refused"}
    assert probe(site, "app02", SPOKE) == {SPOKE: "nothing"}
    change(site, "branch", "hub-branch", useRemoteGateways=False)
    assert probe(site, "app02", PC) == {PC: "nothing"}


def test_a_peering_without_access_carries_nothing(site: Deployment) -> None:
    _, door = member(site, "-id1.")
    change(site, "spoke", "hub-spoke", allowVirtualNetworkAccess=False)
    assert set(probe(site, "app01", door, FORWARDER, PC).values()) == {"nothing"}
    assert probe(site, "dns", SPOKE) == {SPOKE: "nothing"}
    change(site, "spoke", "hub-spoke", allowVirtualNetworkAccess=True)
    assert probe(site, "app01", door, FORWARDER, PC) == {door: "open", FORWARDER: "refused", PC: "refused"}


def test_effective_routes_say_what_packets_do(site: Deployment) -> None:
    """Every candidate address has a most specific route, and is reached if and only if that one leads somewhere."""
    _, door = member(site, "-id1.")
    candidates = (door, FORWARDER, SPOKE, BRANCH, PC, "203.0.113.10", "203.0.113.99", "198.51.100.1", "10.99.0.4")
    hops = {}
    for vm in ("dns", "app01", "app02"):
        routes = effective_routes(site, vm)
        table = [(IPv4Network(prefix), route["nextHopType"]) for route in routes for prefix in route["addressPrefix"]]
        for address, answer in probe(site, vm, *candidates).items():
            matching = [(prefix.prefixlen, hop) for prefix, hop in table if IPv4Address(address) in prefix]
            hops[vm, address] = max(matching)[1]
            nobody = address == "203.0.113.99"  # in the range of the public side, and nobody has it
            assert (answer == "nothing") is (hops[vm, address] == "None" or nobody), (vm, address, answer)
    assert {hops[vm, door] for vm in ("dns", "app01", "app02")} == {"InterfaceEndpoint"}
    assert hops["app01", FORWARDER] == "VNetPeering" and hops["app02", FORWARDER] == "VNetGlobalPeering"
    assert hops["app01", PC] == hops["dns", PC] == "VirtualNetworkGateway" and hops["app02", PC] == "None"
    assert hops["app01", SPOKE] == "VnetLocal" and hops["app01", BRANCH] == "None"
    assert "InterfaceEndpoint" in site.run("vm", "routes", "app01", "-g", GROUP).out


def test_a_fabric_that_was_killed_is_rebuilt_with_peerings_and_site(site: Deployment) -> None:
    _, door = member(site, "-id1.")
    os.kill(site.pids()["fabric"], signal.SIGKILL)
    deadline = time.monotonic() + 30
    while True:
        with contextlib.suppress(UndercroftError):
            if probe(site, "app01", door, PC) == {door: "open", PC: "refused"}:
                break
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert probe(site, "pc01", door, SPOKE, BRANCH) == {door: "open", SPOKE: "refused", BRANCH: "nothing"}
    found = site.run("reconcile", "--json").json
    assert found["networks"] == 4 and found["mended"] == [] == found["failing"]


def test_a_site_that_is_detached_is_cut_off(site: Deployment) -> None:
    _, door = member(site, "-id1.")
    refused = site.run("site", "delete", "office", "-g", GROUP, expect=1).err
    assert "dc01, pc01" in refused and "InUseSiteCannotBeDeleted" in refused
    site.run("site", "detach", "office", "-g", GROUP)
    assert probe(site, "pc01", door, FORWARDER, SPOKE, "203.0.113.10") == {
        door: "nothing",
        FORWARDER: "nothing",
        SPOKE: "nothing",
        "203.0.113.10": "open",
    }
    assert probe(site, "app01", PC, door) == {PC: "nothing", door: "open"}
