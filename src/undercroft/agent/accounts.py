"""The storage accounts that a vault allots as it goes, seen from this host: are they ready, do their names resolve here?

New names appear after the first registration and after the first backup. With Azure DNS the records follow by themselves;
with a custom DNS server or a hosts file an administrator adds them (article: *DNS records for blobs after the first backup*).
The messages here therefore name the records that are missing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TypeVar

from undercroft.errors import RefusedByNetworkRule, Unavailable

from .depot import STORAGE_VERSION, storage_refusal
from .messages import Account, Container, Grant, OpenBackup, OpenRestore
from .resolve import Dialer, LegFailed, Route, Target, looks_private, split_port
from .session import Patience, Session, advice

__all__ = ["await_accounts", "await_grant", "check_storage", "unreachable_hosts"]

PAUSE = 1.0
FULL_SECONDS = 3.0
"""A subnet that the service says is full is believed after this long; somebody may be freeing addresses."""
ADD_RECORD = (
    "With a custom DNS server or a hosts file, add an A record for it with the address shown in the private endpoint's DNS "
    "configuration (new accounts appear after the first registration and after the first backup), then run the command again."
)
Opened = TypeVar("Opened", OpenBackup, OpenRestore)


def await_accounts(session: Session, seconds: float) -> Container:
    """The container once no account is pending; ``Unavailable`` says what is when time is up."""
    patience = Patience(session.clock, seconds, session.stop)
    while True:
        container = session.call("fc1", "GET", "/v1/container", Container)
        if container.pending <= 0:
            return container
        if patience.spent > FULL_SECONDS and container.missing_addresses:
            raise subnet_full(container.missing_addresses)
        if not patience.wait(PAUSE):
            raise Unavailable(not_ready(container.pending, seconds), code="UserErrorAccountNotReady")


def subnet_full(missing: int) -> Unavailable:
    return Unavailable(
        f"The subnet of the private endpoint is full: {missing} more address{'es' if missing != 1 else ''} "
        f"{'are' if missing != 1 else 'is'} needed for the vault's storage accounts. Free addresses in that subnet, or make an "
        "endpoint in a larger one (a /25 is recommended), then run the command again.",
        code="UserErrorEndpointSubnetFull",
    )


def not_ready(pending: int, seconds: float) -> str:
    return (
        f"{pending} storage account{'s' if pending != 1 else ''} of the vault did not become ready on this endpoint within "
        f"{seconds:.0f} s. Look at the private endpoint: a full subnet leaves new accounts without an address, and a zone group "
        "that lacks the blob or queue zone leaves them without a record. Then run the command again."
    )


def await_grant(
    session: Session, service: str, opened: Opened, renew: str, reply: type[Opened], seconds: float
) -> Grant:
    """The grant of a backup or restore, asked for again every second while its account is not ready on this endpoint."""
    patience = Patience(session.clock, seconds, session.stop)
    while opened.grant is None:
        if patience.spent > FULL_SECONDS and opened.missing_addresses:
            raise subnet_full(opened.missing_addresses)
        if not patience.wait(PAUSE):
            raise Unavailable(not_ready(max(opened.pending, 1), seconds), code="UserErrorAccountNotReady")
        opened = session.call(service, "POST", renew, reply)
    return opened.grant


def unreachable_hosts(dialer: Dialer, accounts: Iterable[Account]) -> list[str]:
    """One warning per storage name that this host has to resolve and cannot."""
    warnings = []
    for account in accounts:
        for authority in (account.blob_host, account.queue_host):
            if authority is None or dialer.connector.proxy_for(split_port(authority)[0]):
                continue
            try:
                dialer.resolver.addresses(split_port(authority)[0])
            except LegFailed as error:
                warnings.append(
                    f"The name of the vault's account '{account.name}' does not resolve here. {error.message}. {ADD_RECORD}"
                )
    return warnings


def check_storage(session: Session, grant: Grant) -> tuple[Route, str]:
    """Asks the account that the bytes will go to for a blob that is not there. Its route, and a warning or an empty text;
    ``LegFailed`` names the DNS name and what failed about it, ``RefusedByNetworkRule`` says that it came by the wrong door."""
    path = f"/{grant.container}/packs/{'0' * 32}?{grant.sas.lstrip('?')}"
    try:
        answer = session.exchange.send(
            Target(grant.blob_host, None), "GET", path, (), {"x-ms-version": STORAGE_VERSION}
        )
    except LegFailed as error:
        hint = f" {advice(error) if error.proxy else ADD_RECORD}" if error.leg in ("name", "proxy") else ""
        raise LegFailed(
            f"The vault's storage account '{grant.account}' cannot be reached: {error.message}.{hint}",
            leg=error.leg,
            code=error.code if error.leg == "proxy" else "UserErrorStorageAccountUnreachable",
            proxy=error.proxy,
        ) from error
    route = answer.route
    refused = storage_refusal(answer, grant.account) if answer.status >= 400 else None
    if isinstance(refused, RefusedByNetworkRule):
        raise RefusedByNetworkRule(f"{refused.message} {ADD_RECORD}", target=grant.account) from refused
    if isinstance(refused, LegFailed):
        raise refused
    path = answer.door or ("private" if looks_private(route.address) else "public")
    vault_is_private = any(known.path == "private" for known in session.routes.values())
    if path == "private" or not vault_is_private:
        return replace(route, path=path), ""
    host = split_port(grant.blob_host)[0]
    found = f"the proxy {route.proxy} reached {host}" if route.proxy else f"{host} resolves to {route.address}"
    because = f"{found}, which is the public side"
    return (
        replace(route, path=path, because=because),
        f"The vault is reached privately, but {because}: the record is missing in {the_dns(route)}. It works only while the vault's "
        f"public access is enabled. {ADD_RECORD}",
    )


def the_dns(route: Route) -> str:
    return "the DNS of the proxy's network" if route.proxy else "this host's DNS"
