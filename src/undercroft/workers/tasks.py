"""Carries out tasks: claims those that are due, under leases, and repeats what fails with growing pauses."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta

import structlog

from undercroft.clock import Clock, Steps
from undercroft.errors import UndercroftError
from undercroft.state import tasks
from undercroft.state.database import Database
from undercroft.state.tasks import Task

__all__ = ["TaskRunner"]

_log = structlog.get_logger(__name__)
_LEASE = timedelta(seconds=30)
_POLL_SECONDS = 1.0
_AT_ONCE = 8
_STEP = timedelta(seconds=2)
"""Less is a clock that is being disciplined."""


class TaskRunner:
    """``handlers``: kind to what to do about a key. A handler is idempotent; returning means done, raising means again.

    ``start`` in the event loop; ``close`` lets running handlers end, and gives back what was not begun.
    """

    def __init__(
        self, database: Database, clock: Clock, handlers: Mapping[str, Callable[[str], Awaitable[None]]]
    ) -> None:
        self._database = database
        self._clock = clock
        self._handlers = dict(handlers)
        self._steps = Steps(clock)
        self._owner = str(uuid.uuid4())
        self._due = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()
        self._loop_task: asyncio.Task[None] | None = None
        self._unhook: Callable[[], None] = lambda: None
        self._closing = False

    def wake(self) -> None:
        """Look for tasks now: another process of this node has left one."""
        self._due.set()

    async def start(self) -> None:
        loop = asyncio.get_running_loop()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: this process is ending
                loop.call_soon_threadsafe(self._due.set)

        self._unhook = tasks.on_enqueue(self._database.engine, wake)
        self._loop_task = asyncio.create_task(self._run(), name="tasks")

    async def close(self) -> None:
        self._closing = True
        self._due.set()
        self._unhook()
        if self._loop_task is not None:
            await self._loop_task
        if self._running:
            await asyncio.wait(self._running, timeout=_LEASE.total_seconds())
        await self._database.write(lambda connection: tasks.release(connection, self._owner))

    async def _run(self) -> None:
        while not self._closing:
            self._due.clear()
            if abs(step := self._steps.since_last()) > _STEP:
                _log.warning("the clock was set", seconds=round(step.total_seconds(), 1))
            claimed = await self._claim(_AT_ONCE - len(self._running))
            for task in claimed:
                running = asyncio.create_task(self._carry_out(task), name=f"task:{task.kind}")
                self._running.add(running)
                running.add_done_callback(self._ended)
            if not claimed:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_POLL_SECONDS):
                        await self._due.wait()

    def _ended(self, running: asyncio.Task[None]) -> None:
        self._running.discard(running)
        self._due.set()

    async def _claim(self, limit: int) -> tuple[Task, ...]:
        if limit <= 0 or not self._handlers:
            return ()
        try:
            return await self._database.write(
                lambda connection: tasks.claim(
                    connection, self._owner, self._clock.now(), _LEASE, self._handlers.keys(), limit
                )
            )
        except Exception as error:  # the loop must outlive a full or locked database
            _log.error("tasks not claimed", error=str(error))
            return ()

    async def _carry_out(self, task: Task) -> None:
        try:
            await self._handlers[task.kind](task.key)
        except Exception as error:  # the outermost layer of this plane: record, and try again later
            problem = error.message if isinstance(error, UndercroftError) else f"{type(error).__name__}: {error}"
            unexpected = not isinstance(error, UndercroftError)
            _log.warning("task failed", kind=task.kind, key=task.key, error=problem, exc_info=unexpected)
            await self._finish(lambda connection, now: tasks.fail(connection, task, self._owner, problem, now))
        else:
            await self._finish(lambda connection, now: tasks.done(connection, task, self._owner, now))

    async def _finish(self, write: Callable[..., object]) -> None:
        try:
            await self._database.write(lambda connection: write(connection, self._clock.now()))
        except Exception as error:  # the lease runs out and the task is carried out again
            _log.error("task not finished", error=str(error))
