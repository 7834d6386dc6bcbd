"""The public side: addresses that stand for the internet's end of the service in every network (DESIGN section 7)."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network

from sqlalchemy import Connection, select

from undercroft.names import BACKUP_SERVICES, NameSuffixes, regions
from undercroft.state.schema import connections, members
from undercroft.vnet.doors import Door
from undercroft.vnet.endpoints import Group

__all__ = ["PUBLIC_SERVICES", "public_accounts", "public_addresses", "public_doors", "public_hosts"]

PUBLIC_SERVICES: Mapping[str, int] = {"backup": 10, "blob": 11, "queue": 12, "login": 20, "management": 21}
"""Service to offset in ``settings.public_range``."""


def public_addresses(public_range: str, login_reachable: bool = True) -> dict[str, IPv4Address]:
    """Where each public service answers; without ``login_reachable``, login and management answer nowhere."""
    network = IPv4Network(public_range)
    return {
        service: network.network_address + offset
        for service, offset in PUBLIC_SERVICES.items()
        if login_reachable or service not in ("login", "management")
    }


def public_doors(network_key: str, public_range: str, login_reachable: bool = True) -> dict[IPv4Address, Door]:
    return {
        address: Door(network_key, service)
        for service, address in public_addresses(public_range, login_reachable).items()
    }


def public_hosts(suffixes: NameSuffixes, public_range: str, login_reachable: bool = True) -> dict[str, IPv4Address]:
    """Names with a fixed public address: the backup service of every region, login and management."""
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
    connection: Connection, suffixes: NameSuffixes, public_range: str
) -> tuple[dict[str, IPv4Address], dict[str, str]]:
    """Every storage name to its public address; and those whose vault has an approved endpoint to their ``privatelink`` name.

    Azure's public DNS does the same: the CNAME appears with the first approved endpoint and goes with the last. A secondary
    endpoint has no storage names, so it gives none an alias.
    """
    addresses = public_addresses(public_range)
    approved = set(
        connection.execute(
            select(connections.c.vault_key)
            .where(connections.c.status == "Approved", connections.c.group_id == Group.BACKUP.value)
            .distinct()
        ).scalars()
    )
    rows = connection.execute(
        select(members.c.fqdn, members.c.account, members.c.service, members.c.vault_key)
        .where(members.c.account.is_not(None))
        .order_by(members.c.fqdn)
    ).all()
    hosts = {row.fqdn: addresses[row.service] for row in rows}
    aliases = {
        row.fqdn: suffixes.storage_private(row.account, row.service) for row in rows if row.vault_key in approved
    }
    return hosts, aliases
