"""Resource providers: which namespaces and types this deployment can do. Registering one that is built changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from undercroft.arm.call import Call, Reply, Route
from undercroft.arm.paging import page_of
from undercroft.errors import CapabilityMissing, NotFound
from undercroft.names import regions

__all__ = ["routes"]

_API_VERSIONS = ("2026-01-01", "2024-11-01", "2023-01-01", "2021-07-01")
"""Every date is accepted; these are what a client that wants to choose one is offered."""


class _Namespaces:
    def __init__(self, types: Mapping[str, tuple[str, ...]]) -> None:
        self._types = {"Microsoft.Resources": ("resourceGroups", "subscriptions", "tenants"), **types}
        self._spelling = {namespace.lower(): namespace for namespace in self._types}
        self._locations = [region.display_name for _, region in sorted(regions().items())]

    def _find(self, call: Call) -> str:
        wanted = call.parameters["namespace"]
        namespace = self._spelling.get(wanted.lower())
        if namespace is None:
            raise NotFound(
                f"The resource namespace '{wanted}' is invalid. Namespaces here: {', '.join(sorted(self._types))}.",
                code="InvalidResourceNamespace",
            )
        return namespace

    async def list(self, call: Call) -> Reply:
        return page_of(call, [(namespace, self._shown(call, namespace)) for namespace in sorted(self._types)])

    async def get(self, call: Call) -> Reply:
        return Reply(200, self._shown(call, self._find(call)))

    async def register(self, call: Call) -> Reply:
        namespace = self._find(call)
        await call.rights.require(f"{namespace}/register/action", call.id)
        return Reply(200, self._shown(call, namespace))

    async def unregister(self, call: Call) -> Reply:
        raise CapabilityMissing(f"The provider '{self._find(call)}' is built in and cannot be unregistered.")

    def _shown(self, call: Call, namespace: str) -> dict[str, Any]:
        return {
            "id": f"/subscriptions/{call.id.subscription}/providers/{namespace}",
            "namespace": namespace,
            "registrationState": "Registered",
            "registrationPolicy": "RegistrationFree",
            "resourceTypes": [
                {
                    "resourceType": name,
                    "locations": self._locations,
                    "apiVersions": _API_VERSIONS,
                    "defaultApiVersion": _API_VERSIONS[0],
                    "capabilities": "None",
                }
                for name in self._types[namespace]
            ],
        }


def routes(types: Mapping[str, tuple[str, ...]]) -> tuple[Route, ...]:
    here = _Namespaces(types)
    one = "/subscriptions/{subscription}/providers/{namespace}"
    return (
        Route("GET", "/subscriptions/{subscription}/providers", None, here.list, frozenset({"$expand"})),
        Route("GET", one, None, here.get, frozenset({"$expand"})),
        Route("POST", f"{one}/register", None, here.register),
        Route("POST", f"{one}/unregister", None, here.unregister),
    )
