"""Calls of ARM without a process around each: many at once, each timed. The token is got before any clock starts."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

from bench.peers import Failed

__all__ = ["ArmClient", "connected", "each"]

API_VERSION = "2026-01-01"
T = TypeVar("T")


class ArmClient:
    """One resource group of a deployment."""

    def __init__(self, session: aiohttp.ClientSession, base: str, group: str) -> None:
        self._session = session
        self._base = base
        self.group = group
        self.took: list[float] = []
        """Seconds of every call since it was emptied."""

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        """The answer's body. A change that the service finishes later is waited for."""
        begun = time.monotonic()
        url = path if path.startswith("https:") else f"{self._base}{path}?api-version={API_VERSION}"
        async with self._session.request(method, url, json=body) as answer:
            text = await answer.read()
            if answer.status >= 400:
                raise Failed(f"{method} {path}: {answer.status} {text.decode('utf-8', 'replace')[:500]}")
            later = answer.headers.get("Azure-AsyncOperation")
        self.took.append(time.monotonic() - begun)
        while later:
            await asyncio.sleep(0.5)
            async with self._session.get(later) as answer:
                status = json.loads(await answer.read()).get("status")
            if status == "Succeeded":
                break
            if status != "InProgress":
                raise Failed(f"{method} {path}: the operation is {status}")
        return json.loads(text) if text.strip() else None

    async def put(self, path: str, location: str | None, properties: dict[str, Any], **more: Any) -> Any:
        body = {"properties": properties, **more}
        if location is not None:
            body["location"] = location
        return await self.call("PUT", f"{self.group}/providers/{path}", body)


@asynccontextmanager
async def connected(home: Path, group: str, *, connections: int = 8) -> AsyncIterator[ArmClient]:
    said = json.loads((home / "connection.json").read_text("utf-8"))
    base = said["resourceManager"].rstrip("/")
    context = ssl.create_default_context(cafile=said["caBundle"])
    form = {
        "grant_type": "client_credentials",
        "client_id": said["clientId"],
        "client_secret": said["clientSecret"],
        "scope": f"{base}/.default",
    }
    connector = aiohttp.TCPConnector(ssl=context, limit=connections)
    async with aiohttp.ClientSession(connector=connector) as session:
        async with session.post(f"{base}/{said['tenantId']}/oauth2/v2.0/token", data=form) as answer:
            token = (await answer.json())["access_token"]
        session.headers["Authorization"] = f"Bearer {token}"
        subscription = f"/subscriptions/{said['subscriptionId']}"
        client = ArmClient(session, base, f"{subscription}/resourceGroups/{group}")
        await client.call("PUT", client.group, {"location": "westeurope"})
        yield client


async def each(items: Sequence[T], work: Callable[[T], Awaitable[Any]], at_once: int) -> None:
    """Every item once, ``at_once`` of them at a time; the first failure ends it."""
    waiting = iter(items)

    async def worker() -> None:
        for item in waiting:
            await work(item)

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(worker())
