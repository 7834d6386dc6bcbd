"""Which fabric process serves a socket, and clearing up after a dead one, from outside any event loop: for the supervisor and ``down``."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from undercroft.errors import Unavailable
from undercroft.fabric.client import FabricClient
from undercroft.fabric.process import clear

__all__ = ["RunningFabric", "clear", "running_fabric"]


@dataclass(frozen=True, slots=True)
class RunningFabric:
    pid: int
    driver: str


def running_fabric(path: Path) -> RunningFabric | None:
    """None when nothing answers there."""

    async def ask() -> RunningFabric:
        client = await FabricClient.connect(path)
        try:
            return RunningFabric(client.pid, client.capabilities.driver)
        finally:
            await client.close()

    try:
        return asyncio.run(ask())
    except (Unavailable, OSError):
        return None
