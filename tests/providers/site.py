"""The providers behind a real control plane (TLS, tokens, rights, a database), with a world that follows without Linux.

``Followers`` does what provisioning does between state and fabric: it moves addresses and keeps the doors that would be open.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from tests.arm.control_plane import API, Answer, ControlPlane, control_plane
from undercroft.clock import Clock, SystemClock
from undercroft.config import Home, Settings
from undercroft.errors import CapabilityMissing
from undercroft.fabric.specification import NetworkSpecification
from undercroft.identity import deployment
from undercroft.providers import compute, fabric, network, recovery_services
from undercroft.providers.collaborators import Collaborators
from undercroft.state.database import Database
from undercroft.vnet.doors import Door
from undercroft.workers import plans

PREFIXES = ("10.1.0.0/16",)


@dataclass
class Follower:
    """Satisfies ``collaborators.World``."""

    database: Database
    settings: Settings
    doors: dict[str, dict[IPv4Address, Door]] = field(default_factory=dict)
    hosts: dict[str, dict[str, str]] = field(default_factory=dict)
    away: bool = False
    """Whether the world does not follow: the fabric is being restarted."""
    unfiltered: bool = False
    """Whether the fabric cannot filter packets."""
    specifications: dict[str, NetworkSpecification] = field(default_factory=dict)

    def require(self, *abilities: str) -> None:
        if self.unfiltered and "security groups" in abilities:
            raise CapabilityMissing("There are no security groups here: a test said so.")

    def require_network(self, connection: object, key: str, prefixes: object) -> None:
        """Any."""

    async def settle(self, network_keys: Iterable[str], timeout: float = 5.0) -> bool:
        if self.away:
            return False
        for key in network_keys:
            await self._follow(key)
        return True

    async def _follow(self, key: str) -> None:
        plan = await self.database.read(lambda connection: plans.read(connection, key))
        if plan is None:
            self.doors.pop(key, None)
            self.hosts.pop(key, None)
            return
        moved, _ = await self.database.write(lambda connection: plans.retreat_and_grow(connection, plan))
        self.doors[key] = moved.doors(self.settings)
        self.specifications[key] = moved.specification(self.settings)
        self.hosts[key] = {host.name: str(host.address) for host in self.specifications[key].hosts}
        await self.database.write(lambda connection: plans.advance(connection, moved, self.settings.record_ttl))

    def private_doors(self, key: str) -> list[Door]:
        return [door for door in self.doors.get(key.lower(), {}).values() if not door.public]


@dataclass
class Site:
    plane: ControlPlane
    world: Follower
    database: Database
    group: str

    @property
    def network(self) -> str:
        return f"{self.group}/providers/Microsoft.Network"

    @property
    def spoke(self) -> str:
        return f"{self.network}/virtualNetworks/spoke"

    def vault_id(self, name: str = "safe") -> str:
        return f"{self.group}/providers/Microsoft.RecoveryServices/vaults/{name}"

    def machine_id(self, name: str = "web01") -> str:
        return f"{self.group}/providers/Microsoft.Compute/virtualMachines/{name}"

    async def send(self, method: str, id: str, body: Any = None, *, query: str = "", **more: Any) -> Answer:
        return await self.plane.send(method, f"{id}?{API}{query}", json=body, **more)

    async def get(self, id: str, query: str = "", **more: Any) -> Answer:
        return await self.send("GET", id, query=query, **more)

    async def make(self, id: str, body: Any) -> Any:
        answer = await self.send("PUT", id, body)
        assert answer.status in (200, 201), answer.text
        return answer.json

    async def vault(self, name: str = "safe", **properties: Any) -> Any:
        body = {"location": "westeurope", "sku": {"name": "Standard"}, "properties": properties}
        return await self.make(self.vault_id(name), body)

    async def endpoint(self, name: str = "door", vault: str = "safe", *, manual: bool = False) -> str:
        kind = "manualPrivateLinkServiceConnections" if manual else "privateLinkServiceConnections"
        link = {"name": "c", "properties": {"privateLinkServiceId": self.vault_id(vault), "groupIds": ["AzureBackup"]}}
        properties = {"subnet": {"id": f"{self.spoke}/subnets/work"}, kind: [link]}
        id = f"{self.network}/privateEndpoints/{name}"
        await self.make(id, {"location": "westeurope", "properties": properties})
        return id

    async def connection(self, name: str = "door", vault: str = "safe") -> Any:
        """The vault's side of an endpoint."""
        listed = (await self.get(f"{self.vault_id(vault)}/privateEndpointConnections")).json["value"]
        return next(one for one in listed if one["properties"]["privateEndpoint"]["id"].endswith(f"/{name}"))

    async def decide(self, connection: Any, status: str, **more: Any) -> Answer:
        """As ``az`` and the command line do it: the whole object is sent back."""
        state = {"status": status, "description": "because", "actionsRequired": "None"}
        properties = {**connection["properties"], "privateLinkServiceConnectionState": state}
        return await self.send("PUT", connection["id"], {**connection, "properties": properties}, **more)


@asynccontextmanager
async def site(folder: Path, *, clock: Clock | None = None, settings: Settings | None = None) -> AsyncIterator[Site]:
    settings = settings or Settings()
    clock = clock or SystemClock()
    home = Home(folder)
    database = Database.open(home.state)
    try:
        tenant = deployment.ensure(database, home, clock).tenant_id
        world = Follower(database, settings)
        parts = Collaborators(database, clock, settings, world, tenant)
        routes = (
            *network.routes(parts),
            *compute.routes(parts),
            *fabric.routes(parts),
            *recovery_services.routes(parts),
        )
        deleters = {
            **compute.deleters(parts),
            **fabric.deleters(parts),
            **network.deleters(parts),
            **recovery_services.deleters(parts),
        }
        async with control_plane(folder, clock=clock, routes=routes, deleters=deleters) as plane:
            made = Site(plane, world, database, await plane.group())
            body = {
                "location": "westeurope",
                "properties": {
                    "addressSpace": {"addressPrefixes": list(PREFIXES)},
                    "subnets": [{"name": "work", "properties": {"addressPrefix": "10.1.1.0/24"}}],
                },
            }
            await made.make(made.spoke, body)
            yield made
    finally:
        database.close()
