"""The public side: addresses that stand for the internet's end of the service in every network (DESIGN section 7)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from ipaddress import IPv4Address, IPv4Network

from sqlalchemy import Connection, select

from undercroft.names import BACKUP_SERVICES, NameSuffixes, regions
from undercroft.state.schema import connections, members
from undercroft.vnet.doors import Door
from undercroft.vnet.endpoints import Group

__all__ = [
    "PUBLIC_SERVICES",
    "public_accounts",
    "public_addresses",
    "public_doors",
    "public_hosts",
    "public_resolver",
]

PUBLIC_SERVICES: Mapping[str, int] = {"backup": 10, "blob": 11, "queue": 12, "login": 20, "management": 21}
"""Service to offset in ``settings.public_range``."""
_RESOLVER = 22


def public_addresses(public_range: str, login_reachable: bool = True) -> dict[str, IPv4Address]:
    """Where each public service answers; without ``login_reachable``, login and management answer nowhere."""
    network = IPv4Network(public_range)
    return {
        service: network.network_address + offset
        for service, offset in PUBLIC_SERVICES.items()
        if login_reachable or service not in ("login", "management")
    }


def public_resolver(public_range: str) -> IPv4Address:
    """Who answers public names on the internet: in sites, which have no 168.63.129.16."""
    return IPv4Network(public_range).network_address + _RESOLVER


def public_doors(
    network_key: str, public_range: str, login_reachable: bool = True, on_interface: IPv4Address | None = None
) -> dict[IPv4Address, Door]:
    """``on_interface``: on a real network there is no public side but login and management, both at this address."""
    if on_interface is not None:
        return {on_interface: Door(network_key, "front")} if login_reachable else {}
    return {
        address: Door(network_key, service)
        for service, address in public_addresses(public_range, login_reachable).items()
    }


def public_hosts(
    suffixes: NameSuffixes, public_range: str, login_reachable: bool = True, on_interface: IPv4Address | None = None
) -> dict[str, IPv4Address]:
    """Names with a fixed public address: the backup service of every region, login and management."""
    if on_interface is not None:
        return dict.fromkeys((suffixes.login, suffixes.management), on_interface) if login_reachable else {}
    addresses = public_addresses(public_range, login_reachable)
    hosts = {
        suffixes.public_backup(service, place.geo_code): addresses["backup"]
        for place in regions().values()
        for service in BACKUP_SERVICES
    }
    if login_reachable:
        hosts[suffixes.login] = addresses["login"]
        hosts[suffixes.management] = addresses["management"]
    return hosts


def public_accounts(
    connection: Connection, suffixes: NameSuffixes, public_range: str, vault_keys: Collection[str] | None = None
) -> dict[str, tuple[dict[str, IPv4Address], dict[str, str]]]:
    """By vault (of ``vault_keys``, or every one that has accounts): every storage name to its public address; and, if the vault
    has an approved endpoint, to its ``privatelink`` name.

    Azure's public DNS does the same: the CNAME appears with the first approved endpoint and goes with the last. A secondary
    endpoint has no storage names, so it gives none an alias.
    """
    addresses = public_addresses(public_range)
    approved = (
        select(connections.c.vault_key)
        .where(connections.c.status == "Approved", connections.c.group_id == Group.BACKUP.value)
        .distinct()
    )
    rows = select(members.c.fqdn, members.c.account, members.c.service, members.c.vault_key).where(
        members.c.account.is_not(None)
    )
    if vault_keys is not None:
        keys = tuple(vault_keys)
        approved = approved.where(connections.c.vault_key.in_(keys))
        rows = rows.where(members.c.vault_key.in_(keys))
    shown = set(connection.execute(approved).scalars())
    found: dict[str, tuple[dict[str, IPv4Address], dict[str, str]]] = {}
    for row in connection.execute(rows.order_by(members.c.vault_key, members.c.fqdn)):
        hosts, aliases = found.setdefault(row.vault_key, ({}, {}))
        hosts[row.fqdn] = addresses[row.service]
        if row.vault_key in shown:
            aliases[row.fqdn] = suffixes.storage_private(row.account, row.service)
    return found
