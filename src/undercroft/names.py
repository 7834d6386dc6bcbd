"""Names: ARM resource ids, regions and geo codes, vault ids, and the FQDNs made from them.

Everything here is a rule about strings, without I/O. Ids compare without case (ARM ids are case-insensitive); ``key`` is the
form that is stored and compared, the spelling of the creator is kept beside it for display.
"""

from __future__ import annotations

import difflib
import json
import re
import secrets
from dataclasses import dataclass
from functools import cache
from importlib import resources as package_resources

import msgspec

from undercroft.errors import InvalidParameter, UnknownRegion

__all__ = [
    "BACKUP_SERVICES",
    "FIRST_SERVICES",
    "NameSuffixes",
    "Region",
    "ResourceId",
    "canonical_region",
    "new_vault_id",
    "paired_region",
    "region",
    "regions",
]

_LATER_ACCOUNT = re.compile(r"([0-9a-f]{8})prot([0-9]{2,})")
BACKUP_SERVICES = ("fc1", "fab1", "prot1", "rec2", "ecs1", "id1", "tel1", "wbcm1")
"""The eight service members of an AzureBackup endpoint (reference: SPEC GetPrivateLinkResources)."""
FIRST_SERVICES = ("rec2", "id1")
"""The two that real v2 endpoints were seen to begin with (azure-facts section 2; the setting ``start_with_two_members``)."""


@dataclass(frozen=True, slots=True)
class ResourceId:
    """An ARM resource id, parsed.

    ``/subscriptions/{s}``, ``…/resourceGroups/{g}``, ``…/providers/{namespace}/{type}/{name}[/{type}/{name}]…``; the
    provider part may also stand directly under the subscription or, for tenant-level types, under the root.
    """

    subscription: str | None
    group: str | None
    namespace: str | None
    types: tuple[str, ...]
    names: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> ResourceId:
        """Raises ``InvalidParameter`` naming the text when it has no ARM form."""
        parts = text.strip("/").split("/")
        subscription = group = namespace = None
        if len(parts) >= 2 and parts[0].lower() == "subscriptions":
            subscription, parts = parts[1], parts[2:]
            if len(parts) >= 2 and parts[0].lower() == "resourcegroups":
                group, parts = parts[1], parts[2:]
        if parts and parts[0].lower() == "providers":
            if len(parts) < 4 or len(parts) % 2:
                raise InvalidParameter(f"'{text}' is not a resource id: a provider needs pairs of type and name.")
            namespace, parts = parts[1], parts[2:]
        elif parts and parts != [""]:
            raise InvalidParameter(f"'{text}' is not a resource id.")
        if ("" in parts and parts != [""]) or (subscription is None and namespace is None):
            raise InvalidParameter(f"'{text}' is not a resource id.")
        if namespace is None:
            return cls(subscription, group, None, (), ())
        return cls(subscription, group, namespace, tuple(parts[0::2]), tuple(parts[1::2]))

    def __str__(self) -> str:
        text = ""
        if self.subscription is not None:
            text += f"/subscriptions/{self.subscription}"
        if self.group is not None:
            text += f"/resourceGroups/{self.group}"
        if self.namespace is not None:
            text += f"/providers/{self.namespace}"
            text += "".join(f"/{kind}/{name}" for kind, name in zip(self.types, self.names, strict=True))
        return text

    @property
    def key(self) -> str:
        """The id in lower case: what is stored, compared and looked up."""
        return str(self).lower()

    @property
    def name(self) -> str:
        if self.names:
            return self.names[-1]
        return self.group or self.subscription or ""

    @property
    def type(self) -> str:
        """``Microsoft.Network/virtualNetworks/subnets``; resource groups and subscriptions have types as well."""
        if self.namespace is not None:
            return "/".join((self.namespace, *self.types))
        return "Microsoft.Resources/resourceGroups" if self.group else "Microsoft.Resources/subscriptions"

    @property
    def parent(self) -> ResourceId | None:
        """The enclosing resource (a subnet's network); a top-level resource's parent is its group."""
        if len(self.types) > 1:
            return ResourceId(self.subscription, self.group, self.namespace, self.types[:-1], self.names[:-1])
        if self.namespace is not None and self.subscription is not None:
            return ResourceId(self.subscription, self.group, None, (), ())
        if self.group is not None:
            return ResourceId(self.subscription, None, None, (), ())
        return None

    def child(self, kind: str, name: str) -> ResourceId:
        return ResourceId(self.subscription, self.group, self.namespace, (*self.types, kind), (*self.names, name))


@dataclass(frozen=True, slots=True)
class Region:
    """``name`` is ARM's short form (``eastus``), ``geo_code`` the one in backup host names (``eus``)."""

    name: str
    display_name: str
    geo_code: str
    pair: str | None


@cache
def regions() -> dict[str, Region]:
    """All known regions by short name (sources: reference geo-code list, landing-zone policy for the newer ones)."""
    text = package_resources.files("undercroft").joinpath("regions.json").read_text("utf-8")
    return {
        row["name"]: Region(row["name"], row["displayName"], row["geoCode"], row["pair"]) for row in json.loads(text)
    }


def canonical_region(text: str) -> str:
    """``West Europe`` and ``westeurope`` are the same region to ARM."""
    return re.sub(r"\s", "", text).lower()


def region(text: str) -> Region:
    """The region of that name, in either spelling; ``UnknownRegion`` says what is near."""
    known = regions()
    name = canonical_region(text)
    if name in known:
        return known[name]
    for candidate in known.values():
        if candidate.geo_code == name:
            raise UnknownRegion(f"'{text}' is a geo code; the region is called '{candidate.name}'.", target="location")
    near = difflib.get_close_matches(name, known, n=3)
    hint = f" Did you mean: {', '.join(near)}?" if near else ""
    raise UnknownRegion(f"The location '{text}' is not an Azure region.{hint}", target="location")


def paired_region(name: str) -> Region:
    """The region in which the secondary endpoints of a vault in ``name`` stand."""
    pair = region(name).pair
    found = None if pair is None else regions().get(pair)
    if found is None:
        raise InvalidParameter(
            f"The region '{name}' has no paired region, so a vault in it has no AzureBackup_secondary endpoints. Only AzureBackup is "
            "possible.",
            code="UserErrorRegionHasNoPair",
            target="properties.privateLinkServiceConnections.groupIds",
        )
    return found


def new_vault_id() -> int:
    """A positive signed 64-bit integer of 16 to 19 digits, as real vault ids are."""
    return secrets.randbelow(2**63 - 10**15) + 10**15


_AZURES = (
    *("windowsazure.com", "windowsazure.us", "windowsazure.cn", "windows.net", "azure.com", "azure.net", "azure.us"),
    *("azure.cn", "usgovcloudapi.net", "chinacloudapi.cn", "microsoftonline.com", "microsoft.com"),
)
"""Domains of Azure's public clouds."""


class NameSuffixes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The deployment's DNS suffixes (DESIGN section 6, rule 8); the defaults are Azure's own."""

    backup: str = "backup.windowsazure.com"
    storage: str = "core.windows.net"
    deployment: str = "undercroft.internal"
    partitioned: str = "storage.azure.net"
    """Under which the second and later protection accounts of a vault are named, ``{account}.z{nn}.blob.storage.azure.net``
    (article, table of zones; Azure Storage's DNS zone endpoints; pains B9). Empty: they are named as the first."""

    def backup_zone(self, geo_code: str) -> str:
        return f"privatelink.{geo_code}.{self.backup}"

    @property
    def blob_zone(self) -> str:
        return f"privatelink.blob.{self.storage}"

    @property
    def queue_zone(self) -> str:
        return f"privatelink.queue.{self.storage}"

    @property
    def storage_zones(self) -> tuple[str, ...]:
        """The private zones for the storage accounts of a vault, now and later."""
        return (self.queue_zone, self.blob_zone, *((self.partitioned_zone,) if self.partitioned else ()))

    @property
    def partitioned_zone(self) -> str:
        return f"privatelink.blob.{self.partitioned}"

    def partition(self, account: str) -> str | None:
        """``z00`` … ``z99``, the same for ever for an account; None when it has a name of the common kind."""
        match = _LATER_ACCOUNT.fullmatch(account)
        if match is None or not self.partitioned or int(match[2]) < 2:
            return None
        return f"z{(int(match[1], 16) + int(match[2])) % 100:02}"

    def backup_member(self, vault_id: int, service: str, geo_code: str) -> str:
        return f"{vault_id}-ab-pod01-{service}.{self.backup_zone(geo_code)}"

    def public_backup(self, service: str, geo_code: str) -> str:
        return f"pod01-{service}.{geo_code}.{self.backup}"

    def storage_member(self, account: str, service: str) -> str:
        """The name clients use and certificates carry: ``{account}.blob.core.windows.net``."""
        partition = self.partition(account)
        if partition is None:
            return f"{account}.{service}.{self.storage}"
        return f"{account}.{partition}.{service}.{self.partitioned}"

    def storage_private(self, account: str, service: str) -> str:
        """Where the public name's CNAME points while an endpoint is approved: the record in the private zone."""
        partition = self.partition(account)
        if partition is None:
            return f"{account}.privatelink.{service}.{self.storage}"
        return f"{account}.{partition}.privatelink.{service}.{self.partitioned}"

    @property
    def of_azure(self) -> tuple[str, ...]:
        """Those of the suffixes that are Azure's own names, or below them."""
        given = self.backup, self.storage, self.partitioned, self.deployment
        return tuple(one for one in given if any(f".{one.lower()}".endswith(f".{azure}") for azure in _AZURES))

    @property
    def login(self) -> str:
        return f"login.{self.deployment}"

    @property
    def management(self) -> str:
        return f"management.{self.deployment}"
