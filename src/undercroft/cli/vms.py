"""vm: hosts in a virtual network. ``exec`` runs a command inside one, with your streams and its exit status."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from undercroft.cli.local import HomeOption, home_of
from undercroft.cli.management import (
    Arm,
    GroupOption,
    JsonOption,
    LocationOption,
    NetworkOption,
    SubnetOption,
    connect,
    show,
    table,
)

__all__ = ["captured", "mount"]

COMPUTE = ("Microsoft.Compute", "virtualMachines")

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")

_vm = App(name="vm", help="Hosts in a virtual network.")


def mount(app: App) -> None:
    app.command(_vm)


@_vm.command(name="create")
def create(
    name: str,
    *,
    group: GroupOption,
    vnet_name: NetworkOption,
    subnet: SubnetOption,
    home: HomeOption,
    location: LocationOption = None,
) -> None:
    """Create a VM: a network host of its own in a subnet. It sees this machine's files, not its network."""
    arm = connect(home)
    network = (
        vnet_name if vnet_name.startswith("/") else arm.id(group, "Microsoft.Network", "virtualNetworks", vnet_name)
    )
    interface = {
        "name": f"{name}-nic",
        "properties": {
            "primary": True,
            "ipConfigurations": [
                {"name": "ipconfig1", "properties": {"subnet": {"id": f"{network}/subnets/{subnet}"}}}
            ],
        },
    }
    body = {
        "location": location or arm.location_of(group),
        "properties": {
            "networkProfile": {"networkApiVersion": "2020-11-01", "networkInterfaceConfigurations": [interface]}
        },
    }
    show(arm.put(arm.id(group, *COMPUTE, name), body))


@_vm.command(name="list")
def list_(*, home: HomeOption, as_json: JsonOption = False) -> None:
    """List VMs."""
    arm = connect(home)
    vms = arm.list(arm.id(), f"providers/{COMPUTE[0]}/{COMPUTE[1]}")
    if as_json:
        show(vms)
        return
    addresses = _addresses(arm)
    rows = [{**vm, "group": vm["id"].split("/")[4], "addresses": addresses.get(vm["id"].lower(), [])} for vm in vms]
    columns = (("Name", "name"), ("Resource group", "group"), ("Location", "location"), ("Addresses", "addresses"))
    table(rows, columns)


def _addresses(arm: Arm) -> dict[str, list[str]]:
    """Of every VM, by its id in lower case."""
    found: dict[str, list[str]] = {}
    for interface in arm.list(arm.id(), "providers/Microsoft.Network/networkInterfaces"):
        properties = interface["properties"]
        if (vm := properties.get("virtualMachine")) is not None:
            configurations = properties["ipConfigurations"]
            found.setdefault(vm["id"].lower(), []).extend(
                one["properties"]["privateIPAddress"] for one in configurations
            )
    return found


@_vm.command(name="delete")
def delete(name: str, *, group: GroupOption, home: HomeOption) -> None:
    """Delete a VM; its processes are killed."""
    arm = connect(home)
    arm.delete(arm.id(group, *COMPUTE, name))


@_vm.command(name="routes")
def routes(name: str, *, group: GroupOption, home: HomeOption, as_json: JsonOption = False) -> None:
    """Show where a VM's packets go: its effective routes."""
    arm = connect(home)
    interface = arm.get(arm.id(group, *COMPUTE, name))["properties"]["networkProfile"]["networkInterfaces"][0]["id"]
    found = arm.post(f"{interface}/effectiveRouteTable")["value"]
    columns = (("Prefix", "addressPrefix"), ("Next hop", "nextHopType"), ("Source", "source"), ("State", "state"))
    show(found) if as_json else table(found, columns)


@_vm.command(name="exec")
def exec_(
    name: str,
    *command: Annotated[str, Parameter(allow_leading_hyphen=True, help="Put -- before it.")],
    group: Annotated[
        str | None, Parameter(name=["--resource-group", "-g"], help="Needed when VMs of several groups have this name.")
    ] = None,
    home: HomeOption,
) -> int:
    """Run a command inside a VM: undercroft vm exec web01 -- nslookup example.org

    The command gets this process's environment, folder, streams; its exit status is ours. Proxies that the environment names are left
    out: they are this machine's and not the network's.
    """
    from undercroft.control.client import Request, ask

    vm = f"{group}/{name}" if group else name
    request = Request(
        "execute",
        vm=vm,
        arguments=command,
        environment=_environment(),
        directory=os.getcwd(),
    )
    status: int = ask(home_of(home).control_socket, request, (0, 1, 2))
    return status


def captured(home: Path, vm: str, command: tuple[str, ...]) -> tuple[int, str]:
    """Run a command inside a VM (``NAME`` or ``GROUP/NAME``): its exit status, and what it wrote to its standard output."""
    from undercroft.control.client import Request, ask

    request = Request("execute", vm=vm, arguments=command, environment=_environment(), directory="/")
    with tempfile.TemporaryFile() as output, open(os.devnull, "rb") as nothing:
        status: int = ask(home_of(home).control_socket, request, (nothing.fileno(), output.fileno(), 2))
        output.seek(0)
        return status, output.read().decode("utf-8", "replace")


def _environment() -> tuple[tuple[str, str], ...]:
    return tuple(item for item in os.environ.items() if item[0].lower() not in PROXIES)
