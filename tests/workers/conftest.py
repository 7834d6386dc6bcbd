from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fabric.machine import Machine, drivers
from tests.workers.node import Node, node


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Node]:
    """With the best driver that this user can have."""
    machine = Machine(drivers()[0])
    try:
        machine.start()
        async with node(tmp_path, machine) as made:
            yield made
    finally:
        machine.close()
