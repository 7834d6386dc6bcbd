"""Fixtures that several packages' tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deployment import Deployment, drivers
from tests.selection import pytest_collection_modifyitems, pytest_runtest_makereport

__all__ = ["deployment", "pytest_collection_modifyitems", "pytest_runtest_makereport"]


@pytest.fixture(params=drivers())
def deployment(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Deployment]:
    """A running deployment, once per driver that this user can have; stopped afterwards, whatever happened."""
    found = Deployment(tmp_path / "home", request.param)
    try:
        found.start()
        yield found
    finally:
        found.stop()
