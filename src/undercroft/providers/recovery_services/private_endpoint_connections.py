"""Microsoft.RecoveryServices/vaults/privateEndpointConnections: the owner's side of private endpoints.

A PUT changes the state of a connection that an endpoint opened; it never opens one. Doors are open, or closed, when the answer
arrives: until they are, ``provisioningState`` is Pending (``az`` asks again until it is Succeeded).
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection

from undercroft.arm import resources
from undercroft.arm.call import Call, Reply, Route, parse
from undercroft.arm.paging import page_of
from undercroft.arm.resources import Resource
from undercroft.errors import InvalidParameter, NotFound
from undercroft.names import ResourceId
from undercroft.providers.collaborators import Collaborators, Echo, answer, enqueue_networks
from undercroft.vault import connections
from undercroft.vault.connections import ConnectionRecord, Status
from undercroft.vault.vaults import Vault
from undercroft.vnet import allocations, endpoints

__all__ = ["routes", "show"]

APPROVE = "Microsoft.RecoveryServices/vaults/privateEndpointConnectionsApproval/action"


class EndpointReference(Echo, frozen=True):
    pass


class StateBody(Echo, frozen=True):
    status: str
    description: str | None = None
    actions_required: str | None = None


class ConnectionProperties(Echo, frozen=True):
    private_link_service_connection_state: StateBody
    private_endpoint: EndpointReference | None = None
    group_ids: tuple[str, ...] | None = None
    provisioning_state: Any = None


class ConnectionBody(Echo, frozen=True):
    properties: ConnectionProperties
    location: Any = None
    tags: Any = None


def show(
    connection: Connection, vault_id: ResourceId, location: str | None, record: ConnectionRecord
) -> dict[str, Any]:
    approved = record.status is Status.APPROVED
    settled = all(one.ready == approved for one in allocations.of_owner(connection, record.endpoint_key))
    return {
        "id": str(vault_id.child("privateEndpointConnections", record.name)),
        "name": record.name,
        "type": "Microsoft.RecoveryServices/vaults/privateEndpointConnections",
        "location": location,
        "properties": {
            "provisioningState": "Succeeded" if settled else "Pending",
            "privateEndpoint": {"id": record.endpoint_id},
            "groupIds": [record.group],
            "privateLinkServiceConnectionState": {
                "status": record.status.value,
                "description": record.description,
                "actionsRequired": "None",
            },
        },
    }


def _vault(connection: Connection, vault_id: ResourceId | None) -> Resource[Vault]:
    assert vault_id is not None
    return resources.require(connection, vault_id, Vault)


def _one(connection: Connection, call: Call) -> tuple[ConnectionRecord, dict[str, Any]]:
    vault = _vault(connection, call.id.parent)
    record = connections.get(connection, call.id.key)
    if record is None:
        raise NotFound(
            f"The vault '{vault.id.name}' has no private endpoint connection '{call.id.name}'. A connection is opened by "
            "creating a private endpoint to the vault; its name is in the list of connections."
        )
    return record, show(connection, vault.id, vault.location, record)


def _check_same(body: ConnectionProperties, record: ConnectionRecord) -> None:
    """The body may repeat what the connection is, not change it."""
    endpoint = None if body.private_endpoint is None else body.private_endpoint.id
    if endpoint is not None and str(endpoint).lower() != record.endpoint_key:
        raise InvalidParameter(
            f"The connection '{record.name}' is of the private endpoint {record.endpoint_id}, not of {endpoint}.",
            code="PrivateEndpointConnectionMismatch",
            target="properties.privateEndpoint.id",
        )
    groups = body.group_ids
    if groups is not None and [one.lower() for one in groups] != [record.group.lower()]:
        raise InvalidParameter(
            f"The connection '{record.name}' is for {record.group}, not for {', '.join(groups)}.",
            code="PrivateEndpointConnectionMismatch",
            target="properties.groupIds",
        )


def _networks(parts: Collaborators, connection: Connection, record: ConnectionRecord) -> tuple[str, ...]:
    endpoint = endpoints.get(connection, record.endpoint_key)
    return () if endpoint is None else enqueue_networks(parts, connection, [endpoint.value.network_key])


def routes(parts: Collaborators) -> tuple[Route, ...]:
    async def get(call: Call) -> Reply:
        return Reply(200, await parts.database.read(lambda connection: _one(connection, call)[1]))

    async def every(call: Call) -> Reply:
        def read(connection: Connection) -> list[tuple[str, dict[str, Any]]]:
            vault = _vault(connection, call.id)
            found = connections.of_vault(connection, vault.key)
            return [
                (one.key, show(connection, vault.id, vault.location, one))
                for one in sorted(found, key=lambda one: one.key)
            ]

        return page_of(call, await parts.database.read(read))

    async def put(call: Call) -> Reply:
        properties = parse(call.body, ConnectionBody).properties
        wanted = properties.private_link_service_connection_state
        status = connections.parse_status(wanted.status)
        assert call.id.parent is not None
        await call.rights.require(APPROVE, call.id.parent)

        def write(connection: Connection) -> tuple[str, ...]:
            record, _ = _one(connection, call)
            _check_same(properties, record)
            connections.transition(connection, record, status, wanted.description)
            return _networks(parts, connection, record)

        keys = await parts.database.write(write)
        return await answer(parts, call, keys, status=200, show=lambda connection: _one(connection, call)[1])

    async def delete(call: Call) -> Reply:
        def write(connection: Connection) -> tuple[str, ...] | None:
            record = connections.get(connection, call.id.key)
            if record is None:
                return None
            connections.remove(connection, record)
            return _networks(parts, connection, record)

        keys = await parts.database.write(write)
        return Reply(204) if keys is None else await answer(parts, call, keys, status=200)

    base = (
        "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.RecoveryServices/vaults/{vault}"
        "/privateEndpointConnections"
    )
    action = "Microsoft.RecoveryServices/Vaults/privateEndpointConnections"
    return (
        Route("GET", base, f"{action}/read", every),
        Route("GET", f"{base}/{{connection}}", f"{action}/read", get),
        Route("PUT", f"{base}/{{connection}}", f"{action}/write", put),
        Route("DELETE", f"{base}/{{connection}}", f"{action}/delete", delete),
    )
