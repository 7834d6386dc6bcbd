"""The storage accounts that the service allots to a vault.

``{8 hex}ecs01`` is the communication account, one per vault, allotted at the first registration; ``{8 hex}prot01`` the first
protection account, allotted at the first backup, ``prot02`` the next when a new container comes and the last one is at its limit.
A container keeps the account it got. Allotting makes the account's members; an agent hears of it only when it is ready.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from datetime import datetime

import msgspec
from sqlalchemy import Connection, insert, select

from undercroft.clock import timestamp
from undercroft.errors import InvalidParameter, NotFound
from undercroft.names import NameSuffixes
from undercroft.state import schema
from undercroft.vault.members import add_account

__all__ = [
    "COMMUNICATION",
    "PROTECTION",
    "Account",
    "communication",
    "find",
    "of_vault",
    "protection",
    "restore",
    "stored_bytes",
]

COMMUNICATION = "ecs"
PROTECTION = "prot"
SERVICES = {COMMUNICATION: ("blob", "queue"), PROTECTION: ("blob",)}

_NAME = re.compile(r"([0-9a-f]{8})(ecs|prot)([0-9]{2,})")


@dataclass(frozen=True, slots=True)
class Account:
    name: str
    vault_key: str
    purpose: str
    signing_key: bytes

    @property
    def services(self) -> tuple[str, ...]:
        return SERVICES[self.purpose]


def find(connection: Connection, name: str) -> Account | None:
    row = connection.execute(select(schema.accounts).where(schema.accounts.c.name == name)).first()
    return None if row is None else Account(row.name, row.vault_key, row.purpose, row.signing_key)


def of_vault(connection: Connection, vault_key: str) -> tuple[Account, ...]:
    table = schema.accounts
    rows = connection.execute(
        select(table).where(table.c.vault_key == vault_key).order_by(table.c.created, table.c.name)
    )
    return tuple(Account(row.name, row.vault_key, row.purpose, row.signing_key) for row in rows)


def communication(connection: Connection, vault_key: str, suffixes: NameSuffixes, now: datetime) -> Account:
    """The vault's communication account, allotted if it has none."""
    for account in of_vault(connection, vault_key):
        if account.purpose == COMMUNICATION:
            return account
    return _allot(connection, vault_key, COMMUNICATION, suffixes, now)


def protection(connection: Connection, container_id: str, limit: int, suffixes: NameSuffixes, now: datetime) -> Account:
    """The container's protection account; at its first backup the vault's newest one below ``limit`` bytes, or a new one."""
    table = schema.containers
    row = connection.execute(select(table).where(table.c.id == container_id)).one()
    if row.protection_account is not None:
        found = find(connection, row.protection_account)
        if found is None:
            raise NotFound(f"The protection account '{row.protection_account}' is not known to this deployment.")
        return found
    chosen: Account | None = None
    for account in of_vault(connection, row.vault_key):
        if account.purpose == PROTECTION and stored_bytes(connection, account.name) < limit:
            chosen = account
    if chosen is None:
        chosen = _allot(connection, row.vault_key, PROTECTION, suffixes, now)
    connection.execute(table.update().where(table.c.id == container_id).values(protection_account=chosen.name))
    return chosen


def stored_bytes(connection: Connection, name: str) -> int:
    """What the points of an account added to it. Asked only when a container backs up for the first time."""
    table = schema.recovery_points
    total = 0
    for (details,) in connection.execute(select(table.c.details).where(table.c.account == name)):
        total += msgspec.json.decode(details, type=_Stored).statistics.bytes_stored
    return total


def restore(connection: Connection, vault_key: str, name: str, suffixes: NameSuffixes, now: datetime) -> bool:
    """Rebuild: the account as it was named, with a new signing key (old grants end with that). False when it is there."""
    if find(connection, name) is not None:
        return False
    match = _NAME.fullmatch(name)
    if match is None:
        raise InvalidParameter(f"'{name}' is not the name of an account of a vault.")
    _insert(connection, vault_key, name, match[2], suffixes, now)
    return True


class _StoredBytes(msgspec.Struct, frozen=True, rename="camel"):
    bytes_stored: int = 0


class _Stored(msgspec.Struct, frozen=True, rename="camel"):
    statistics: _StoredBytes = _StoredBytes()


def _allot(connection: Connection, vault_key: str, purpose: str, suffixes: NameSuffixes, now: datetime) -> Account:
    names = [match for account in of_vault(connection, vault_key) if (match := _NAME.fullmatch(account.name))]
    number = 1 + max((int(match[3]) for match in names if match[2] == purpose), default=0)
    stem = names[0][1] if names else secrets.token_hex(4)
    while find(connection, name := f"{stem}{purpose}{number:02d}") is not None:
        stem = secrets.token_hex(4)
    return _insert(connection, vault_key, name, purpose, suffixes, now)


def _insert(
    connection: Connection, vault_key: str, name: str, purpose: str, suffixes: NameSuffixes, now: datetime
) -> Account:
    """``add_account`` enqueues what follows: addresses on every endpoint, and the vault's copy in the store."""
    account = Account(name, vault_key, purpose, secrets.token_bytes(64))
    connection.execute(
        insert(schema.accounts).values(
            name=name, vault_key=vault_key, purpose=purpose, signing_key=account.signing_key, created=timestamp(now)
        )
    )
    add_account(connection, vault_key, name, account.services, suffixes=suffixes, now=now)
    return account
