from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deployment import Deployment, NearDeployment, drivers


@pytest.fixture(params=drivers())
def deployment(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Deployment]:
    """As everybody's, asked from this process: here processes of the service are killed, not commands tried."""
    found = NearDeployment(tmp_path / "home", request.param)
    try:
        found.start()
        yield found
    finally:
        found.stop()
