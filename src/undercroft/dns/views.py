"""What is published to the name server: frozen values, made by ``workers`` from state. No DNS library here.

Every name is lower case and has no trailing dot. Names *inside* values (of CNAME, MX, PTR, SRV) are fully qualified with or without the
dot, as in ARM's ``cnameRecord.cname``; they are never relative to the zone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address

__all__ = [
    "RECORD_TYPES",
    "AccountNames",
    "NetworkView",
    "PublicNames",
    "RecordChange",
    "RecordSetView",
    "ZoneChange",
    "ZoneLink",
    "ZoneView",
]

RECORD_TYPES = frozenset({"A", "AAAA", "CNAME", "MX", "PTR", "SOA", "SRV", "TXT"})
"""The record types of private zones; NS does not exist there."""


@dataclass(frozen=True, slots=True)
class RecordSetView:
    ttl: int
    values: tuple[str, ...]
    """Zone-file form: ``10.0.0.4``, ``10 mail.contoso.com``, ``"some text" "more text"``. A set without values is not served."""


@dataclass(frozen=True, slots=True)
class ZoneView:
    """A private zone by one link. Its SOA record is made when the records have none."""

    name: str
    records: Mapping[tuple[str, str], RecordSetView]
    """By (relative name, type); ``@`` is the zone itself, ``*`` the wildcard of RFC 4592. Never changed once published: views of
    one mapping show the same records, so what was made of it serves every network; and a record set that did not change is the
    same object in the mapping that comes after it."""
    nxdomain_redirect: bool = False
    """The link's resolutionPolicy is NxDomainRedirect: what the zone lacks is looked up as if it were not linked."""


@dataclass(frozen=True, slots=True)
class NetworkView:
    zones: tuple[ZoneView, ...] = ()
    """The private zones linked to this network, in any order; the same name twice is refused."""
    hosts: Mapping[IPv4Address, str] = field(default_factory=dict)
    """The network's own hosts by address: what a reverse question (PTR) is answered with, in this network and no other."""


@dataclass(frozen=True, slots=True)
class PublicNames:
    """The deployment's names on the public side: the same for every network."""

    addresses: Mapping[str, tuple[IPv4Address, ...]] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Name to CNAME target. While an account has an approved endpoint, ``{account}.blob…`` points to
    ``{account}.privatelink.blob…``. A target without addresses of its own has those of the alias, so that a network
    without the private zone reaches the public side."""
    suffixes: tuple[str, ...] = ()
    """What belongs to this deployment altogether (``undercroft.internal``): names below it that are not listed do not exist
    and are never asked of an upstream resolver. Leave out what is shared with the internet (``core.windows.net``)."""
    address_ttl: int = 10
    alias_ttl: int = 10


# --- what is published piece by piece ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RecordChange:
    name: str
    type: str
    records: RecordSetView | None
    """None: there is no such record set any more."""


@dataclass(frozen=True, slots=True)
class ZoneChange:
    """Record sets of a private zone, whoever sees it; with ``whole`` these are all it has."""

    zone: str
    """The zone's key; zones of one name may be many."""
    name: str
    records: tuple[RecordChange, ...]
    whole: bool = False


@dataclass(frozen=True, slots=True)
class ZoneLink:
    """One network sees one zone."""

    zone: str
    name: str
    nxdomain_redirect: bool = False
    hosts: tuple[tuple[IPv4Address, str], ...] = ()
    """By a link that registers: the network's VMs, as they are named in the zone. It answers for their reverse names."""


@dataclass(frozen=True, slots=True)
class AccountNames:
    """The public storage names of one vault: as ``PublicNames`` has them."""

    addresses: Mapping[str, tuple[IPv4Address, ...]] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
