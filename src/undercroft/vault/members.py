"""Members: the names a vault answers to. Eight services from the start (or two, and six at the first registration: a setting), a
name or two more with each storage account.

The group ``AzureBackup_secondary`` has eight services of its own, with the geo code of the paired region in their names. They
are there from the vault's first secondary endpoint on; storage accounts are not among them until data is replicated.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, func, insert, select

from undercroft.names import BACKUP_SERVICES, NameSuffixes, paired_region, region
from undercroft.state import tasks
from undercroft.state.schema import members

__all__ = [
    "BACKUP",
    "SECONDARY",
    "Member",
    "add_account",
    "add_secondary_services",
    "add_services",
    "complete_services",
    "of_vault",
    "of_vaults",
]

BACKUP = "AzureBackup"
SECONDARY = "AzureBackup_secondary"


@dataclass(frozen=True, slots=True)
class Member:
    fqdn: str
    vault_key: str
    group: str
    service: str
    """``fc1`` … ``wbcm1``, or ``blob`` and ``queue``."""
    name: str
    """``requiredMemberName`` on the interface: ``backup-fc1``, ``{account}-blob``."""
    account: str | None

    @property
    def door_service(self) -> str:
        """What the member's door serves: ``backup``, ``blob`` or ``queue``."""
        return "backup" if self.account is None else self.service


def add_services(
    connection: Connection,
    vault_key: str,
    vault_id: int,
    region_name: str,
    suffixes: NameSuffixes,
    services: Sequence[str] = BACKUP_SERVICES,
) -> None:
    """The service members of a new vault (DESIGN section 6, rule 3)."""
    _add_services(connection, vault_key, BACKUP, vault_id, region(region_name).geo_code, suffixes, services)


def complete_services(
    connection: Connection, vault_key: str, vault_id: int, region_name: str, suffixes: NameSuffixes
) -> tuple[str, ...]:
    """Those of the eight services that the vault has not yet, and the task that gives them addresses; the new names."""
    known = {one.service for one in of_vault(connection, vault_key) if one.account is None}
    missing = tuple(service for service in BACKUP_SERVICES if service not in known)
    if missing:
        add_services(connection, vault_key, vault_id, region_name, suffixes, missing)
        tasks.enqueue(connection, "vault", vault_key.lower(), tasks.AT_ONCE)
    geo_code = region(region_name).geo_code
    return tuple(suffixes.backup_member(vault_id, service, geo_code) for service in missing)


def add_secondary_services(
    connection: Connection, vault_key: str, vault_id: int, region_name: str, suffixes: NameSuffixes
) -> None:
    """The service members in the paired region, if they are not there yet."""
    place = paired_region(region_name)
    if not of_vault(connection, vault_key, SECONDARY):
        _add_services(connection, vault_key, SECONDARY, vault_id, place.geo_code, suffixes, BACKUP_SERVICES)


def _add_services(
    connection: Connection,
    vault_key: str,
    group: str,
    vault_id: int,
    geo_code: str,
    suffixes: NameSuffixes,
    services: Sequence[str],
) -> None:
    connection.execute(
        insert(members),
        [
            {
                "fqdn": suffixes.backup_member(vault_id, service, geo_code),
                "vault_key": vault_key.lower(),
                "group_id": group,
                "service": service,
                "name": f"backup-{service}",
                "account": None,
                "ordinal": BACKUP_SERVICES.index(service),
            }
            for service in services
        ],
    )


def add_account(
    connection: Connection,
    vault_key: str,
    account_name: str,
    services: Sequence[str] = ("blob", "queue"),
    *,
    suffixes: NameSuffixes | None = None,
    now: datetime = tasks.AT_ONCE,
) -> None:
    """Members of an account the service allots, and the task that gives them addresses on every endpoint of the vault.

    Repeating it for the same account changes nothing. ``suffixes``: the deployment's, where they are not the default.
    """
    names = suffixes or NameSuffixes()
    key = vault_key.lower()
    known = set(connection.execute(select(members.c.fqdn).where(members.c.account == account_name)).scalars())
    last = connection.execute(select(func.max(members.c.ordinal)).where(members.c.vault_key == key)).scalar()
    following = 0 if last is None else last + 1
    for offset, service in enumerate(services):
        fqdn = names.storage_member(account_name, service)
        if fqdn not in known:
            connection.execute(
                insert(members).values(
                    fqdn=fqdn,
                    vault_key=key,
                    group_id=BACKUP,
                    service=service,
                    name=f"{account_name}-{service}",
                    account=account_name,
                    ordinal=following + offset,
                )
            )
    tasks.enqueue(connection, "vault", key, now)
    tasks.enqueue(connection, "manifest", key, now)


def of_vault(connection: Connection, vault_key: str, group: str = BACKUP) -> tuple[Member, ...]:
    """In the order in which they appeared."""
    rows = connection.execute(
        select(members)
        .where(members.c.vault_key == vault_key.lower(), members.c.group_id == group)
        .order_by(members.c.ordinal, members.c.fqdn)
    )
    return tuple(Member(row.fqdn, row.vault_key, row.group_id, row.service, row.name, row.account) for row in rows)


def of_vaults(connection: Connection, vault_keys: Collection[str]) -> dict[tuple[str, str], tuple[Member, ...]]:
    """By vault and group, in the order in which they appeared: one visit for many vaults."""
    rows = connection.execute(
        select(members).where(members.c.vault_key.in_(tuple(vault_keys))).order_by(members.c.ordinal, members.c.fqdn)
    )
    found: dict[tuple[str, str], list[Member]] = {}
    for row in rows:
        member = Member(row.fqdn, row.vault_key, row.group_id, row.service, row.name, row.account)
        found.setdefault((row.vault_key, row.group_id), []).append(member)
    return {which: tuple(listed) for which, listed in found.items()}
