"""How many addresses an endpoint of a vault needs: at once, and with what the vault will still grow (DESIGN section 6, rule 3).

=====================  ===============================================  =========
when                   members                                          addresses
=====================  ===============================================  =========
creation               the services, and the accounts there are         8 or more
first registration     blob and queue of the communication account      2
                       services that were not there from the start      6 or 0
first backup           blob of the first protection account             1
further hosts          blob of a protection account each, at the most   1 each
=====================  ===============================================  =========

A host keeps the protection account of its first backup, so a vault has never more of them than hosts; how many it really gets
depends on how much they back up (``account_limit_bytes``).
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection

from undercroft.names import BACKUP_SERVICES
from undercroft.vault import accounts, members
from undercroft.vault.accounts import COMMUNICATION, PROTECTION, SERVICES

__all__ = ["Demand", "of_new_vault", "of_vault"]


@dataclass(frozen=True, slots=True)
class Demand:
    creation: int
    registration: int
    first_backup: int
    further_hosts: int

    @property
    def soon(self) -> int:
        """What every vault that is used will need beside the addresses of its creation."""
        return self.registration + self.first_backup

    @property
    def total(self) -> int:
        return self.creation + self.soon + self.further_hosts


def of_new_vault(group: str, hosts: int = 1, services: int = len(BACKUP_SERVICES)) -> Demand:
    """Of a vault without accounts that begins with so many services, for so many hosts."""
    return _demand(group, services, services, communication=0, protection=0, hosts=hosts)


def of_vault(connection: Connection, vault_key: str, group: str, hosts: int = 1) -> Demand:
    """Of a new endpoint of this vault. ``hosts``: how many will back up to it in all."""
    purposes = [one.purpose for one in accounts.of_vault(connection, vault_key.lower())]
    known = members.of_vault(connection, vault_key, group)
    services = sum(one.account is None for one in known)
    return _demand(group, len(known), services, purposes.count(COMMUNICATION), purposes.count(PROTECTION), hosts)


def _demand(group: str, known: int, services: int, communication: int, protection: int, hosts: int) -> Demand:
    if group.lower() == members.SECONDARY.lower():  # all services at once, and no accounts until data is replicated
        return Demand(len(BACKUP_SERVICES), 0, 0, 0)
    each = len(SERVICES[PROTECTION])
    return Demand(
        creation=known,
        registration=len(BACKUP_SERVICES) - services + (0 if communication else len(SERVICES[COMMUNICATION])),
        first_backup=0 if protection else each,
        further_hosts=max(0, hosts - max(protection, 1)) * each,
    )
