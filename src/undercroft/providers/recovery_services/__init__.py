"""Microsoft.RecoveryServices: vaults, their side of private endpoints, their credentials, and what is in them.

One file per resource type: wire structs at the top, handlers below, routes at the bottom. What a vault may be asked to promise
and cannot keep yet (immutability, own keys, other regions) is refused by name; what is shown under ``backup…`` is read from the
vault's tables. Types that are not here are refused by name by the route table.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from undercroft.arm.call import Route
from undercroft.names import ResourceId
from undercroft.providers.collaborators import Collaborators, deleter
from undercroft.providers.recovery_services import (
    backup_jobs,
    certificates,
    private_endpoint_connections,
    private_link_resources,
    protected_items,
    protection_containers,
    vault_configuration,
    vaults,
)

__all__ = ["deleters", "routes"]


def routes(parts: Collaborators) -> tuple[Route, ...]:
    return (
        *vaults.routes(parts),
        *private_endpoint_connections.routes(parts),
        *private_link_resources.routes(parts),
        *certificates.routes(parts),
        *vault_configuration.routes(parts),
        *protection_containers.routes(parts),
        *protected_items.routes(parts),
        *backup_jobs.routes(parts),
    )


def deleters(parts: Collaborators) -> Mapping[str, Callable[[ResourceId], Awaitable[None]]]:
    """For the deletion of a group; after private endpoints, which hold their vaults."""
    return {"Microsoft.RecoveryServices/vaults": deleter(parts, vaults.remove)}
