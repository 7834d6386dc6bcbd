from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.depots import FolderDepot
from tests.engine.workbench import Bench
from undercroft.engine.crypto import ContainerKeys


@pytest.fixture
def keys() -> ContainerKeys:
    """Keys without the cost of a passphrase."""
    return ContainerKeys.of_master(os.urandom(32))


@pytest.fixture
def bench(tmp_path: Path, keys: ContainerKeys) -> Iterator[Bench]:
    yield Bench(tmp_path, FolderDepot(tmp_path / "depot"), keys)
