"""Network security groups through ARM: what is taken, shown and refused, and what the fabric is told."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest

from tests.arm.control_plane import API
from tests.providers.site import Site, site
from tests.providers.test_compute import body as machine
from undercroft.fabric.addresses import canonical
from undercroft.fabric.specification import NetworkSpecification
from undercroft.vnet import security_groups


@pytest.fixture
async def here(prepared: Path, tmp_path: Path) -> AsyncIterator[Site]:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    async with site(tmp_path) as made:
        yield made


def group_id(here: Site, name: str = "nsg") -> str:
    return f"{here.network}/networkSecurityGroups/{name}"


def rule(name: str = "", priority: int = 100, **properties: Any) -> dict[str, Any]:
    wanted = {
        "priority": priority,
        "direction": "Outbound",
        "access": "Deny",
        "protocol": "*",
        "sourceAddressPrefix": "*",
        "sourcePortRange": "*",
        "destinationAddressPrefix": "Internet",
        "destinationPortRange": "*",
    } | properties
    return ({"name": name} if name else {}) | {
        "properties": {key: value for key, value in wanted.items() if value is not None}
    }


async def group(here: Site, *rules: Any, name: str = "nsg", location: str = "westeurope") -> Any:
    return await here.make(group_id(here, name), {"location": location, "properties": {"securityRules": list(rules)}})


async def attach(here: Site, id: str | None, subnet: str = "work", **properties: Any) -> Any:
    wanted = {"addressPrefix": "10.1.1.0/24", **properties}
    if id is not None:
        wanted["networkSecurityGroup"] = {"id": id}
    return await here.make(f"{here.spoke}/subnets/{subnet}", {"properties": wanted})


def told(here: Site) -> NetworkSpecification:
    return here.world.specifications[here.spoke.lower()]


async def test_a_group_with_rules_in_its_body(here: Site) -> None:
    made = await group(
        here, rule("no-internet"), rule("ssh", 200, direction="Inbound", protocol="Tcp", destinationPortRange="22")
    )
    properties = made["properties"]
    assert properties["provisioningState"] == "Succeeded"
    assert [one["name"] for one in properties["securityRules"]] == ["no-internet", "ssh"]
    assert properties["securityRules"][0]["id"] == f"{group_id(here)}/securityRules/no-internet"
    assert properties["securityRules"][0]["properties"]["destinationAddressPrefix"] == "Internet"
    assert [one["properties"]["priority"] for one in properties["defaultSecurityRules"]] == [65000, 65001, 65500] * 2
    again = await here.send("PUT", group_id(here), made)
    assert again.status == 200 and again.json["properties"]["resourceGuid"] == properties["resourceGuid"]
    shown, before = ([one["properties"] for one in made["properties"]["securityRules"]] for made in (again.json, made))
    assert shown == before
    listed = (await here.get(f"{here.network}/networkSecurityGroups")).json["value"]
    assert [one["name"] for one in listed] == ["nsg"]
    default = await here.get(f"{group_id(here)}/defaultSecurityRules/DenyAllOutBound")
    assert default.json["properties"]["priority"] == 65500
    assert len((await here.get(f"{group_id(here)}/defaultSecurityRules")).json["value"]) == 6
    tagged = await here.send("PATCH", group_id(here), {"tags": {"a": "b"}})
    assert tagged.json["tags"] == {"a": "b"} and len(tagged.json["properties"]["securityRules"]) == 2


async def test_rules_one_by_one(here: Site) -> None:
    await group(here)
    id = f"{group_id(here)}/securityRules/web"
    lists: dict[str, Any] = {"sourceAddressPrefix": None, "sourceAddressPrefixes": ["10.1.0.0/16", "10.2.0.0/16"],
             "destinationPortRange": None, "destinationPortRanges": ["80", "8000-8100"]}  # fmt: skip
    made = await here.send("PUT", id, rule(protocol="Tcp", **lists))
    assert made.status == 201
    shown = made.json["properties"]
    assert shown["sourceAddressPrefixes"] == ["10.1.0.0/16", "10.2.0.0/16"] and "sourceAddressPrefix" not in shown
    assert shown["destinationPortRanges"] == ["80", "8000-8100"] and shown["sourcePortRange"] == "*"
    changed = await here.send("PUT", id, made.json | {"properties": shown | {"access": "Allow"}})
    assert changed.status == 200 and changed.json["properties"]["access"] == "Allow"
    assert (await here.get(id)).json["properties"]["access"] == "Allow"
    assert [one["name"] for one in (await here.get(f"{group_id(here)}/securityRules")).json["value"]] == ["web"]
    conflict = await here.send("PUT", f"{group_id(here)}/securityRules/other", rule())
    assert conflict.code == "SecurityRuleConflict" and "web" in conflict.message
    assert (await here.send("DELETE", id)).status == 200
    assert (await here.send("DELETE", id)).status == 204
    assert (await here.get(id)).status == 404
    orphan = await here.send("PUT", f"{group_id(here, 'none')}/securityRules/x", rule())
    assert orphan.status == 404


async def test_what_a_group_cannot_is_refused_by_name(here: Site) -> None:
    cases: list[tuple[Any, int, str]] = [
        (
            {"properties": {"securityRules": [rule("x", sourceApplicationSecurityGroups=[{"id": "/x"}])]}},
            501,
            "ApplicationSecurityGroups",
        ),
        ({"properties": {"securityRules": [rule("x", protocol="Ah")]}}, 501, "Ah"),
        ({"properties": {"securityRules": [rule("x", destinationAddressPrefix="Sql")]}}, 400, "Sql"),
        ({"properties": {"securityRules": [rule("x", sourceAddressPrefixes=["10.0.0.1"])]}}, 400, "both"),
        ({"properties": {"securityRules": [rule("x"), rule("y")]}}, 400, "Priority"),
        ({"properties": {"securityRules": [rule()]}}, 400, "name"),
        ({"properties": {"flushConnection": True}}, 501, "flushConnection"),
        ({"properties": {"wings": 2}}, 400, "wings"),
    ]
    for body, status, named in cases:
        refused = await here.send("PUT", group_id(here), {"location": "westeurope"} | body)
        assert refused.status == status and named in refused.message, refused.text
    assert (await here.get(group_id(here))).status == 404
    here.world.unfiltered = True
    refused = await here.send("PUT", group_id(here), {"location": "westeurope"})
    assert refused.status == 501 and "security groups" in refused.message


async def test_a_subnets_group_reaches_the_fabric_and_goes_again(here: Site) -> None:
    made = await group(here, rule("no-internet"))
    await here.make(here.machine_id(), machine(here))
    assert told(here).filters == () and told(here).hosts[0].filters == ()
    shown = await attach(here, made["id"])
    assert shown["properties"]["networkSecurityGroup"]["id"] == made["id"]
    assert told(here).hosts[0].filters == (made["id"].lower(),)
    (filter,) = told(here).filters
    assert [one.allow for one in filter.outbound] == [False, True, True, False]
    assert (await here.get(made["id"])).json["properties"]["subnets"] == [{"id": f"{here.spoke}/subnets/work"}]

    in_use = await here.send("DELETE", made["id"])
    assert in_use.code == "InUseNetworkSecurityGroupCannotBeDeleted" and "subnets/work" in in_use.message
    changed = await here.send(
        "PUT",
        f"{made['id']}/securityRules/login",
        rule(access="Allow", destinationAddressPrefix="AzureActiveDirectory"),
    )
    assert changed.code == "SecurityRuleConflict"
    await here.make(
        f"{made['id']}/securityRules/login",
        rule("", 90 + 11, access="Allow", destinationAddressPrefix="AzureActiveDirectory"),
    )
    assert [one.allow for one in told(here).filters[0].outbound] == [False, True, True, True, False], (
        "the network followed"
    )

    await attach(here, None)
    assert told(here).filters == () and told(here).hosts[0].filters == ()
    assert (await here.send("DELETE", made["id"])).status == 200
    assert (await here.send("DELETE", made["id"])).status == 204


async def test_a_network_put_names_the_groups_of_its_subnets(here: Site) -> None:
    made = await group(here)
    network = (await here.get(here.spoke)).json
    network["properties"]["subnets"][0]["properties"]["networkSecurityGroup"] = {"id": made["id"]}
    shown = await here.make(here.spoke, network)
    assert shown["properties"]["subnets"][0]["properties"]["networkSecurityGroup"]["id"] == made["id"]
    assert (await here.send("DELETE", here.spoke)).status == 200
    assert (await here.send("DELETE", made["id"])).status == 200, "a deleted subnet does not hold its group"


async def test_an_interfaces_own_group(here: Site) -> None:
    """With the VM, and changed at the interface, as ``az network nic update`` does it."""
    first, second = await group(here), await group(here, name="second")
    wanted = machine(here)
    wanted["properties"]["networkProfile"]["networkInterfaceConfigurations"][0]["properties"][
        "networkSecurityGroup"
    ] = {"id": first["id"]}
    await here.make(here.machine_id(), wanted)
    nic = f"{here.network}/networkInterfaces/web01-nic"
    shown = (await here.get(nic)).json
    assert shown["properties"]["networkSecurityGroup"] == {"id": first["id"]}
    assert told(here).hosts[0].filters == (first["id"].lower(),)
    await attach(here, second["id"])
    assert told(here).hosts[0].filters == (second["id"].lower(), first["id"].lower())

    shown["properties"]["networkSecurityGroup"] = {"id": second["id"]}
    changed = await here.send("PUT", nic, shown)
    assert changed.status == 200, changed.text
    assert told(here).hosts[0].filters == (second["id"].lower(),), "one and the same group counts once"
    assert (await here.get(first["id"])).json["properties"].get("networkInterfaces") is None
    del shown["properties"]["networkSecurityGroup"]
    assert (await here.send("PUT", nic, shown)).status == 200
    assert told(here).hosts[0].filters == (second["id"].lower(),), "the subnet's"

    moved = {
        **shown,
        "properties": {"ipConfigurations": [{"name": "ipconfig1", "properties": {"privateIPAddress": "10.1.1.77"}}]},
    }
    assert (await here.send("PUT", nic, moved)).code == "PropertyChangeNotAllowed"
    for properties, status in (
        ({"subnet": {"id": f"{here.spoke}/subnets/other"}}, 409),
        ({"privateIPAllocationMethod": "Static"}, 409),
        ({"publicIPAddress": {"id": "/x"}}, 501),
        ({"wings": 2}, 400),
        ("nonsense", 400),
    ):
        wrong = {**shown, "properties": {"ipConfigurations": [{"name": "ipconfig1", "properties": properties}]}}
        answer = await here.send("PUT", nic, wrong)
        assert answer.status == status, answer.text
    forwarding = {**shown, "properties": {"enableIPForwarding": True}}
    assert (await here.send("PUT", nic, forwarding)).status == 501
    alone = await here.send(
        "PUT", f"{here.network}/networkInterfaces/alone", {"location": "westeurope", "properties": {}}
    )
    assert alone.status == 501
    repeated = await here.send("PUT", here.machine_id(), wanted)
    assert repeated.code == "PropertyChangeNotAllowed" and "interface" in repeated.message
    assert (await here.send("DELETE", here.machine_id())).status == 200
    assert (await here.send("DELETE", first["id"])).status == 200


async def test_a_group_elsewhere_or_nowhere_is_refused(here: Site) -> None:
    abroad = await group(here, name="abroad", location="northeurope")
    for id in (abroad["id"], group_id(here, "none")):
        body = {"properties": {"addressPrefix": "10.1.1.0/24", "networkSecurityGroup": {"id": id}}}
        refused = await here.send("PUT", f"{here.spoke}/subnets/work", body)
        assert refused.code == "InvalidResourceReference" and id in refused.message
    for id in (here.spoke, "nonsense", 3):
        body = {"properties": {"addressPrefix": "10.1.1.0/24", "networkSecurityGroup": {"id": id}}}
        assert (await here.send("PUT", f"{here.spoke}/subnets/work", body)).status == 400
    assert "networkSecurityGroup" not in (await here.get(f"{here.spoke}/subnets/work")).json["properties"]


async def test_associating_a_group_needs_a_right_on_it(here: Site) -> None:
    made = await group(here)
    _, token = await here.plane.principal("Virtual Machine Contributor", here.group)
    body = {"properties": {"addressPrefix": "10.1.1.0/24", "networkSecurityGroup": {"id": made["id"]}}}
    refused = await here.send("PUT", f"{here.spoke}/subnets/work", body, token=token)
    assert refused.status == 403
    wanted = machine(here)
    wanted["properties"]["networkProfile"]["networkInterfaceConfigurations"][0]["properties"][
        "networkSecurityGroup"
    ] = {"id": made["id"]}
    _, token = await here.plane.principal("Virtual Machine Contributor", f"{here.spoke}")
    assert (await here.send("PUT", here.machine_id(), wanted, token=token)).status == 403


async def test_endpoints_are_guarded_where_their_subnets_policy_says_so(here: Site) -> None:
    await here.vault()
    await here.endpoint()
    made = await group(here)
    for policy, guarded in (
        ("Disabled", False),
        ("NetworkSecurityGroupEnabled", True),
        ("RouteTableEnabled", False),
        ("Enabled", True),
    ):
        await attach(here, made["id"], privateEndpointNetworkPolicies=policy)
        guards = told(here).guards
        assert bool(guards) is guarded, policy
        if guarded:
            assert guards[0].filters == (made["id"].lower(),) and len(guards[0].addresses) == 8
            assert guards[0].addresses == told(here).addresses
    nics = (await here.get(f"{here.network}/networkInterfaces")).json["value"]
    refused = await here.send(
        "PUT", nics[0]["id"], {**nics[0], "properties": {"networkSecurityGroup": {"id": made["id"]}}}
    )
    assert refused.code == "NetworkInterfaceOfPrivateEndpoint" and "privateEndpointNetworkPolicies" in refused.message


async def test_effective_rules_are_those_that_the_fabric_got(here: Site) -> None:
    made = await group(
        here, rule("no-storage", destinationAddressPrefix="Storage"), rule("in", direction="Inbound", priority=300)
    )
    own = await group(here, name="own")
    await here.make(here.machine_id(), machine(here))
    nic = f"{here.network}/networkInterfaces/web01-nic"
    assert (await here.send("POST", f"{nic}/effectiveNetworkSecurityGroups")).json == {"value": []}
    await attach(here, made["id"])
    shown = (await here.get(nic)).json
    await here.make(nic, shown | {"properties": {"networkSecurityGroup": {"id": own["id"]}}})
    answer = (await here.send("POST", f"{nic}/effectiveNetworkSecurityGroups")).json["value"]
    assert [one["association"] for one in answer] == [
        {"subnet": {"id": f"{here.spoke}/subnets/work"}},
        {"networkInterface": {"id": nic}},
    ]
    rules = {one["name"]: one for one in answer[0]["effectiveSecurityRules"]}
    storage = rules["securityRules/no-storage"]
    assert storage["expandedDestinationAddressPrefix"] == ["203.0.113.11/32", "203.0.113.12/32"]
    assert (storage["protocol"], storage["sourcePortRange"], storage["access"]) == ("All", "0-65535", "Deny")
    assert "10.1.0.0/16" in rules["defaultSecurityRules/AllowVnetOutBound"]["expandedSourceAddressPrefix"]
    sets = told(here).address_sets
    (first, _) = sorted(told(here).filters, key=lambda one: one.id != made["id"].lower())
    for direction, packet_rules in (("Inbound", first.inbound), ("Outbound", first.outbound)):
        shown_rules = [one for one in answer[0]["effectiveSecurityRules"] if one["direction"] == direction]
        assert len(shown_rules) == len(packet_rules)
        for one, packet_rule in zip(shown_rules, packet_rules, strict=True):
            expanded = one.get("expandedDestinationAddressPrefix") or one["destinationAddressPrefixes"]
            assert canonical(map(IPv4Network, expanded)) == sets[packet_rule.destinations]
    missing = await here.send("POST", f"{here.network}/networkInterfaces/none/effectiveNetworkSecurityGroups")
    assert missing.status == 404


async def test_virtual_network_grows_and_shrinks_with_what_is_connected(here: Site) -> None:
    """The tag is taken from the same answer as the routes, so a peering changes it in the same transaction."""
    made = await group(here)
    await attach(here, made["id"])
    other = f"{here.network}/virtualNetworks/other"
    await here.make(
        other, {"location": "westeurope", "properties": {"addressSpace": {"addressPrefixes": ["10.8.0.0/16"]}}}
    )

    def inside(address: str) -> bool:
        (filter,) = told(here).filters
        ranges = told(here).address_sets[filter.inbound[0].sources]
        return any(first <= int(IPv4Address(address)) <= last for first, last in ranges)

    assert inside("10.1.0.1") and not inside("10.8.0.1")
    for near, far in ((here.spoke, other), (other, here.spoke)):
        properties = {"remoteVirtualNetwork": {"id": far}, "allowVirtualNetworkAccess": True}
        await here.make(f"{near}/virtualNetworkPeerings/p", {"properties": properties})
    assert inside("10.1.0.1") and inside("10.8.0.1")
    assert (await here.send("DELETE", f"{other}/virtualNetworkPeerings/p")).status == 200
    assert not inside("10.8.0.1")


async def test_a_resource_group_goes_with_its_security_groups(here: Site) -> None:
    made = await group(here, rule("x"))
    await here.make(here.machine_id(), machine(here))
    await attach(here, made["id"])
    answer = await here.plane.send("DELETE", f"{here.group}?{API}")
    assert answer.status in (200, 202), answer.text
    assert (await here.get(made["id"])).status == 404
    assert IPv4Address("10.1.1.4") not in here.world.doors.get(here.spoke.lower(), {})


async def test_the_groups_of_one_network_have_a_limit_together(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before anything is kept; what makes it smaller is not. A group that stands in several places counts once."""
    monkeypatch.setattr(security_groups, "MOST_IN_NETWORK", 20)
    rules = [rule(f"r{number}", 100 + number) for number in range(3)]
    one, two = await group(here, *rules), await group(here, *rules, name="two")
    await attach(here, one["id"])
    await attach(here, one["id"], "other", addressPrefix="10.1.77.0/24")
    refused = await here.send(
        "PUT",
        f"{here.spoke}/subnets/other",
        {"properties": {"addressPrefix": "10.1.77.0/24", "networkSecurityGroup": two}},
    )
    assert refused.code == "SecurityRulesOfNetworkLimitReached" and "24" in refused.message and "20" in refused.message
    assert len(told(here).filters) == 1
    await here.make(f"{one['id']}/securityRules/r3", rule(priority=200))
    await here.make(f"{one['id']}/securityRules/r4", rule(priority=201))
    refused = await here.send("PUT", f"{one['id']}/securityRules/r5", rule(priority=202))
    assert refused.code == "SecurityRulesOfNetworkLimitReached"
    monkeypatch.setattr(security_groups, "MOST_IN_NETWORK", 8)
    assert (await here.send("DELETE", f"{one['id']}/securityRules/r4")).status == 200
    await group(here, *rules)
    refused = await here.send(
        "PUT",
        one["id"],
        {"location": "westeurope", "properties": {"securityRules": [*rules, rule("r3", 300)]}},
    )
    assert refused.code == "SecurityRulesOfNetworkLimitReached"
