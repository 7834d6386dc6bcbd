"""nsg: network security groups, their rules, and where they stand."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from undercroft.cli.flows import Flow, expansions
from undercroft.cli.local import HomeOption
from undercroft.cli.management import (
    Arm,
    GroupOption,
    JsonOption,
    LocationOption,
    LoginOption,
    connect,
    id_or_name,
    show,
    table,
)
from undercroft.errors import InvalidInput
from undercroft.names import ResourceId

__all__ = ["mount"]

GROUPS = ("Microsoft.Network", "networkSecurityGroups")
NETWORKS = ("Microsoft.Network", "virtualNetworks")

NsgOption = Annotated[
    str, Parameter(name="--nsg-name", help="Name of a security group in the resource group, or its full id.")
]
WhereNetwork = Annotated[
    str | None, Parameter(name="--vnet-name", help="With --subnet: the network, by name in the group or by full id.")
]
WhereSubnet = Annotated[str | None, Parameter(name="--subnet", help="The subnet where the group stands.")]
WhereVm = Annotated[str | None, Parameter(name="--vm", help="The VM before whose interface the group stands.")]

_nsg = App(name="nsg", help="Network security groups: rules about packets, before subnets and VMs.")
_rule = App(name="rule", help="Rules of a security group. The smallest priority that matches decides.")
_nsg.command(_rule)


def mount(app: App) -> None:
    app.command(_nsg)


@_nsg.command(name="create")
def create(
    name: str, *, group: GroupOption, home: HomeOption, location: LocationOption = None, login: LoginOption = None
) -> None:
    """Create a security group, which has Azure's default rules and none of its own."""
    arm = connect(home, login)
    body = {"location": location or arm.location_of(group), "properties": {}}
    show(arm.put(arm.id(group, *GROUPS, name), body))


@_nsg.command(name="list")
def list_(*, home: HomeOption, as_json: JsonOption = False) -> None:
    """List security groups."""
    arm = connect(home)
    groups = arm.list(arm.id(), "/".join(("providers", *GROUPS)))
    rows = [
        {
            "name": one["name"],
            "location": one["location"],
            "rules": len(one["properties"]["securityRules"]),
            "used": [_place(used["id"]) for used in _users(one)],
        }
        for one in groups
    ]
    columns = (("Name", "name"), ("Location", "location"), ("Rules", "rules"), ("Stands at", "used"))
    show(groups) if as_json else table(rows, columns)


@_nsg.command(name="show")
def show_(name: str, *, group: GroupOption, home: HomeOption, as_json: JsonOption = False) -> None:
    """Show where a group stands and its rules in the order in which they are looked at, the default rules last."""
    arm = connect(home)
    found = arm.get(id_or_name(arm, name, group, *GROUPS))
    if as_json:
        show(found)
        return
    print(f"{found['name']}: stands at {', '.join(_place(one['id']) for one in _users(found)) or 'nothing'}")
    _rules(found["properties"]["securityRules"] + found["properties"]["defaultSecurityRules"])


@_nsg.command(name="delete")
def delete(name: str, *, group: GroupOption, home: HomeOption) -> None:
    """Delete a security group that stands nowhere."""
    arm = connect(home)
    arm.delete(id_or_name(arm, name, group, *GROUPS))


@_nsg.command(name="attach")
def attach(
    name: str,
    *,
    group: GroupOption,
    home: HomeOption,
    vnet_name: WhereNetwork = None,
    subnet: WhereSubnet = None,
    vm: WhereVm = None,
    endpoints: Annotated[
        bool | None,
        Parameter(
            negative="--no-endpoints",
            help="Whether the group also stands before the subnet's private endpoints; left as it is if not said.",
        ),
    ] = None,
    login: LoginOption = None,
) -> None:
    """Put a security group before a subnet or before one VM, instead of the one that stood there."""
    arm = connect(home, login)
    _put(arm, group, vnet_name, subnet, vm, id_or_name(arm, name, group, *GROUPS), endpoints)


@_nsg.command(name="detach")
def detach(
    *,
    group: GroupOption,
    home: HomeOption,
    vnet_name: WhereNetwork = None,
    subnet: WhereSubnet = None,
    vm: WhereVm = None,
    login: LoginOption = None,
) -> None:
    """Take the security group away from a subnet or a VM."""
    _put(connect(home, login), group, vnet_name, subnet, vm, None, None)


@_nsg.command(name="effective")
def effective(vm: str, *, group: GroupOption, home: HomeOption, as_json: JsonOption = False) -> None:
    """Show the rules that decide about a VM's packets, its subnet's and its own, with what their tags stand for."""
    arm = connect(home)
    groups = arm.post(f"{_interface(arm, group, vm)}/effectiveNetworkSecurityGroups")["value"]
    if as_json:
        show({"value": groups})
        return
    if not groups:
        print(f"No security group stands before {vm}: every packet passes.")
    for one in groups:
        place = next(iter(one["association"].values()))["id"]
        print(f"{one['networkSecurityGroup']['id'].rsplit('/', 1)[-1]}, at {_place(place)}")
        tags = expansions(one["effectiveSecurityRules"])
        rows = [
            {
                **rule,
                "name": rule["name"].rsplit("/", 1)[-1],
                "from": tags.get(rule["sourceAddressPrefix"]) or rule["sourceAddressPrefixes"],
                "to": tags.get(rule["destinationAddressPrefix"]) or rule["destinationAddressPrefixes"],
            }
            for rule in one["effectiveSecurityRules"]
        ]
        for row in rows:
            for side, prefix in (("from", "sourceAddressPrefix"), ("to", "destinationAddressPrefix")):
                if len(row[side]) > 4:
                    row[side] = f"{row[prefix] or row[side][0]}: {len(row[side])} blocks"
        table(
            sorted(rows, key=lambda row: (row["direction"], row["priority"])),
            (
                ("Direction", "direction"),
                ("Priority", "priority"),
                ("Name", "name"),
                ("Access", "access"),
                ("Protocol", "protocol"),
                ("From", "from"),
                ("To", "to"),
                ("Ports", "destinationPortRanges"),
            ),
        )


@_nsg.command(name="test")
def test(
    vm: str,
    *,
    group: GroupOption,
    home: HomeOption,
    address: Annotated[IPv4Address, Parameter(help="The other end.")],
    port: Annotated[int, Parameter(help="The port of whoever is called.")] = 443,
    protocol: Annotated[Literal["Tcp", "Udp", "Icmp"], Parameter(help="Of the packet.")] = "Tcp",
    direction: Annotated[Literal["Outbound", "Inbound"], Parameter(help="As the VM sees it.")] = "Outbound",
) -> int:
    """Say whether a VM's security groups let a first packet pass, and which rule of which group decides. Status 1: denied.

    It looks at the groups of this VM only: those of another VM, and one before an endpoint, decide as well.
    """
    arm = connect(home)
    interface = arm.get(_interface(arm, group, vm))
    own = IPv4Address(interface["properties"]["ipConfigurations"][0]["properties"]["privateIPAddress"])
    groups = arm.post(f"{interface['id']}/effectiveNetworkSecurityGroups")["value"]
    flow = Flow(direction, protocol, own, address, port)
    for one in groups if direction == "Inbound" else reversed(groups):
        place = f"{one['networkSecurityGroup']['id'].rsplit('/', 1)[-1]} at {_place(next(iter(one['association'].values()))['id'])}"
        rule = flow.decided_by(one["effectiveSecurityRules"])
        if rule is None:
            print(f"{place}: not asked; the platform is exempt from rules that do not name it by its tag")
            continue
        print(f"{place}: {rule['access']} by {rule['name'].rsplit('/', 1)[-1]}, priority {rule['priority']}")
        if rule["access"] != "Allow":
            print("denied")
            return 1
    print("allowed")
    return 0


@_rule.command(name="create")
def rule_create(
    name: str,
    *,
    group: GroupOption,
    nsg_name: NsgOption,
    home: HomeOption,
    priority: int,
    direction: str = "Inbound",
    access: str = "Allow",
    protocol: str = "*",
    source: str = "*",
    source_ports: str = "*",
    destination: str = "*",
    destination_ports: str = "*",
    description: str | None = None,
) -> None:
    """Create or change a rule. Without more than a priority it lets everything in.

    Parameters
    ----------
    priority
        100 to 4096; no two rules of one direction share one.
    direction
        Inbound or Outbound.
    access
        Allow or Deny.
    protocol
        Tcp, Udp, Icmp or *.
    source
        Where packets come from: addresses and CIDR blocks separated by commas, or one service tag, or *.
    source_ports
        Ports and ranges separated by commas, or *.
    destination
        Where packets go to, as --source.
    destination_ports
        As --source-ports: 443,8000-8100.
    description
        Why, for whoever reads the rule.
    """
    arm = connect(home)
    properties: dict[str, Any] = {
        "priority": priority,
        "direction": direction,
        "access": access,
        "protocol": protocol,
        **_one_or_many("sourceAddressPrefix", "sourceAddressPrefixes", source),
        **_one_or_many("sourcePortRange", "sourcePortRanges", source_ports),
        **_one_or_many("destinationAddressPrefix", "destinationAddressPrefixes", destination),
        **_one_or_many("destinationPortRange", "destinationPortRanges", destination_ports),
    }
    if description:
        properties["description"] = description
    parent = id_or_name(arm, nsg_name, group, *GROUPS)
    show(arm.put(parent.child("securityRules", name), {"properties": properties}))


@_rule.command(name="list")
def rule_list(*, group: GroupOption, nsg_name: NsgOption, home: HomeOption, as_json: JsonOption = False) -> None:
    """List a group's own rules."""
    arm = connect(home)
    rules = arm.list(id_or_name(arm, nsg_name, group, *GROUPS), "securityRules")
    show(rules) if as_json else _rules(rules)


@_rule.command(name="delete")
def rule_delete(name: str, *, group: GroupOption, nsg_name: NsgOption, home: HomeOption) -> None:
    """Delete a rule. Connections that it let in go on."""
    arm = connect(home)
    arm.delete(id_or_name(arm, nsg_name, group, *GROUPS).child("securityRules", name))


def _one_or_many(single: str, many: str, text: str) -> dict[str, Any]:
    values = [part.strip() for part in text.split(",") if part.strip()]
    return {single: values[0]} if len(values) == 1 else {many: values}


def _put(
    arm: Arm,
    group: str,
    vnet_name: str | None,
    subnet: str | None,
    vm: str | None,
    nsg: ResourceId | None,
    endpoints: bool | None,
) -> None:
    """Read what is there, change the one thing, write it back."""
    if vm and not vnet_name and not subnet and endpoints is None:
        path = _interface(arm, group, vm)
    elif vnet_name and subnet and not vm:
        path = id_or_name(arm, vnet_name, group, *NETWORKS).child("subnets", subnet)
    else:
        raise InvalidInput("Say where: either --vnet-name and --subnet, or --vm.", code="Usage")
    found = arm.get(path)
    found["properties"].pop("networkSecurityGroup", None)
    if nsg is not None:
        found["properties"]["networkSecurityGroup"] = {"id": str(nsg)}
    if endpoints is not None:
        policy = "NetworkSecurityGroupEnabled" if endpoints else "Disabled"
        found["properties"]["privateEndpointNetworkPolicies"] = policy
    show(arm.put(path, found))


def _interface(arm: Arm, group: str, vm: str) -> ResourceId:
    found = arm.get(id_or_name(arm, vm, group, "Microsoft.Compute", "virtualMachines"))
    return ResourceId.parse(found["properties"]["networkProfile"]["networkInterfaces"][0]["id"])


def _users(group: dict[str, Any]) -> list[dict[str, Any]]:
    properties = group["properties"]
    return [*properties.get("subnets", ()), *properties.get("networkInterfaces", ())]


def _place(id: str) -> str:
    """``spoke/work`` for a subnet, the name of an interface."""
    return "/".join(ResourceId.parse(id).names)


def _rules(rules: list[dict[str, Any]]) -> None:
    rows = []
    for rule in rules:
        said = rule["properties"]
        rows.append(
            {
                **said,
                "name": rule["name"],
                "from": said.get("sourceAddressPrefix") or said["sourceAddressPrefixes"],
                "to": said.get("destinationAddressPrefix") or said["destinationAddressPrefixes"],
                "ports": said.get("destinationPortRange") or said["destinationPortRanges"],
            }
        )
    table(
        sorted(rows, key=lambda row: (row["direction"], row["priority"])),
        (
            ("Direction", "direction"),
            ("Priority", "priority"),
            ("Name", "name"),
            ("Access", "access"),
            ("Protocol", "protocol"),
            ("From", "from"),
            ("To", "to"),
            ("Ports", "ports"),
        ),
    )
