"""Microsoft.RecoveryServices/vaults/privateLinkResources, and locations/capabilities: what an endpoint of a vault consists of."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection

from undercroft.arm.call import Call, Reply, Route, parse
from undercroft.arm.paging import page_of
from undercroft.errors import CapabilityMissing, InvalidParameter, NotFound
from undercroft.names import BACKUP_SERVICES, NameSuffixes, Region, region, regions
from undercroft.providers.collaborators import Collaborators, Echo
from undercroft.vault import vaults
from undercroft.vault.vaults import VaultRecord

__all__ = ["routes"]

GROUPS = {"AzureBackup": "backupResource", "AzureBackup_secondary": "backupResourceSecondary"}
"""Group id to the name of its private link resource. The second name is ours: no public text shows Azure's."""


class ZoneQuestion(Echo, frozen=True):
    sub_resource: str


class CapabilityProperties(Echo, frozen=True):
    dns_zones: tuple[ZoneQuestion, ...] = ()


class CapabilityBody(Echo, frozen=True):
    properties: CapabilityProperties = CapabilityProperties()


def _place(group: str, home: Region) -> Region | None:
    """The region whose names the group's members carry: the vault's own, or for the secondary the paired one, if there is one."""
    if group == "AzureBackup":
        return home
    return None if home.pair is None else regions().get(home.pair)


def _zones(place: Region, suffixes: NameSuffixes) -> list[str]:
    """Azure's published answer ends with the third; the fourth is what the article's table has (pains B9)."""
    return [suffixes.backup_zone(place.geo_code), *suffixes.storage_zones]


def _shown(vault: VaultRecord, suffixes: NameSuffixes) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for group, name in GROUPS.items():
        place = _place(group, region(vault.region))
        if place is not None:
            found.append(
                (
                    name.lower(),
                    {
                        "id": f"{vault.id}/privateLinkResources/{name}",
                        "name": name,
                        "type": "Microsoft.RecoveryServices/vaults/privateLinkResources",
                        "properties": {
                            "groupId": group,
                            "requiredMembers": [f"backup-{service}" for service in BACKUP_SERVICES],
                            "requiredZoneNames": _zones(place, suffixes),
                        },
                    },
                )
            )
    return found


def routes(parts: Collaborators) -> tuple[Route, ...]:
    suffixes = parts.settings.suffixes

    async def resources_of(key: str) -> list[tuple[str, dict[str, Any]]]:
        def read(connection: Connection) -> VaultRecord:
            return vaults.require(connection, key)

        return _shown(await parts.database.read(read), suffixes)

    async def every(call: Call) -> Reply:
        return page_of(call, await resources_of(call.id.key))

    async def get(call: Call) -> Reply:
        assert call.id.parent is not None
        for key, shown in await resources_of(call.id.parent.key):
            if key == call.id.name.lower():
                return Reply(200, shown)
        raise NotFound(
            f"The vault has no private link resource '{call.id.name}'. Its resources: {', '.join(GROUPS.values())}."
        )

    async def capabilities(call: Call) -> Reply:
        home = region(call.parameters["location"])
        body = parse(call.body, CapabilityBody)
        if str(body.type).lower() != "microsoft.recoveryservices/vaults":
            raise InvalidParameter(
                f"Capabilities are known of the type Microsoft.RecoveryServices/Vaults, not of '{body.type}'.",
                code="InvalidRestApiParameter",
                target="type",
            )
        answers = []
        for number, one in enumerate(body.properties.dns_zones):
            group = _group(one.sub_resource, f"properties.dnsZones[{number}].subResource")
            place = _place(group, home)
            if place is None:
                raise CapabilityMissing(
                    f"The region '{home.name}' has no paired region, so it has no {group}.",
                    target="properties.dnsZones",
                )
            answers.append({"subResource": group, "requiredZoneNames": _zones(place, suffixes)})
        return Reply(200, {"type": "Microsoft.RecoveryServices/Vaults", "properties": {"dnsZones": answers}})

    scope = "/subscriptions/{subscription}"
    base = (
        f"{scope}/resourceGroups/{{group}}/providers/Microsoft.RecoveryServices/vaults/{{vault}}/privateLinkResources"
    )
    action = "Microsoft.RecoveryServices/Vaults/privateLinkResources"
    return (
        Route("GET", base, f"{action}/read", every),
        Route("GET", f"{base}/{{resource}}", f"{action}/read", get),
        Route(
            "POST",
            f"{scope}/providers/Microsoft.RecoveryServices/locations/{{location}}/capabilities",
            "Microsoft.RecoveryServices/locations/capabilities/action",
            capabilities,
        ),
    )


def _group(text: str, target: str) -> str:
    for group in GROUPS:
        if group.lower() == text.lower():
            return group
    if text.lower() == "azuresiterecovery":
        raise CapabilityMissing(
            "AzureSiteRecovery: Site Recovery replicates machines and is no part of Undercroft. Leave it out.",
            target=target,
        )
    raise InvalidParameter(
        f"'{text}' is not a sub-resource of a vault: {', '.join(GROUPS)}.",
        code="InvalidRestApiParameter",
        target=target,
    )
