"""Deleting a resource group with everything in it.

The group is marked *Deleting* (it takes no new resources then) in the transaction that creates the long-running operation. Then the
deleters run, one type after the other, in the order of the mapping: what refers to others before what is referred to. When
nothing is left the group goes too. A deleter that refuses stops the deletion: the group is *Succeeded* again, without
what was deleted before, and the operation failed with the refusal. A restart takes unfinished deletions up again (``resume``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias

import msgspec
import structlog

from undercroft.arm import operations, resources
from undercroft.arm.call import Call, Reply
from undercroft.arm.operations import Operation
from undercroft.clock import Clock
from undercroft.errors import Conflict, UndercroftError
from undercroft.identity import assignments
from undercroft.identity.authorization import Authorization
from undercroft.names import ResourceId
from undercroft.state.database import Connection, Database

__all__ = ["GROUP_TYPE", "KIND", "Deleter", "Deleters", "Group", "GroupDeletion"]

GROUP_TYPE = "microsoft.resources/resourcegroups"
KIND = "DeleteResourceGroup"
_PATIENCE = 5.0
"""Seconds that a DELETE waits for the end, before it answers 202."""

_log = structlog.get_logger("undercroft.providers.resources")

Deleter: TypeAlias = Callable[[ResourceId], Awaitable[None]]
"""Delete this resource and what is inside it, for good. It must be idempotent: a restart calls it again. An ``UndercroftError``
says why it cannot be done."""

Deleters: TypeAlias = Mapping[str, Deleter]
"""By resource type (any case), in the order in which types are deleted."""


class Group(msgspec.Struct, frozen=True):
    """The body of a resource group's row."""

    managed_by: str | None = None


class GroupDeletion:
    def __init__(
        self,
        database: Database,
        clock: Clock,
        authorization: Authorization,
        deleters: Deleters,
        patience: float = _PATIENCE,
    ) -> None:
        self._database = database
        self._clock = clock
        self._authorization = authorization
        self._deleters = {type.lower(): deleter for type, deleter in deleters.items()}
        self._patience = patience
        self._running: dict[str, asyncio.Task[UndercroftError | None]] = {}

    async def delete(self, call: Call) -> Reply:
        group = ResourceId(call.id.subscription, call.id.group, None, (), ())
        found = await self._database.read(lambda connection: _members(connection, group))
        for member in found:  # deleting a group is no way round the rights on what is in it
            await call.rights.require(f"{member.type}/delete", member)
        operation, location = await self._database.write(lambda connection: self._begin(connection, group))
        task = self._start(operation, group)
        done, _ = await asyncio.wait({task}, timeout=self._patience)
        if not done:
            return operations.accepted(call, operation, namespace="Microsoft.Resources", location=location)
        refusal = task.result()
        if refusal is not None:
            raise refusal
        return Reply(200)

    async def resume(self) -> None:
        """Take up what a killed process left. Called once at start, when the deleters can work."""
        for operation in await self._database.read(lambda connection: operations.unfinished(connection, KIND)):
            self._start(operation, ResourceId.parse(operation.resource_key))

    async def close(self) -> None:
        """Stop waiting work; the next start takes it up."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, connection: Connection, group: ResourceId) -> tuple[Operation, str]:
        found = resources.require(connection, group, Group)
        if found.provisioning_state == resources.DELETING:
            for operation in operations.unfinished(connection, KIND):
                if operation.resource_key == group.key:
                    return operation, found.location or "global"
        resources.set_state(connection, group.key, resources.DELETING, self._clock.now())
        return operations.create(connection, group.key, KIND, self._clock.now()), found.location or "global"

    def _start(self, operation: Operation, group: ResourceId) -> asyncio.Task[UndercroftError | None]:
        task = self._running.get(operation.id)
        if task is None:
            task = asyncio.create_task(self._run(operation, group), name=f"delete {group.key}")
            self._running[operation.id] = task
            task.add_done_callback(lambda _task: self._running.pop(operation.id, None))
        return task

    async def _run(self, operation: Operation, group: ResourceId) -> UndercroftError | None:
        """The outermost layer of this background work: what goes wrong is recorded in the operation."""
        try:
            await self._empty(group)
            await self._database.write(lambda connection: self._finish(connection, operation, group))
            self._authorization.changed()
            return None
        except UndercroftError as error:
            refusal = error
        except Exception as error:
            _log.error("group deletion failed", group=group.key, operation=operation.id, exc_info=error)
            refusal = UndercroftError(
                f"The resource group could not be deleted because of an error in the service (operation '{operation.id}').",
                code="InternalServerError",
            )
        text = f"Deletion of resource group '{group.group}' failed: {refusal.message}"
        await self._database.write(lambda connection: self._give_up(connection, operation, group, refusal.code, text))
        return refusal

    async def _empty(self, group: ResourceId) -> None:
        for type, deleter in self._deleters.items():
            for member in await self._database.read(lambda connection: _members(connection, group)):
                if member.type.lower() == type:
                    await deleter(member)

    def _finish(self, connection: Connection, operation: Operation, group: ResourceId) -> None:
        left = _members(connection, group)
        if left:
            raise Conflict(
                f"The resource group '{group.group}' still holds {', '.join(str(id) for id in left[:5])}, which cannot be deleted "
                "with it. Delete these first.",
                code="ResourceGroupDeletionBlocked",
            )
        resources.delete(connection, group)
        assignments.remove_within(connection, group.key)
        operations.complete(connection, operation.id, self._clock.now())

    def _give_up(
        self, connection: Connection, operation: Operation, group: ResourceId, code: str, message: str
    ) -> None:
        resources.set_state(connection, group.key, "Succeeded", self._clock.now())
        operations.fail(connection, operation.id, code, message, self._clock.now())


def _members(connection: Connection, group: ResourceId) -> tuple[ResourceId, ...]:
    return resources.inside(connection, group)
