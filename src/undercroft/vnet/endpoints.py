"""Private endpoints: what one is, and what a request for one may say."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, select, update

from undercroft.errors import CapabilityMissing, InvalidParameter
from undercroft.names import ResourceId, paired_region
from undercroft.state.schema import allocations, resources

__all__ = [
    "ENDPOINT_TYPE",
    "VAULT_TYPE",
    "EndpointRecord",
    "Group",
    "PrivateEndpoint",
    "check_regions",
    "check_static_addresses",
    "get",
    "in_network",
    "of_vault",
    "parse_group",
    "parse_target",
    "set_conflicts",
    "set_missing_addresses",
]

ENDPOINT_TYPE = "microsoft.network/privateendpoints"
VAULT_TYPE = "microsoft.recoveryservices/vaults"
_CLASSIC_GROUP = re.compile(r"(backup[-_])?(blob|queue|(ecs|prot)[0-9]*([-_](blob|queue))?)")
"""What v1 layouts ask for: parts of storage accounts, and accounts."""


class Group(StrEnum):
    """Sub-resources of a vault that an endpoint can stand for. Compared without case, written Azure's way."""

    BACKUP = "AzureBackup"
    BACKUP_SECONDARY = "AzureBackup_secondary"


class PrivateEndpoint(msgspec.Struct, frozen=True):
    """The stored body of a private endpoint. Its connection's state is the vault's to say (table ``connections``)."""

    subnet_id: str
    vault_id: str
    """ARM id of the vault (``privateLinkServiceId``)."""
    group: Group
    manual: bool
    connection_name: str
    """What the creator called the connection (the vault's side has a name of its own)."""
    resource_guid: str
    interface_name: str
    custom_interface_name: str = ""
    request_message: str = ""
    missing_addresses: int = 0
    """Members that have no address because the subnet is full: then the endpoint is degraded (DESIGN section 6, rule 3)."""
    conflicts: tuple[str, ...] = ()
    """Addresses that it has been given and cannot use, with the reason: somebody on the real network has them."""

    @property
    def vault_key(self) -> str:
        return self.vault_id.lower()

    @property
    def subnet_key(self) -> str:
        return self.subnet_id.lower()

    @property
    def network_key(self) -> str:
        return self.subnet_key.rsplit("/subnets/", 1)[0]


@dataclass(frozen=True, slots=True)
class EndpointRecord:
    key: str
    id: str
    name: str
    region: str
    value: PrivateEndpoint


def _read(row: Row[Any]) -> EndpointRecord:
    return EndpointRecord(row.key, row.id, row.name, row.location, msgspec.json.decode(row.body, type=PrivateEndpoint))


def get(connection: Connection, key: str) -> EndpointRecord | None:
    row = connection.execute(
        select(resources).where(resources.c.key == key.lower(), resources.c.type == ENDPOINT_TYPE)
    ).one_or_none()
    return None if row is None else _read(row)


def in_network(connection: Connection, network_key: str) -> tuple[EndpointRecord, ...]:
    """Endpoints that hold addresses in the network; found through its allocations, not by reading every endpoint."""
    owners = select(allocations.c.owner_key).where(allocations.c.network_key == network_key.lower()).distinct()
    rows = connection.execute(
        select(resources)
        .where(resources.c.key.in_(owners), resources.c.type == ENDPOINT_TYPE)
        .order_by(resources.c.created, resources.c.key)
    )
    return tuple(_read(row) for row in rows)


def of_vault(connection: Connection, endpoint_keys: Sequence[str]) -> tuple[EndpointRecord, ...]:
    rows = connection.execute(
        select(resources).where(resources.c.key.in_(tuple(endpoint_keys)), resources.c.type == ENDPOINT_TYPE)
    )
    return tuple(_read(row) for row in rows)


def set_missing_addresses(connection: Connection, endpoint: EndpointRecord, missing: int) -> None:
    """The endpoint's subnet could not give ``missing`` of its members an address (0: all have one)."""
    value = msgspec.structs.replace(endpoint.value, missing_addresses=missing)
    connection.execute(update(resources).where(resources.c.key == endpoint.key).values(body=msgspec.json.encode(value)))


def set_conflicts(connection: Connection, endpoint: EndpointRecord, conflicts: tuple[str, ...]) -> None:
    """Which of the endpoint's addresses are somebody else's, in words; none any more: ``()``."""
    value = msgspec.structs.replace(endpoint.value, conflicts=conflicts)
    connection.execute(update(resources).where(resources.c.key == endpoint.key).values(body=msgspec.json.encode(value)))


def parse_group(group_ids: Sequence[str]) -> Group:
    """Exactly one group, of those an endpoint of a vault can have."""
    target = "properties.privateLinkServiceConnections.groupIds"
    allowed = ", ".join(Group)
    if len(group_ids) != 1:
        raise InvalidParameter(
            f"A private endpoint of a Recovery Services vault needs exactly one group id; {len(group_ids)} were given. "
            f"Allowed: {allowed}.",
            code="InvalidGroupId",
            target=target,
        )
    wanted = group_ids[0].lower()
    if wanted == "azuresiterecovery":
        raise CapabilityMissing(
            "The group id AzureSiteRecovery is refused: Site Recovery replicates machines and is no part of Undercroft, and an "
            f"endpoint for backup cannot be used for it. Allowed: {allowed}.",
            target=target,
        )
    for group in Group:
        if group.lower() == wanted:
            return group
    if _CLASSIC_GROUP.fullmatch(wanted):
        raise _classic(f"The group id '{group_ids[0]}'", target)
    raise InvalidParameter(
        f"'{group_ids[0]}' is not a group id of a Recovery Services vault. Allowed: {allowed}.",
        code="InvalidGroupId",
        target=target,
    )


def parse_target(text: str) -> ResourceId:
    """``privateLinkServiceId`` must be a vault."""
    target = "properties.privateLinkServiceConnections.privateLinkServiceId"
    found = ResourceId.parse(text)
    if found.type.lower() == "microsoft.storage/storageaccounts":
        raise _classic(f"A private endpoint to the storage account '{found.name}'", target)
    if found.type.lower() != VAULT_TYPE:
        raise CapabilityMissing(
            f"A private endpoint can be made for Microsoft.RecoveryServices/vaults only; '{text}' is a {found.type}.",
            target=target,
        )
    return found


def _classic(what: str, target: str) -> CapabilityMissing:
    """Separate endpoints for the vault's storage accounts: the classic layout, which cannot exist here (pains A2)."""
    return CapabilityMissing(
        f"{what} is of the classic experience (v1), in which a vault's storage accounts (ecs, prot) had private endpoints of "
        "their own. Here is the v2 experience only: one endpoint for AzureBackup has the addresses and records of all accounts "
        "of the vault, now and later. Delete the separate endpoints from your template, and make one for AzureBackup.",
        code="UserErrorClassicPrivateEndpointNotSupported",
        target=target,
    )


def check_static_addresses(member_names: Sequence[str]) -> None:
    """A vault's members appear over time, so nobody can name all their addresses beforehand (article; pains C2)."""
    if member_names:
        raise InvalidParameter(
            f"The private endpoint contains static ipconfigurations ({', '.join(member_names)}). Static addresses are not "
            "supported for Recovery Services vaults: the vault takes more addresses as it grows. Remove 'ipConfigurations'.",
            code="PrivateEndpointStaticIpNotSupported",
            target="properties.ipConfigurations",
        )


def check_regions(group: Group, endpoint: str, network: str, vault: str) -> None:
    """Endpoint, network and vault share a region; a secondary endpoint stands in the vault's paired region."""
    if endpoint != network:
        raise InvalidParameter(
            f"The private endpoint is in '{endpoint}' and its virtual network in '{network}': they must be in one region.",
            code="InvalidPrivateEndpointRegion",
            target="location",
        )
    expected = vault if group is Group.BACKUP else paired_region(vault).name
    if endpoint != expected:
        where = "the vault's region" if group is Group.BACKUP else "the region paired with the vault's"
        raise InvalidParameter(
            f"A private endpoint for {group} must be in {where}, '{expected}'; this one is in '{endpoint}'.",
            code="InvalidPrivateEndpointRegion",
            target="location",
        )
