"""The paths that a registered host took, leg by leg: what the service saw, and why the agent did not go privately.

A *leg* is one of the four things that must be reached (reference: pains, section 3): the backup service, blobs, queues and the
login endpoint. Of each we keep the door of the last call, when it last came privately and when publicly, how many runs of the
agent fell back to the public name, and the reason of the last one in the agent's words. The doors are the service's own
observation, which no client can colour; login has no private side, so that leg is what the agent says.

``warning`` is the rule that matters most (pains A7): green jobs by the wrong path break on the day that *Deny* is set.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from undercroft.clock import timestamp
from undercroft.state import schema
from undercroft.vault import connections
from undercroft.vault.connections import Status
from undercroft.vault.members import BACKUP

__all__ = [
    "LEGS",
    "PathSeen",
    "PathWarning",
    "Told",
    "approved_endpoints",
    "note",
    "of_container",
    "of_vault",
    "tell",
    "warning",
]

LEGS = ("backup", "blob", "queue", "login")
PUBLIC = "public"


@dataclass(frozen=True, slots=True)
class PathSeen:
    """One leg of one host. Times are ISO 8601 text."""

    leg: str
    door: str
    """Of the last call: ``public`` or ``private:{endpoint key}``."""
    time: str
    private_time: str | None
    public_time: str | None
    fallbacks: int
    """Runs of the agent in which this leg took the public name because the private one could not be used."""
    fallback_time: str | None
    reason: str | None
    """Why, of the last fallback: which name did not exist, or which address did not connect."""
    proxy: str | None
    """The explicit proxy that the agent used for it, as the agent says: without a secret."""

    @property
    def public(self) -> bool:
        return self.door == PUBLIC


@dataclass(frozen=True, slots=True)
class Told:
    """What an agent says of one leg after it was used."""

    leg: str
    because: str
    proxy: str


@dataclass(frozen=True, slots=True)
class PathWarning:
    """What the vault's owner should know about a host's paths, and do."""

    message: str
    advice: str


def note(connection: Connection, container_id: str, leg: str, door: str, now: datetime) -> None:
    """A call of that leg came by the door."""
    time = timestamp(now)
    values = {"door": door, "time": time, ("public_time" if door == PUBLIC else "private_time"): time}
    _keep(connection, container_id, leg, values)


def tell(connection: Connection, container_id: str, told: Iterable[Told], now: datetime) -> None:
    """Keep what the agent says. It makes no leg private or public: only ``note`` does, and login has one side."""
    table = schema.container_paths
    for one in told:
        if one.leg == "login":
            note(connection, container_id, one.leg, PUBLIC, now)
        values: dict[str, Any] = {"proxy": one.proxy or None}
        if one.because:
            values |= {"fallbacks": table.c.fallbacks + 1, "fallback_time": timestamp(now), "reason": one.because}
        mine = (table.c.container_id == container_id) & (table.c.leg == one.leg)
        connection.execute(update(table).where(mine).values(**values))


def of_container(connection: Connection, container_id: str) -> tuple[PathSeen, ...]:
    table = schema.container_paths
    rows = connection.execute(select(table).where(table.c.container_id == container_id))
    return _sorted(_read(row) for row in rows)


def of_vault(connection: Connection, vault_key: str) -> dict[str, tuple[PathSeen, ...]]:
    """By container id; hosts of which nothing is known are not in it."""
    table, hosts = schema.container_paths, schema.containers
    query = select(table).join(hosts, hosts.c.id == table.c.container_id).where(hosts.c.vault_key == vault_key)
    found: dict[str, list[PathSeen]] = {}
    for row in connection.execute(query):
        found.setdefault(row.container_id, []).append(_read(row))
    return {container: _sorted(seen) for container, seen in found.items()}


def approved_endpoints(connection: Connection, vault_key: str) -> tuple[str, ...]:
    """Names of the endpoints that carry traffic to the vault."""
    return tuple(
        record.endpoint_id.rpartition("/")[2]
        for record in connections.of_vault(connection, vault_key)
        if record.status is Status.APPROVED and record.group == BACKUP
    )


def warning(seen: Sequence[PathSeen], approved: Sequence[str]) -> PathWarning | None:
    """It is no fault to be on the public side of a vault that has no approved endpoint."""
    outside = [one for one in seen if one.public and one.leg != "login"]
    if not outside or not approved:
        return None
    legs = " and ".join(one.leg for one in outside)
    reasons = [f"{one.leg}: {one.reason}" for one in outside if one.reason]
    why = f" ({'; '.join(reasons)})" if reasons else ""
    names = ", ".join(f"'{name}'" for name in approved)
    return PathWarning(
        f"The last calls of {legs} came by the public side although the vault has the approved "
        f"endpoint{'s' if len(approved) > 1 else ''} {names}{why}. They end on the day that public access is disabled.",
        "Link the privatelink zones to this host's network, or give its DNS server, hosts file or proxy the records of the "
        "endpoint; check the route to it.",
    )


def _keep(connection: Connection, container_id: str, leg: str, values: dict[str, Any]) -> None:
    table = schema.container_paths
    mine = (table.c.container_id == container_id) & (table.c.leg == leg)
    if not connection.execute(update(table).where(mine).values(**values)).rowcount:
        connection.execute(insert(table).values(container_id=container_id, leg=leg, fallbacks=0, **values))


def _read(row: Row[Any]) -> PathSeen:
    return PathSeen(
        row.leg,
        row.door,
        row.time,
        row.private_time,
        row.public_time,
        row.fallbacks,
        row.fallback_time,
        row.reason,
        row.proxy,
    )


def _sorted(seen: Iterable[PathSeen]) -> tuple[PathSeen, ...]:
    return tuple(sorted(seen, key=lambda one: LEGS.index(one.leg)))
