from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.fabric.machine import Machine, drivers
from tests.workers.node import Node, node


@asynccontextmanager
async def _world(folder: Path, driver: str) -> AsyncIterator[Node]:
    machine = Machine(driver)
    try:
        machine.start()
        async with node(folder, machine) as made:
            yield made
    finally:
        machine.close()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Node]:
    """With the best driver that this user can have."""
    async with _world(tmp_path, drivers()[0]) as made:
        yield made


@pytest.fixture(params=drivers())
async def any_world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Node]:
    """With every driver that this user can have."""
    async with _world(tmp_path, request.param) as made:
        yield made
