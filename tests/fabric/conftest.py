"""Every test here runs with each driver that this user can have."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.fabric.machine import Machine, drivers
from undercroft.fabric.client import FabricClient


def mounts() -> set[str]:
    return set(Path("/proc/self/mounts").read_text().splitlines())


@pytest.fixture(params=drivers())
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    before = mounts()
    made = Machine(request.param)
    try:
        made.start()
        yield made
    finally:
        made.close()
    assert not {line for line in mounts() - before if str(made.folder) in line or "resolv.conf" in line}


@pytest.fixture
async def client(machine: Machine) -> AsyncIterator[FabricClient]:
    async with machine.client() as connected:
        yield connected
