"""Long-running operations: a row that outlives the process, polled by the client until it is final.

    InProgress ──> Succeeded | Failed | Canceled          (final: nothing changes them)

The handler that cannot finish inside the request creates one in its transaction and answers ``accepted``; whoever does the work
calls ``complete`` or ``fail``. Rules of the real clients that this file keeps: ``Retry-After`` is an integer of 1 or more (the SDK
reads 0 as thirty seconds and crashes at a fraction); the status document has id, name, status, startTime, endTime, error; the
same id answers under every spelling of the collection (``operations``, ``operationStatus``, ``operationResults`` …).
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import Connection, insert, select, update

from undercroft.arm import errors
from undercroft.arm.call import Call, Handler, Reply, Route
from undercroft.clock import timestamp
from undercroft.errors import InvalidParameter, NotFound
from undercroft.names import ResourceId
from undercroft.state.database import Database
from undercroft.state.schema import operations

__all__ = ["IN_PROGRESS", "Operation", "accepted", "complete", "create", "fail", "get", "routes", "unfinished"]

IN_PROGRESS, SUCCEEDED, FAILED = "InProgress", "Succeeded", "Failed"
_STATUS = ("operations", "operationStatus", "operationsStatus", "operationStatuses")
_RESULTS = ("operationResults",)


@dataclass(frozen=True, slots=True)
class Operation:
    id: str
    resource_key: str
    kind: str
    status: str
    started: str
    ended: str | None = None
    error_code: str | None = None
    error_message: str | None = None
    result: bytes | None = None


def create(connection: Connection, resource_key: str, kind: str, now: datetime) -> Operation:
    """``kind`` says what is done (``DeleteResourceGroup``), so that a restart can find what to finish."""
    operation = Operation(str(uuid.uuid4()), resource_key, kind, IN_PROGRESS, timestamp(now))
    connection.execute(
        insert(operations).values(
            id=operation.id, resource_key=resource_key, kind=kind, status=IN_PROGRESS, started=operation.started
        )
    )
    return operation


def complete(connection: Connection, id: str, now: datetime, result: Any = None) -> None:
    """``result`` is what a poll of ``operationResults`` answers, and ``properties`` of the status document."""
    encoded = None if result is None else msgspec.json.encode(result)
    _finish(connection, id, {"status": SUCCEEDED, "ended": timestamp(now), "result": encoded})


def fail(connection: Connection, id: str, code: str, message: str, now: datetime) -> None:
    _finish(connection, id, {"status": FAILED, "ended": timestamp(now), "error_code": code, "error_message": message})


def _finish(connection: Connection, id: str, values: Mapping[str, Any]) -> None:
    unfinished_one = (operations.c.id == id) & (operations.c.status == IN_PROGRESS)
    connection.execute(update(operations).where(unfinished_one).values(dict(values)))


def get(connection: Connection, id: str) -> Operation | None:
    row = connection.execute(select(operations).where(operations.c.id == id.lower())).first()
    return None if row is None else Operation(**dict(row._mapping))


def unfinished(connection: Connection, kind: str) -> tuple[Operation, ...]:
    """What a restart has to take up again."""
    query = select(operations).where(operations.c.kind == kind, operations.c.status == IN_PROGRESS)
    return tuple(Operation(**dict(row._mapping)) for row in connection.execute(query.order_by(operations.c.started)))


def accepted(
    call: Call,
    operation: Operation,
    *,
    namespace: str,
    location: str,
    body: Any = None,
    status: int = 202,
    retry_after: int = 1,
    with_location: bool = True,
) -> Reply:
    """201 or 202 with the headers by which clients poll. A PUT answers its resource as ``body``; 202 without one has ``null``."""
    base = f"{call.base_url}/subscriptions/{call.id.subscription}/providers/{namespace}/locations/{location}"
    query = f"?api-version={call.api_version}"
    headers = {
        "Azure-AsyncOperation": f"{base}/operationStatus/{operation.id}{query}",
        "Retry-After": str(max(1, retry_after)),
    }
    if with_location:
        headers["Location"] = f"{base}/operationResults/{operation.id}{query}"
    return Reply(status, body, headers)


def routes(database: Database, namespaces: Iterable[str]) -> tuple[Route, ...]:
    """The polling endpoints, for each namespace whose handlers use ``accepted``."""
    found: list[Route] = []
    for namespace in namespaces:
        base = f"/subscriptions/{{subscription}}/providers/{namespace}/locations/{{location}}"
        found += [Route("GET", f"{base}/{name}/{{operation}}", None, _status(database)) for name in _STATUS]
        found += [Route("GET", f"{base}/{name}/{{operation}}", None, _results(database)) for name in _RESULTS]
    return tuple(found)


async def _visible(database: Database, call: Call) -> Operation:
    """The operation, if the caller may read the resource it is about. To others it does not exist."""
    id = call.parameters["operation"]
    operation = database.look(lambda connection: get(connection, id))
    if operation is not None:
        resource = ResourceId.parse(operation.resource_key)
        right = resource.type
        if resource.namespace is None:
            right = "Microsoft.Resources/subscriptions/resourceGroups"
        same = (resource.subscription or "") == (call.id.subscription or "").lower()
        if same and await call.rights.may(f"{right}/read", resource):
            return operation
    raise NotFound(f"The operation '{id[:80]}' was not found.", code="OperationNotFound")


def _status(database: Database) -> Handler:
    async def status(call: Call) -> Reply:
        operation = await _visible(database, call)
        shown: dict[str, Any] = {
            "id": call.path,
            "name": operation.id,
            "status": operation.status,
            "startTime": operation.started,
        }
        if operation.ended is not None:
            shown["endTime"] = operation.ended
        if operation.status == FAILED:
            shown |= errors.body(operation.error_code or "InternalServerError", operation.error_message or "")
        if operation.result is not None:
            shown["properties"] = msgspec.Raw(operation.result)
        headers = {"Retry-After": "1"} if operation.status == IN_PROGRESS else {}
        return Reply(200, shown, headers)

    return status


def _results(database: Database) -> Handler:
    async def results(call: Call) -> Reply:
        operation = await _visible(database, call)
        if operation.status == IN_PROGRESS:
            here = f"{call.base_url}{call.path}?api-version={call.api_version}"
            return Reply(202, None, {"Location": here, "Retry-After": "1"})
        if operation.status == FAILED:
            raise InvalidParameter(operation.error_message or "The operation failed.", code=operation.error_code)
        if operation.result is None:
            return Reply(204)
        return Reply(200, msgspec.Raw(operation.result))

    return results
