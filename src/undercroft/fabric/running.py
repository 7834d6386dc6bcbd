"""Which fabric process serves a socket, asked from outside any event loop: for the supervisor and ``down``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from undercroft.errors import Unavailable

__all__ = ["RunningFabric", "running_fabric"]


@dataclass(frozen=True, slots=True)
class RunningFabric:
    pid: int
    driver: str


def running_fabric(path: Path) -> RunningFabric | None:
    """None when nothing answers there."""
    if not path.exists():
        return None
    # The supervisor stays as long as the service, and seldom needs them: they are half of its memory.
    import asyncio

    from undercroft.fabric.client import FabricClient

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
