"""A deployment and what an administrator puts into it, by ARM from this process: quicker than a command for each step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.deployment import GROUP, REGION, Deployment
from undercroft.cli.management import Arm, connect
from undercroft.errors import NotFound
from undercroft.names import ResourceId

__all__ = ["NETWORK", "STORAGE_ZONES", "Estate", "estate"]

NETWORK = "Microsoft.Network"
STORAGE_ZONES = ("privatelink.blob.core.windows.net", "privatelink.queue.core.windows.net")
PAIR = "northeurope"


class Estate:
    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.arm: Arm = connect(deployment.home)
        self.arm.put(self.arm.id(GROUP), {"location": REGION})

    def network(self, name: str, vm: str, location: str = REGION, prefix: str = "10.20.1.0/24") -> ResourceId:
        subnets = [{"name": "work", "properties": {"addressPrefix": prefix}}]
        properties = {"addressSpace": {"addressPrefixes": ["10.20.0.0/16"]}, "subnets": subnets}
        id = self.arm.id(GROUP, NETWORK, "virtualNetworks", name)
        self.arm.put(id, {"location": location, "properties": properties})
        self.machine(vm, id)
        return id

    def machine(self, name: str, network: ResourceId, subnet: str = "work") -> ResourceId:
        address = {"name": "ipconfig1", "properties": {"subnet": {"id": f"{network}/subnets/{subnet}"}}}
        interface = {"name": f"{name}-nic", "properties": {"primary": True, "ipConfigurations": [address]}}
        profile = {"networkApiVersion": "2020-11-01", "networkInterfaceConfigurations": [interface]}
        id = self.arm.id(GROUP, "Microsoft.Compute", "virtualMachines", name)
        location = self.arm.get(network)["location"]
        self.arm.put(id, {"location": location, "properties": {"networkProfile": profile}})
        return id

    def vault(self, name: str, *, public: str = "Disabled") -> ResourceId:
        body = {"location": REGION, "sku": {"name": "Standard"}, "properties": {"publicNetworkAccess": public}}
        id = self.arm.id(GROUP, "Microsoft.RecoveryServices", "vaults", name)
        self.arm.put(id, body)
        return id

    def endpoint(
        self, name: str, vault: ResourceId, network: ResourceId, group: str = "AzureBackup", *, subnet: str = "work"
    ) -> ResourceId:
        link = {"name": name, "properties": {"privateLinkServiceId": str(vault), "groupIds": [group]}}
        properties = {"subnet": {"id": f"{network}/subnets/{subnet}"}, "privateLinkServiceConnections": [link]}
        id = self.arm.id(GROUP, NETWORK, "privateEndpoints", name)
        location = self.arm.get(network)["location"]
        self.arm.put(id, {"location": location, "properties": properties})
        return id

    def integrate(self, endpoint: ResourceId, network: ResourceId, *zones: str) -> None:
        """Zones (made if they are not there), links to the network, and the endpoint's zone group."""
        configs = []
        for name in zones:
            zone = self.arm.id(GROUP, NETWORK, "privateDnsZones", name)
            self.arm.put(zone, {"location": "global"})
            target = {"registrationEnabled": False, "virtualNetwork": {"id": str(network)}}
            self.arm.put(zone.child("virtualNetworkLinks", network.name), {"location": "global", "properties": target})
            configs.append({"name": name.replace(".", "-"), "properties": {"privateDnsZoneId": str(zone)}})
        group = endpoint.child("privateDnsZoneGroups", "default")
        self.arm.put(group, {"properties": {"privateDnsZoneConfigs": configs}})

    def names(self, endpoint: ResourceId) -> dict[str, str]:
        """What the endpoint shows: FQDN to address."""
        try:
            properties = self.arm.get(endpoint)["properties"]
        except NotFound:
            return {}
        return {one["fqdn"]: one["ipAddresses"][0] for one in properties["customDnsConfigs"]}

    def named(self, endpoint: ResourceId, part: str) -> tuple[str, str]:
        """The one shown name with this in it, and its address."""
        return next((name, address) for name, address in self.names(endpoint).items() if part in name)

    def status(self, endpoint: ResourceId) -> str:
        (link,) = self.arm.get(endpoint)["properties"]["privateLinkServiceConnections"]
        return str(link["properties"]["privateLinkServiceConnectionState"]["status"])

    def connection(self, endpoint: ResourceId, vault: ResourceId) -> Any:
        listed = self.arm.list(vault, "privateEndpointConnections")
        return next(one for one in listed if one["properties"]["privateEndpoint"]["id"] == str(endpoint))

    def decide(self, endpoint: ResourceId, vault: ResourceId, status: str) -> None:
        connection = self.connection(endpoint, vault)
        state = {"status": status, "description": "because", "actionsRequired": "None"}
        properties = {**connection["properties"], "privateLinkServiceConnectionState": state}
        self.arm.put(connection["id"], {**connection, "properties": properties})


@contextmanager
def estate(folder: Path, driver: str, settings: str = "") -> Iterator[Estate]:
    deployment = Deployment(folder / "home", driver)
    if settings:
        deployment.home.mkdir(parents=True)
        (deployment.home / "undercroft.toml").write_text(settings, "utf-8")
    try:
        deployment.start()
        yield Estate(deployment)
    finally:
        deployment.stop()
