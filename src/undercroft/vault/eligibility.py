"""Whether a vault may get a private endpoint (DESIGN section 6, rule 1; article, 'Create a Recovery Services vault').

A vault in which anything was ever protected, registered or attempted refuses its *first* endpoint, for life. One that has or
had an endpoint may always get more, up to twelve of each group.
"""

from __future__ import annotations

from sqlalchemy import Connection, func, select, update

from undercroft.errors import Conflict
from undercroft.state.schema import connections, vaults
from undercroft.vault.vaults import VaultRecord, taint

__all__ = ["ENDPOINT_LIMIT", "admit_endpoint", "check_endpoint", "taint"]

ENDPOINT_LIMIT = 12


def check_endpoint(connection: Connection, vault: VaultRecord, group: str) -> None:
    if vault.tainted and not vault.had_endpoint:
        raise Conflict(
            f"A private endpoint cannot be created for the vault '{vault.name}': it was used before it had one "
            f"({vault.taint_reason}, {vault.tainted_at}). Private endpoints are only possible for vaults in which nothing was "
            "ever protected, registered, or attempted, and this cannot be undone. Create a new vault, and its private endpoint "
            "before anything else.",
            code="UserErrorPrivateEndpointNotAllowedOnUsedVault",
            target=vault.id,
        )
    existing = connection.execute(
        select(func.count())
        .select_from(connections)
        .where(connections.c.vault_key == vault.key, func.lower(connections.c.group_id) == group.lower())
    ).scalar_one()
    if existing >= ENDPOINT_LIMIT:
        raise Conflict(
            f"The vault '{vault.name}' has {existing} private endpoints for {group}; {ENDPOINT_LIMIT} is the limit. Remove one "
            "that is no longer used.",
            code="UserErrorPrivateEndpointLimitReached",
            target=vault.id,
        )


def admit_endpoint(connection: Connection, vault: VaultRecord, group: str) -> None:
    """``check_endpoint``, and from now on the vault has had an endpoint."""
    check_endpoint(connection, vault, group)
    connection.execute(update(vaults).where(vaults.c.key == vault.key).values(had_endpoint=True))
