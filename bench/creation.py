"""How long a virtual network with a VM and a private endpoint's addresses takes: in the fabric, and through ARM."""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from bench.arm import connected
from bench.service import Deployment
from bench.throughput import fabric_process
from tests.fabric.machine import host, network
from undercroft.fabric.specification import Transport

__all__ = ["Creation", "measure"]

GROUP, REGION = "creation", "westeurope"
ADDRESSES = tuple(IPv4Address(f"10.0.1.{last}") for last in range(10, 18))


@dataclass(frozen=True, slots=True)
class Creation:
    """Seconds: median."""

    fabric: float
    """Network, VM, eight endpoint addresses and the three listening sockets, by calls of the fabric process."""
    network: float
    machine: float
    vault: float
    endpoint: float
    """By ARM: each PUT until it is answered, when addresses and names answer as well."""

    @property
    def calls(self) -> float:
        return self.network + self.machine + self.endpoint


def measure(place: Path, repetitions: int = 20) -> Creation:
    fabric = asyncio.run(_fabric(repetitions))
    deployment = Deployment(place / "home")
    deployment.start()
    try:
        took = asyncio.run(_arm(deployment, repetitions))
    finally:
        deployment.close()
    return Creation(fabric, *(statistics.median(values) for values in took))


async def _fabric(repetitions: int) -> float:
    took = []
    async with fabric_process() as fabric:
        for number in range(repetitions):
            name = f"n{number}"
            wanted = network(name, host(f"vm{number}"), addresses=ADDRESSES)
            begun = time.perf_counter()
            await fabric.apply(wanted)
            listening = [
                await fabric.listen(wanted.id, None, 443, Transport.TCP),
                await fabric.listen(wanted.id, IPv4Address("168.63.129.16"), 53, Transport.UDP),
                await fabric.listen(wanted.id, IPv4Address("168.63.129.16"), 53, Transport.TCP),
            ]
            took.append(time.perf_counter() - begun)
            for sock in listening:
                sock.close()
    return statistics.median(took)


async def _arm(deployment: Deployment, repetitions: int) -> list[list[float]]:
    took: list[list[float]] = [[], [], [], []]
    async with connected(deployment.home, GROUP) as arm:
        for number in range(repetitions):
            name, network_id = f"n{number}", f"{arm.group}/providers/Microsoft.Network/virtualNetworks/n{number}"
            subnet = {"id": f"{network_id}/subnets/work"}
            space = {
                "addressSpace": {"addressPrefixes": ["10.0.0.0/16"]},
                "subnets": [{"name": "work", "properties": {"addressPrefix": "10.0.1.0/24"}}],
            }
            address = {"name": "ipconfig1", "properties": {"subnet": subnet}}
            interface = {"name": f"{name}-nic", "properties": {"primary": True, "ipConfigurations": [address]}}
            profile = {"networkApiVersion": "2020-11-01", "networkInterfaceConfigurations": [interface]}
            vault = f"{arm.group}/providers/Microsoft.RecoveryServices/vaults/{name}"
            link = {"name": name, "properties": {"privateLinkServiceId": vault, "groupIds": ["AzureBackup"]}}
            arm.took.clear()
            await arm.put(f"Microsoft.Network/virtualNetworks/{name}", REGION, space)
            await arm.put(f"Microsoft.Compute/virtualMachines/{name}", REGION, {"networkProfile": profile})
            await arm.put(f"Microsoft.RecoveryServices/vaults/{name}", REGION, {}, sku={"name": "Standard"})
            door = {"subnet": subnet, "privateLinkServiceConnections": [link]}
            await arm.put(f"Microsoft.Network/privateEndpoints/{name}", REGION, door)
            for values, seconds in zip(took, arm.took, strict=True):
                values.append(seconds)
    return took


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory(prefix="ut-creation-") as folder:
        print(measure(Path(folder)))
