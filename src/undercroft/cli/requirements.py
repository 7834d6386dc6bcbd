"""What private endpoints need of resolvers, read from ARM: the endpoints' own DNS configuration, and the zones that the vault lists."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter

from undercroft.cli.local import home_of
from undercroft.cli.management import Arm, id_or_name
from undercroft.dns.requirements import Requirements, Source
from undercroft.errors import Conflict, InvalidInput, NotFound, PeerMisbehaved
from undercroft.names import ResourceId

__all__ = [
    "NETWORK",
    "VAULTS",
    "EndpointsOption",
    "OfNetworkOption",
    "OfVaultOption",
    "Selection",
    "addresses_of_endpoints",
    "required_zones",
    "requirements",
]

NETWORK = "Microsoft.Network"
VAULTS = ("Microsoft.RecoveryServices", "vaults")

EndpointsOption = Annotated[
    tuple[str, ...],
    Parameter(
        name="--endpoint",
        negative=(),
        help="Name of a private endpoint in the resource group, or its full id; repeatable.",
    ),
]
OfVaultOption = Annotated[
    str | None, Parameter(name="--vault", help="All approved private endpoints of this vault, instead of --endpoint.")
]
OfNetworkOption = Annotated[
    str | None, Parameter(name="--vnet-name", help="With --vault: only the endpoints in this virtual network.")
]


class _Reference(msgspec.Struct, frozen=True):
    id: str


class _State(msgspec.Struct, frozen=True):
    status: str


class _LinkProperties(msgspec.Struct, frozen=True, rename="camel"):
    private_link_service_id: str
    group_ids: tuple[str, ...]
    private_link_service_connection_state: _State


class _Link(msgspec.Struct, frozen=True):
    properties: _LinkProperties


class _Config(msgspec.Struct, frozen=True, rename="camel"):
    fqdn: str
    ip_addresses: tuple[str, ...]


class _Properties(msgspec.Struct, frozen=True, rename="camel"):
    subnet: _Reference
    custom_dns_configs: tuple[_Config, ...] = ()
    private_link_service_connections: tuple[_Link, ...] = ()
    manual_private_link_service_connections: tuple[_Link, ...] = ()


class _Endpoint(msgspec.Struct, frozen=True):
    """A private endpoint as ARM shows it; what nothing here needs is left out."""

    id: str
    name: str
    properties: _Properties

    @property
    def link(self) -> _LinkProperties:
        properties = self.properties
        links = (*properties.private_link_service_connections, *properties.manual_private_link_service_connections)
        return links[0].properties

    @property
    def network(self) -> ResourceId:
        found = ResourceId.parse(self.properties.subnet.id).parent
        assert found is not None
        return found

    @property
    def approved(self) -> bool:
        return self.link.private_link_service_connection_state.status == "Approved"


class Selection(msgspec.Struct, frozen=True):
    """Which endpoints the user meant."""

    group: str
    endpoints: tuple[str, ...] = ()
    vault: str | None = None
    network: str | None = None

    def __post_init__(self) -> None:
        if bool(self.endpoints) == (self.vault is not None):
            raise InvalidInput("Which endpoints? Give either --endpoint (one or more) or --vault.", target="--endpoint")
        if self.network is not None and self.vault is None:
            raise InvalidInput(
                "--vnet-name chooses among the endpoints of a vault; give --vault.", target="--vnet-name"
            )

    @property
    def subject(self) -> str | None:
        """Of a vault; of endpoints their names say it."""
        if self.vault is None:
            return None
        where = "" if self.network is None else f" in {self.network.rpartition('/')[2]}"
        return f"vault {self.vault.rpartition('/')[2]} ({self.group}){where}"


def required_zones(arm: Arm, vault: ResourceId, group_id: str) -> list[str]:
    """What the vault's private link resource says it needs."""
    for resource in arm.list(vault, "privateLinkResources"):
        if resource["properties"]["groupId"].lower() == group_id.lower():
            return list(resource["properties"]["requiredZoneNames"])
    raise InvalidInput(f"The vault has no subresource '{group_id}'.", code="InvalidGroupId")


def requirements(arm: Arm, home: Path, selection: Selection) -> Requirements:
    """Raises ``Conflict`` for an endpoint that carries no traffic, since its names would lead nowhere."""
    endpoints = _of_vault(arm, selection) if selection.vault is not None else _named(arm, selection)
    zones: dict[str, None] = {}
    for vault, subresource in dict.fromkeys(
        (endpoint.link.private_link_service_id, endpoint.link.group_ids[0]) for endpoint in endpoints
    ):
        zones.update(dict.fromkeys(required_zones(arm, ResourceId.parse(vault), subresource)))
    suffixes = home_of(home).settings().suffixes
    return Requirements.of(
        map(_source, endpoints),
        zones,
        backup_suffix=suffixes.backup,
        deployment=suffixes.deployment,
        subject=selection.subject,
    )


def addresses_of_endpoints(arm: Arm) -> dict[IPv4Address, str]:
    """Every address of every endpoint of the subscription, to the endpoint's name. (Networks may overlap; then the last one wins.)"""
    endpoints = map(_endpoint, arm.list(arm.id(), f"providers/{NETWORK}/privateEndpoints"))
    return {
        IPv4Address(address): endpoint.name
        for endpoint in endpoints
        for config in endpoint.properties.custom_dns_configs
        for address in config.ip_addresses
    }


def _named(arm: Arm, selection: Selection) -> list[_Endpoint]:
    found = [
        _endpoint(arm.get(id_or_name(arm, name, selection.group, NETWORK, "privateEndpoints")))
        for name in selection.endpoints
    ]
    for endpoint in found:
        if not endpoint.approved:
            state = endpoint.link.private_link_service_connection_state.status
            raise Conflict(
                f"The connection of private endpoint '{endpoint.name}' is {state}: it carries no traffic, and its names would lead "
                "nowhere. Have the vault's owner approve it (undercroft connection approve).",
                code="EndpointNotApproved",
            )
        if not endpoint.properties.custom_dns_configs:
            raise Conflict(
                f"Private endpoint '{endpoint.name}' has no addresses yet; 'undercroft endpoint show' says why.",
                code="EndpointNotReady",
            )
    return found


def _of_vault(arm: Arm, selection: Selection) -> list[_Endpoint]:
    vault = id_or_name(arm, str(selection.vault), selection.group, *VAULTS)
    network = None
    if selection.network is not None:
        network = id_or_name(arm, selection.network, selection.group, NETWORK, "virtualNetworks")
    endpoints = map(_endpoint, arm.list(arm.id(), f"providers/{NETWORK}/privateEndpoints"))
    found = [
        endpoint
        for endpoint in endpoints
        if endpoint.link.private_link_service_id.lower() == vault.key
        and endpoint.approved
        and endpoint.properties.custom_dns_configs
        and (network is None or endpoint.network.key == network.key)
    ]
    if not found:
        where = "" if network is None else f" in the virtual network '{network.name}'"
        raise NotFound(f"The vault '{vault.name}' has no approved private endpoint{where}.", code="EndpointNotFound")
    return sorted(found, key=lambda endpoint: endpoint.id.lower())


def _endpoint(body: Any) -> _Endpoint:
    try:
        return msgspec.convert(body, _Endpoint)
    except msgspec.ValidationError as error:
        raise PeerMisbehaved(f"ARM's private endpoint is not understood: {error}.") from error


def _source(endpoint: _Endpoint) -> Source:
    configs: Iterable[_Config] = endpoint.properties.custom_dns_configs
    return Source(
        endpoint.name,
        ResourceId.parse(endpoint.id).group or "",
        str(endpoint.network),
        {config.fqdn: config.ip_addresses for config in configs},
    )
