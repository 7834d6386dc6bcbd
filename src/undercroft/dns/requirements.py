"""What resolvers must answer so that hosts find a vault's private endpoints, and which domains that takes. Values only.

The names and addresses are never derived: they are what the endpoint's DNS configuration (``customDnsConfigs``) lists. Only where a
name belongs is worked out here, because custom DNS servers need different things for the two kinds of zone:

* *backup names* (``….privatelink.we.backup.windowsazure.com``) exist nowhere but in the private zone. A server may own that zone.
* *storage names* (``account.blob.core.windows.net``) lie in a public domain that holds everybody else's accounts too. A server that
  owned ``blob.core.windows.net`` would hide all of those; it must own the single names, or forward the domain. Forwarding only
  ``privatelink.blob.core.windows.net`` is not enough: a server with a general forwarder never sees the CNAME that leads there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address

from undercroft.errors import Conflict, InvalidParameter

__all__ = ["AZURE_DNS", "RequiredName", "RequiredZone", "Requirements", "Source", "forwarder_addresses"]

AZURE_DNS = IPv4Address("168.63.129.16")
_PRIVATE = "privatelink."
_NAME = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)(\.(?!-)[a-z0-9-]{1,63}(?<!-))+")


@dataclass(frozen=True, slots=True)
class RequiredZone:
    """A private zone that the vault's subresource needs."""

    name: str
    public: str | None
    """The public domain whose names lead into the zone by CNAME; None for the backup zone, whose names have no public form."""

    @classmethod
    def of(cls, name: str, backup_suffix: str) -> RequiredZone:
        zone = _checked(name)
        shared = zone.startswith(_PRIVATE) and not zone.endswith(f".{backup_suffix}")
        return cls(zone, zone.removeprefix(_PRIVATE) if shared else None)

    def holds(self, fqdn: str) -> bool:
        return fqdn.endswith((f".{self.name}", f".{self.public or self.name}"))


@dataclass(frozen=True, slots=True, order=True)
class RequiredName:
    """A name that must have addresses of these; any at all, when there are none. There are several when several endpoints of a vault
    have the name: each of them will do, and a private zone that they share knows only the last one written."""

    fqdn: str
    addresses: tuple[IPv4Address, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """One private endpoint's DNS configuration, as ARM shows it."""

    endpoint: str
    group: str
    network: str
    """Id of the virtual network that it stands in."""
    configs: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Requirements:
    """``names`` in alphabetical order, ``zones`` in the order in which the vault lists them."""

    sources: tuple[Source, ...]
    zones: tuple[RequiredZone, ...]
    names: tuple[RequiredName, ...]
    deployment: str
    """The deployment's own suffix, below which login and management answer; hosts need these as well."""
    subject: str
    """What was asked about, in a few words that stay the same when endpoints or names come and go."""

    @classmethod
    def of(
        cls,
        sources: Iterable[Source],
        zones: Iterable[str],
        *,
        backup_suffix: str,
        deployment: str,
        subject: str | None = None,
    ) -> Requirements:
        """Raises ``Conflict`` when endpoints of different networks give one name different addresses: no host can use both."""
        given = tuple(sources)
        addresses: dict[str, dict[IPv4Address, None]] = {}
        owner: dict[str, Source] = {}
        for source in given:
            for text, values in source.configs.items():
                fqdn = _checked(text)
                other = owner.setdefault(fqdn, source)
                if other.network.lower() != source.network.lower():
                    raise Conflict(
                        f"The endpoints '{other.endpoint}' and '{source.endpoint}' stand in different networks and give {fqdn} "
                        "different addresses. Choose the network whose hosts will ask, with --vnet-name, or name one endpoint.",
                        code="AmbiguousEndpoints",
                    )
                addresses.setdefault(fqdn, {}).update(dict.fromkeys(map(IPv4Address, values)))
        names = sorted(RequiredName(fqdn, tuple(sorted(found))) for fqdn, found in addresses.items())
        listed = tuple(dict.fromkeys(RequiredZone.of(zone, backup_suffix) for zone in zones))
        of_endpoints = ", ".join(f"{source.endpoint} ({source.group})" for source in given)
        return cls(given, listed, tuple(names), deployment, subject or of_endpoints)

    @property
    def login(self) -> RequiredName:
        """Private endpoints do not cover the login endpoint (the article: *access to Microsoft Entra ID*), and no agent works
        without it, so it must resolve as well."""
        return RequiredName(f"login.{self.deployment}", ())

    def zone_of(self, fqdn: str) -> RequiredZone | None:
        return next((zone for zone in self.zones if zone.holds(fqdn)), None)

    def owned(self) -> dict[str, tuple[RequiredName, ...]]:
        """Zone to its names, for servers with zones of their own: the backup zones whole, every storage name a zone by itself."""
        zones: dict[str, list[RequiredName]] = {zone.name: [] for zone in self.zones if zone.public is None}
        for name in self.names:
            zone = self.zone_of(name.fqdn)
            apex = zone.name if zone is not None and zone.public is None else name.fqdn
            zones.setdefault(apex, []).append(name)
        return {apex: tuple(names) for apex, names in zones.items() if names}

    def forwarded(self) -> tuple[str, ...]:
        """The domains to forward so that every name, also one that comes later, gets Azure DNS's answer."""
        domains = [domain for zone in self.zones for domain in (zone.name, zone.public) if domain]
        domains += [name.fqdn for name in self.names if self.zone_of(name.fqdn) is None]
        return tuple(dict.fromkeys((*domains, self.deployment)))


def forwarder_addresses(texts: Iterable[str]) -> tuple[IPv4Address, ...]:
    """Addresses of resolvers to forward to. Raises ``InvalidParameter`` for what is none, and for misprints of 168.63.129.16
    (Microsoft's own proxy page has one: reference, pains B8)."""
    found = []
    for text in texts:
        try:
            address = IPv4Address(text.strip())
        except ValueError as error:
            raise InvalidParameter(f"'{text}' is not an IPv4 address: {error}.", target="--forward-to") from error
        if address != AZURE_DNS and _is_misprint(address):
            raise InvalidParameter(
                f"{address} is not Azure DNS; it looks like a misprint of {AZURE_DNS}. Nothing would answer there.",
                code="InvalidDnsServer",
                target="--forward-to",
            )
        found.append(address)
    if not found:
        raise InvalidParameter("Name at least one resolver to forward to.", target="--forward-to")
    return tuple(dict.fromkeys(found))


def _is_misprint(address: IPv4Address) -> bool:
    """Whether one octet is wrong, or the digits are the right ones in another order."""
    given, right = str(address), str(AZURE_DNS)
    wrong = sum(one != other for one, other in zip(given.split("."), right.split("."), strict=True))
    return wrong == 1 or sorted(given) == sorted(right)


def _checked(text: str) -> str:
    """The name in lower case; whatever is not a host name must not get into a configuration file."""
    name = text.rstrip(".").lower()
    if len(name) > 253 or not _NAME.fullmatch(name):
        raise InvalidParameter(f"'{text}' is not a host name.", target="customDnsConfigs")
    return name
