"""Whether a vault may get a private endpoint (DESIGN section 6, rule 1; article, 'Create a Recovery Services vault').

A vault in which anything was ever protected, registered or attempted refuses its *first* endpoint, for life. One that has or
had an approved ``AzureBackup`` endpoint may always get more: up to twelve approved of each group.

The first endpoint is the first that is *approved*. Anybody who may create endpoints anywhere can ask for a connection, so a
request that nobody approved proves nothing (it does not exempt the vault), takes no place among the twelve, and is limited by
itself: twelve unapproved connections of a group for each subscription that asks. What was asked for while the vault was new
and is to be approved after it was used is refused then. A secondary endpoint does not exempt the vault either: the article
wants the vault's own region enabled before anything is protected.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, func, select

from undercroft.errors import Conflict
from undercroft.names import ResourceId
from undercroft.state.schema import connections
from undercroft.vault.vaults import VaultRecord, taint

__all__ = ["ENDPOINT_LIMIT", "REQUEST_LIMIT", "check_approval", "check_request", "taint"]

ENDPOINT_LIMIT = 12
"""Approved endpoints of one group (article, 'Cross region restore …', note; AD concept page)."""
REQUEST_LIMIT = 12
"""Connections of one group that are not approved, of one subscription. Ours: Azure's is not documented."""


def check_request(connection: Connection, vault: VaultRecord, group: str, endpoint_id: str, *, approved: bool) -> None:
    """Whether an endpoint may ask for a connection, or (``approved``) open one at once."""
    if approved:
        check_approval(connection, vault, group)
        return
    _check_unused(vault)
    subscription = ResourceId.parse(endpoint_id).subscription or ""
    asked = connections.c.endpoint_key.startswith(f"/subscriptions/{subscription.lower()}/", autoescape=True)
    waiting = _count(connection, vault, group, connections.c.status != "Approved", asked)
    if waiting >= REQUEST_LIMIT:
        raise Conflict(
            f"The subscription {subscription} has {waiting} private endpoints for {group} of the vault '{vault.name}' that are "
            f"not approved; {REQUEST_LIMIT} is the limit. Delete those that were rejected or disconnected, or have the vault's "
            "owner decide on those that wait.",
            code="UserErrorPrivateEndpointRequestLimitReached",
            target=vault.id,
        )


def check_approval(connection: Connection, vault: VaultRecord, group: str) -> None:
    """Whether one more connection of the group may be approved."""
    _check_unused(vault)
    existing = _count(connection, vault, group, connections.c.status == "Approved")
    if existing >= ENDPOINT_LIMIT:
        raise Conflict(
            f"The vault '{vault.name}' has {existing} private endpoints for {group}; {ENDPOINT_LIMIT} is the limit. Remove one "
            "that is no longer used.",
            code="UserErrorPrivateEndpointLimitReached",
            target=vault.id,
        )


def _check_unused(vault: VaultRecord) -> None:
    if vault.tainted and not vault.had_endpoint:
        raise Conflict(
            f"A private endpoint cannot be created for the vault '{vault.name}': it was used before it had one "
            f"({vault.taint_reason}, {vault.tainted_at}). Private endpoints are only possible for vaults in which nothing was "
            "ever protected, registered, or attempted, and this cannot be undone. Create a new vault, and its private endpoint "
            "before anything else.",
            code="UserErrorPrivateEndpointNotAllowedOnUsedVault",
            target=vault.id,
        )


def _count(connection: Connection, vault: VaultRecord, group: str, *conditions: ColumnElement[bool]) -> int:
    query = select(func.count()).select_from(connections).where(connections.c.vault_key == vault.key)
    query = query.where(func.lower(connections.c.group_id) == group.lower(), *conditions)
    return connection.execute(query).scalar_one()
