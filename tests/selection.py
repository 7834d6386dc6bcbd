"""Which tests run where, and that nothing is skipped unseen. Hooks for ``tests/conftest.py``.

``root`` tests are skipped for ordinary users. ``UNDERCROFT_TEST_ROOTLESS=1`` (set by ``scripts/test`` in its rootless part)
keeps only what that part is for: the folders below and tests marked ``rootless``, some of which root skips. Under ``CI=true`` any
other skip is a failure. As root ``scripts/test`` runs that part after the others, and says so beforehand by
``UNDERCROFT_TEST_ROOTLESS_LATER=1``: then what it will run with the rootless driver, as the user that driver is for, is not run twice.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests.peers import under_ci

__all__ = ["pytest_collection_modifyitems", "pytest_runtest_makereport"]

ROOTLESS_FOLDERS = frozenset({"fabric", "faults", "journey"})
NEEDS_ROOT = "needs root"
NEEDS_ORDINARY_USER = "needs an ordinary user"
"""Only for tests marked ``rootless`` or in the folders above: the rootless part of ``scripts/test`` runs them."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if os.environ.get("UNDERCROFT_TEST_ROOTLESS") == "1":
        config.hook.pytest_deselected(items=[item for item in items if not _rootless(item)])
        items[:] = [item for item in items if _rootless(item)]
    elif os.environ.get("UNDERCROFT_TEST_ROOTLESS_LATER") == "1":
        later = [item for item in items if _rootless(item) and _driver(item) == "rootless"]
        config.hook.pytest_deselected(items=later)
        gone = {id(item) for item in later}
        items[:] = [item for item in items if id(item) not in gone]
    if os.geteuid() != 0:
        for item in items:
            if item.get_closest_marker("root"):
                item.add_marker(pytest.mark.skip(reason=NEEDS_ROOT))


def _rootless(item: pytest.Item) -> bool:
    if item.get_closest_marker("root") or item.get_closest_marker("az"):
        return False
    folder = item.path.relative_to(Path(__file__).parent).parts[0]
    return folder in ROOTLESS_FOLDERS or item.get_closest_marker("rootless") is not None


def _driver(item: pytest.Item) -> str | None:
    """The driver of the fabric that a test is made for: the one parameter of that kind, whatever the fixture is called."""
    parameters = (
        item.callspec.params.values() if isinstance(item, pytest.Function) and hasattr(item, "callspec") else ()
    )
    return next((value for value in parameters if value in ("netns", "rootless")), None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and under_ci():
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        elsewhere = NEEDS_ORDINARY_USER in reason and os.geteuid() == 0 and _rootless(item)
        if NEEDS_ROOT not in reason and not elsewhere:
            report.outcome = "failed"
            report.longrepr = f"{reason}\nUnder CI=true a skipped test is a failed one: what it needs must be there."
    return report
