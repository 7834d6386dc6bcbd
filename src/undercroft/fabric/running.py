"""Which fabric process serves a socket, asked from outside any event loop: for the supervisor, and for ``down``."""

from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from undercroft.errors import Unavailable
from undercroft.fabric.client import FabricClient
from undercroft.fabric.messages import reachable

__all__ = ["RunningFabric", "running_fabric"]


@dataclass(frozen=True, slots=True)
class RunningFabric:
    pid: int
    driver: str


def running_fabric(path: Path) -> RunningFabric | None:
    """None when nothing answers there. The pid is the kernel's word (SO_PEERCRED: who called listen), not a file's."""

    async def ask() -> str:
        client = await FabricClient.connect(path)
        try:
            return client.capabilities.driver
        finally:
            await client.close()

    try:
        driver = asyncio.run(ask())
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection, reachable(path) as name:
            connection.connect(name)
            pid, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    except (Unavailable, OSError):
        return None
    return RunningFabric(pid, driver)
