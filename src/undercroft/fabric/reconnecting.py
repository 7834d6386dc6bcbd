"""A ``Fabric`` that outlives fabric processes: around ``FabricClient``, connecting anew when its process was replaced."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import IPv4Address
from pathlib import Path

from undercroft.errors import Unavailable
from undercroft.fabric.client import FabricClient
from undercroft.fabric.specification import Capabilities, Drift, Execution, NetworkSpecification, Transport

__all__ = ["ReconnectingFabric"]


class ReconnectingFabric:
    """A call made while no fabric process answers is ``Unavailable``, and so is one that the process dies under; the next
    call tries to connect again. Nothing is repeated by itself: whoever called knows whether that is right."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._client: FabricClient | None = None
        self._connecting = asyncio.Lock()
        self._capabilities: Capabilities | None = None

    async def connect(self) -> FabricClient:
        """The client of the running process. ``Unavailable`` when there is none."""
        async with self._connecting:
            if self._client is None or not self._client.connected:
                self._client = await FabricClient.connect(self._path)
                self._capabilities = self._client.capabilities
            return self._client

    @property
    def capabilities(self) -> Capabilities:
        if self._capabilities is None:
            raise Unavailable("The fabric process has not been reached yet.")
        return self._capabilities

    async def apply(self, network: NetworkSpecification) -> tuple[Drift, ...]:
        return await (await self.connect()).apply(network)

    async def remove(self, network: str) -> None:
        await (await self.connect()).remove(network)

    async def networks(self) -> frozenset[str]:
        return await (await self.connect()).networks()

    async def cookies(self) -> dict[str, int]:
        return await (await self.connect()).cookies()

    async def listen(self, network: str, address: IPv4Address | None, port: int, transport: Transport) -> socket.socket:
        return await (await self.connect()).listen(network, address, port, transport)

    async def execute(self, execution: Execution) -> int:
        return await (await self.connect()).execute(execution)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()
