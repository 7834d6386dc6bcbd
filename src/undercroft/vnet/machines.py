"""Virtual machines: network hosts of a subnet. What the fabric needs of one is on its interface (``interfaces.hosts``)."""

from __future__ import annotations

import re

import msgspec

from undercroft.errors import InvalidParameter

__all__ = ["MACHINE_TYPE", "VirtualMachine", "check_name", "check_region"]

MACHINE_TYPE = "microsoft.compute/virtualmachines"
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\Z")


class VirtualMachine(msgspec.Struct, frozen=True):
    """The stored body of a VM: one interface, made with it and deleted with it."""

    vm_id: str
    interface_id: str
    subnet_id: str

    @property
    def network_key(self) -> str:
        return self.subnet_id.lower().rsplit("/subnets/", 1)[0]


def check_name(name: str) -> None:
    """The name is the host's name inside it as well, so the rules are those of a label (RFC 1123, section 2.1)."""
    if not _NAME.match(name) or name.isdigit():
        raise InvalidParameter(
            f"'{name}' is not a VM name: 1 to 63 letters, digits and hyphens, beginning and ending with a letter or digit, "
            "and not digits only. It becomes the host's name.",
            code="InvalidResourceName",
            target="name",
        )


def check_region(machine: str, network: str) -> None:
    if machine != network:
        raise InvalidParameter(
            f"The virtual machine is in '{machine}' and its virtual network in '{network}': they must be in one region.",
            code="InvalidVirtualMachineRegion",
            target="location",
        )
