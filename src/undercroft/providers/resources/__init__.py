"""Microsoft.Resources: tenants, subscriptions, locations, resource groups, providers, and the list of all resources.

A *resource group* is a row like any resource; deleting it deletes what is in it, type by type in the order that the composition root
gives (``deletion``). A *provider* is registered by being built: registering changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from undercroft.arm.call import Route
from undercroft.clock import Clock
from undercroft.identity.authorization import Authorization
from undercroft.providers.resources import groups, inventory, namespaces, subscriptions
from undercroft.providers.resources.deletion import Deleter, Deleters, GroupDeletion
from undercroft.state.database import Database

__all__ = ["Deleter", "Deleters", "GroupDeletion", "routes"]


def routes(
    database: Database,
    clock: Clock,
    authorization: Authorization,
    tenant_id: str,
    deletion: GroupDeletion,
    types: Mapping[str, tuple[str, ...]],
) -> tuple[Route, ...]:
    """``types``: what the other providers can do (``arm.routes.resource_types`` of their routes)."""
    return (
        *subscriptions.routes(database, authorization, tenant_id),
        *groups.routes(database, clock, deletion),
        *inventory.routes(database),
        *namespaces.routes(types),
    )
