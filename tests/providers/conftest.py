from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.arm.control_plane import ControlPlane, control_plane, prepare


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deployment's folder as a first start leaves it: making keys and tables takes longer than most tests."""
    folder = tmp_path_factory.mktemp("prepared")
    prepare(folder)
    return folder


@pytest.fixture
async def plane(prepared: Path, tmp_path: Path) -> AsyncIterator[ControlPlane]:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    async with control_plane(tmp_path) as running:
        yield running
