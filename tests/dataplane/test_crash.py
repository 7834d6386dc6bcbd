"""The service killed in the middle: what it acknowledged is there, whole; what it did not is there whole or not at all."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from tests.dataplane.plane import Agent, Plane, object_name


class Service:
    """The data plane in a process; SIGKILL is its only end here."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def __aenter__(self) -> Service:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.dataplane.service",
            str(self._folder),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(each for each in sys.path if each)},
        )
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), 30)
        self.said: dict[str, Any] = msgspec.json.decode(line)
        return self

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()

    async def __aexit__(self, *_: object) -> None:
        self.kill()
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()


@pytest.mark.parametrize("delay", [0.02, 0.15, 0.4])
async def test_killed_during_uploads_and_commits(tmp_path: Path, delay: float) -> None:
    async with Plane(tmp_path) as plane:
        agent = await plane.registered()
        grant = (await agent.begin())["grant"]
        body = os.urandom(3_000_000)
        acknowledged: dict[str, str] = {}
        committed: list[str] = []
        addresses, door_port = dict(plane.private), plane.port

        async def upload(number: int) -> None:
            for turn in range(200):
                name = object_name("packs")
                part = body[number * 1000 + turn :]
                answer = await agent.put(grant, name, part)
                if answer.status == 201:
                    acknowledged[name] = hashlib.sha256(part).hexdigest()

        async def commit(item: str) -> None:
            for _ in range(200):
                session = await agent.begin(item)
                manifest = object_name("manifests")
                assert (await agent.put(session["grant"], manifest, b"m")).status == 201
                answer = await agent.commit(session["backupId"], manifest, [], [])
                if answer.status == 200:
                    committed.append(answer.json["recoveryPointId"])

        # The doors and the database are the same: a second process serves the same folder on a port of its own.
        async with Service(tmp_path / "."):
            pass  # it starts and is killed; the folder stays good
        await plane.plane.close()
        async with Service(tmp_path) as service:
            plane.port = service.said["port"]
            work = [asyncio.create_task(upload(number)) for number in range(2)]
            work += [asyncio.create_task(commit(item)) for item in ("/a", "/b")]
            await asyncio.sleep(delay + 0.3)
            service.kill()
            done = await asyncio.gather(*work, return_exceptions=True)
            for each in done:
                assert isinstance(each, (aiohttp.ClientError, OSError, AssertionError)) or each is None, each
        assert addresses and door_port

    async with Plane(tmp_path) as plane:
        agent = Agent(plane, plane.vault, plane.container_token(plane.vault, agent.container_id), agent.container_id)
        folder = f"eastus/blobs/{grant['account']}/{grant['container']}/"
        there = {info.name.removeprefix(folder): info.size async for info in plane.bytes.list(folder + "packs/")}
        for name, digest in acknowledged.items():
            content = b"".join([piece async for piece in plane.bytes.get(folder + name)])
            assert hashlib.sha256(content).hexdigest() == digest
        for name, size in there.items():
            assert size > 2_900_000, f"{name} is there and not whole"
        points = [point["id"] for point in (await agent.call("GET", "rec2", "/v1/points")).json["points"]]
        assert set(committed) <= set(points)
        commits = [info.name async for info in plane.bytes.list(f"eastus/vaults/{plane.vault.vault_id}/commits/")]
        assert sorted(name.rsplit("/", 1)[1].removesuffix(".json") for name in commits) == sorted(points)
        assert not list((tmp_path / "store" / ".incoming").iterdir())
