"""A deployment with many private endpoints: how long it takes to make, to start again, and what one endpoint costs.

Each vault has one endpoint with eight addresses; ten endpoints and one VM are in each network; all of them write their records into one
zone that every network sees, as a hub's administrator would have it.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from bench.arm import ArmClient, connected, each
from bench.measure import cpu_seconds
from bench.service import Deployment

__all__ = ["Scale", "measure"]

GROUP, REGION = "scale", "westeurope"
ZONE = "privatelink.we.backup.windowsazure.com"
PER_NETWORK = 10
AT_ONCE = 8
PROBES = 20
SETTLED_SECONDS = 5.0
IDLE_SECONDS = 35.0
"""Longer than the reconcile period."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Seconds and bytes. ``first`` and ``last``: median of single calls (endpoint PUT, with nothing else going on) in the empty
    and in the full deployment."""

    endpoints: int
    networks: int
    made: float
    first: float
    last: float
    vault_first: float
    vault_last: float
    restart: float
    memory_empty: int
    memory_full: int
    idle_cpu: float
    """CPU seconds per minute of all processes while nothing is asked."""
    reconcile: float

    @property
    def memory_per_endpoint(self) -> float:
        return (self.memory_full - self.memory_empty) / self.endpoints


def measure(place: Path, networks: int = 100, idle_seconds: float = IDLE_SECONDS) -> Scale:
    deployment = Deployment(place / "home")
    deployment.start()
    try:
        return asyncio.run(_measure(deployment, networks, idle_seconds))
    finally:
        deployment.close()


async def _measure(deployment: Deployment, networks: int, idle_seconds: float) -> Scale:
    await asyncio.sleep(SETTLED_SECONDS)
    memory_empty = deployment.memory()
    async with connected(deployment.home, GROUP) as arm:
        await _network(arm, 0)
        await _network(arm, networks)
        await arm.put(f"Microsoft.Network/privateDnsZones/{ZONE}", "global", {})
        await _link(arm, 0)
        await _link(arm, networks)
        first, vault_first = await _single(arm, "first", 0)
        begun = time.monotonic()
        numbers = range(1, networks)
        await each(numbers, lambda number: _network(arm, number), AT_ONCE)
        await each(numbers, lambda number: _link(arm, number), AT_ONCE)
        wanted = [(number, place) for place in range(PER_NETWORK) for number in range(1, networks)]
        await each(wanted, lambda one: _endpoint(arm, f"e{one[0]}x{one[1]}", one[0]), AT_ONCE)
        made = time.monotonic() - begun
        last, vault_last = await _single(arm, "last", networks)
    before = cpu_seconds(deployment.processes())
    await asyncio.sleep(idle_seconds)
    idle_cpu = (cpu_seconds(deployment.processes()) - before) * 60 / idle_seconds
    begun = time.monotonic()
    deployment.manage("reconcile")
    reconcile = time.monotonic() - begun
    deployment.close()
    restart = deployment.start()
    await asyncio.sleep(SETTLED_SECONDS)
    memory_full = deployment.memory()
    return Scale(
        (networks - 1) * PER_NETWORK + 2 * PROBES, networks + 1, made, first, last, vault_first, vault_last, restart,
        memory_empty, memory_full, idle_cpu, reconcile,
    )  # fmt: skip


async def _single(arm: ArmClient, name: str, network: int) -> tuple[float, float]:
    """Medians of PUTs one after the other: of an endpoint in a network of its own, and of its vault."""
    endpoints, vaults = [], []
    for number in range(PROBES):
        vault = f"{name}{number}"
        arm.took.clear()
        await _vault(arm, vault)
        vaults.append(arm.took[0])
        arm.took.clear()
        await _door(arm, vault, network)
        endpoints.append(arm.took[0])
        await _zone_group(arm, vault)
    return statistics.median(endpoints), statistics.median(vaults)


async def _network(arm: ArmClient, number: int) -> None:
    prefix = f"10.{number}.0.0/16"
    properties = {"addressSpace": {"addressPrefixes": [prefix]}}
    subnet = {"name": "work", "properties": {"addressPrefix": f"10.{number}.0.0/22"}}
    await arm.put(f"Microsoft.Network/virtualNetworks/n{number}", REGION, {**properties, "subnets": [subnet]})


async def _link(arm: ArmClient, number: int) -> None:
    network = {"id": f"{arm.group}/providers/Microsoft.Network/virtualNetworks/n{number}"}
    path = f"Microsoft.Network/privateDnsZones/{ZONE}/virtualNetworkLinks/n{number}"
    await arm.put(path, "global", {"virtualNetwork": network, "registrationEnabled": False})


async def _endpoint(arm: ArmClient, name: str, network: int) -> None:
    await _vault(arm, name)
    await _door(arm, name, network)
    await _zone_group(arm, name)


async def _vault(arm: ArmClient, name: str) -> None:
    sku = {"name": "Standard"}
    await arm.put(f"Microsoft.RecoveryServices/vaults/{name}", REGION, {}, sku=sku)


async def _door(arm: ArmClient, name: str, network: int) -> None:
    vault = f"{arm.group}/providers/Microsoft.RecoveryServices/vaults/{name}"
    subnet = f"{arm.group}/providers/Microsoft.Network/virtualNetworks/n{network}/subnets/work"
    link = {"name": name, "properties": {"privateLinkServiceId": vault, "groupIds": ["AzureBackup"]}}
    properties = {"subnet": {"id": subnet}, "privateLinkServiceConnections": [link]}
    await arm.put(f"Microsoft.Network/privateEndpoints/{name}", REGION, properties)


async def _zone_group(arm: ArmClient, name: str) -> None:
    zone = f"{arm.group}/providers/Microsoft.Network/privateDnsZones/{ZONE}"
    config = {"name": "backup", "properties": {"privateDnsZoneId": zone}}
    path = f"Microsoft.Network/privateEndpoints/{name}/privateDnsZoneGroups/default"
    await arm.put(path, None, {"privateDnsZoneConfigs": [config]})


if __name__ == "__main__":
    import sys
    import tempfile

    with tempfile.TemporaryDirectory(prefix="ut-scale-") as folder:
        print(measure(Path(folder), int(sys.argv[1]) if len(sys.argv) > 1 else 100))
