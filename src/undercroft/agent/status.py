"""Which vault this host is on and how it is reached: what users of Azure's agent cannot see (reference: pains A7, D3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from undercroft.errors import UndercroftError

from .identity import AgentHome, Identity, RouteNote
from .messages import Account, Container
from .paths import Ways
from .resolve import LegFailed, looks_private, split_port
from .session import Session

__all__ = ["Status", "describe"]


@dataclass(frozen=True, slots=True)
class AccountSeen:
    """An account, and what its name resolves to on this host."""

    account: Account
    address: str
    problem: str
    proxy: str = ""

    @property
    def path(self) -> str:
        if self.proxy:
            return "through the proxy"
        if not self.address:
            return "unresolved"
        return "private" if looks_private(self.address) else "public"


@dataclass(frozen=True, slots=True)
class Status:
    identity: Identity
    ways: Mapping[str, RouteNote]
    """By leg."""
    container: Container | None
    accounts: tuple[AccountSeen, ...]
    failure: str

    def document(self) -> dict[str, Any]:
        identity, route = self.identity, self.ways.get("backup")
        return {
            "vault": identity.vault_name,
            "vaultId": identity.vault_id,
            "resourceId": identity.resource_id,
            "region": identity.region,
            "containerId": identity.container_id,
            "machineName": identity.machine_name,
            "registered": identity.registered.isoformat(),
            "registration": self.container.registration if self.container else None,
            "path": route.path if route else None,
            "route": {"host": route.host, "address": route.address, "because": route.because} if route else None,
            "ways": {leg: msgspec.to_builtins(note) for leg, note in self.ways.items()},
            "accounts": [
                {
                    "name": seen.account.name,
                    "purpose": seen.account.purpose,
                    "blobHost": seen.account.blob_host,
                    "address": seen.address or None,
                    "path": seen.path,
                }
                for seen in self.accounts
            ],
            "pendingAccounts": self.container.pending if self.container else None,
            "failure": self.failure or None,
        }

    def lines(self) -> list[str]:
        identity = self.identity
        text = [
            f"vault         {identity.vault_name} ({identity.vault_id}, {identity.region})",
            f"resource      {identity.resource_id}",
            f"container     {identity.machine_name} ({identity.container_id})",
            f"registered    {identity.registered:%Y-%m-%d %H:%M:%S} UTC",
        ]
        if self.container:
            text.append(f"registration  {self.container.registration}")
        for leg, note in self.ways.items():
            text += way_lines(leg, note)
        for seen in self.accounts:
            where = f"{seen.address} ({seen.path})" if seen.address else seen.problem
            if seen.proxy:
                where = f"through the proxy {seen.proxy}, which resolves its name itself"
            text.append(f"account       {seen.account.name} ({seen.account.purpose}): {where}")
        if self.container and self.container.pending:
            text.append(f"              {self.container.pending} more are not ready on this endpoint yet")
        if self.failure:
            text.append(f"failure       {self.failure}")
        return text


def way_lines(leg: str, note: RouteNote) -> list[str]:
    where = f"through the proxy {note.proxy}" if note.proxy else f"at {note.address}"
    text = [f"path          {leg}: {note.path}, {note.host} {where}, {note.time:%Y-%m-%d %H:%M:%S} UTC"]
    if note.because:
        text.append(f"              because {note.because}")
    if note.fallbacks:
        text.append(f"              fell back {note.fallbacks} time{'s' if note.fallbacks > 1 else ''} so far")
    return text


def describe(home: AgentHome, identity: Identity, session: Session) -> Status:
    """Asks the vault; when that fails, says how it failed and by which ways it was reached last."""
    try:
        container = session.call("fc1", "GET", "/v1/container", Container)
    except UndercroftError as error:
        return Status(identity, home.last_ways(), None, (), error.message)
    Ways(session, home, lambda line: None).tell()
    accounts = tuple(see(session, account) for account in container.accounts)
    return Status(identity, home.last_ways(), container, accounts, "")


def see(session: Session, account: Account) -> AccountSeen:
    host, dialer = split_port(account.blob_host)[0], session.exchange.dialer
    if proxy := dialer.connector.proxy_for(host):
        return AccountSeen(account, "", "", proxy)
    try:
        address = dialer.resolver.addresses(host)[0]
    except LegFailed as error:
        return AccountSeen(account, "", error.message)
    return AccountSeen(account, address, "")
