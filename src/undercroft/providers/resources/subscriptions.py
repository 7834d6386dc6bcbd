"""Tenants, subscriptions and their locations."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, select

from undercroft.arm.call import Call, Reply, Route
from undercroft.arm.paging import page_of
from undercroft.arm.resources import subscription_missing
from undercroft.identity.authorization import Authorization
from undercroft.names import Region, regions
from undercroft.state.database import Database
from undercroft.state.schema import subscriptions

__all__ = ["routes"]

_READ = "Microsoft.Resources/subscriptions/read"
_READ_GROUPS = "Microsoft.Resources/subscriptions/resourceGroups/read"


def _rows(connection: Connection) -> dict[str, str]:
    query = select(subscriptions.c.id, subscriptions.c.display_name).order_by(subscriptions.c.id)
    return {row.id: row.display_name for row in connection.execute(query)}


class _Subscriptions:
    def __init__(self, database: Database, authorization: Authorization, tenant_id: str) -> None:
        self._database = database
        self._authorization = authorization
        self._tenant = tenant_id

    async def list(self, call: Call) -> Reply:
        """Those that the caller may read, or holds a role inside of: az needs to find one to log in."""
        visible: list[tuple[str, Any]] = []
        for id, name in (await self._database.read(_rows)).items():
            if await self._sees(call, id):
                visible.append((id, self._shown(id, name)))
        return page_of(call, visible)

    async def get(self, call: Call) -> Reply:
        wanted = (call.id.subscription or "").lower()
        name = (await self._database.read(_rows)).get(wanted)
        if name is None or not await self._sees(call, wanted):
            raise subscription_missing(wanted)
        return Reply(200, self._shown(wanted, name))

    async def _sees(self, call: Call, id: str) -> bool:
        scope = f"/subscriptions/{id}"
        allows = self._authorization.allows_below
        caller = call.rights.object_id
        return await allows(caller, _READ, scope) or await allows(caller, _READ_GROUPS, scope)

    async def tenants(self, call: Call) -> Reply:
        shown = {
            "id": f"/tenants/{self._tenant}",
            "tenantId": self._tenant,
            "displayName": "Undercroft",
            "tenantCategory": "Home",
            "tenantType": "AAD",
        }
        return page_of(call, [(self._tenant, shown)])

    def _shown(self, id: str, name: str) -> dict[str, Any]:
        return {
            "id": f"/subscriptions/{id}",
            "subscriptionId": id,
            "tenantId": self._tenant,
            "displayName": name,
            "state": "Enabled",
            "subscriptionPolicies": {
                "locationPlacementId": "Public_2014-09-01",
                "quotaId": "Undercroft",
                "spendingLimit": "Off",
            },
            "authorizationSource": "RoleBased",
            "managedByTenants": [],
        }


async def _locations(call: Call) -> Reply:
    subscription = call.id.subscription or ""
    return page_of(call, [(name, _location(subscription, region)) for name, region in sorted(regions().items())])


def _location(subscription: str, region: Region) -> dict[str, Any]:
    def id_of(name: str) -> str:
        return f"/subscriptions/{subscription}/locations/{name}"

    paired = [{"name": region.pair, "id": id_of(region.pair)}] if region.pair else []
    return {
        "id": id_of(region.name),
        "name": region.name,
        "type": "Region",
        "displayName": region.display_name,
        "regionalDisplayName": region.display_name,
        "metadata": {"regionType": "Physical", "regionCategory": "Recommended", "pairedRegion": paired},
    }


def routes(database: Database, authorization: Authorization, tenant_id: str) -> tuple[Route, ...]:
    here = _Subscriptions(database, authorization, tenant_id)
    return (
        Route("GET", "/tenants", None, here.tenants),
        Route("GET", "/subscriptions", None, here.list),
        Route("GET", "/subscriptions/{subscription}", None, here.get),
        Route(
            "GET",
            "/subscriptions/{subscription}/locations",
            None,
            _locations,
            frozenset({"includeExtendedLocations"}),
        ),
    )
