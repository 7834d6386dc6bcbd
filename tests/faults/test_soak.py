"""Create and delete again and again: no descriptor, namespace, interface, mount, thread or row stays (``scripts/soak`` does it a
thousand times)."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.soak import Count, leaks, render, soak
from tests.deployment import drivers

pytestmark = [pytest.mark.rootless, pytest.mark.slow]

CYCLES = 20


@pytest.mark.parametrize("driver", drivers())
def test_nothing_stays_of_networks_vms_and_endpoints_that_were_deleted(driver: str, tmp_path: Path) -> None:
    table, found = soak(tmp_path / "home", driver, CYCLES, minutes=3, linger_every=10)
    assert found == [], table
    assert f"{CYCLES} cycles" in table


def test_what_counts_as_a_leak() -> None:
    before = (
        Count("rows of resources", 5),
        Count("descriptors of node", 30),
        Count("memory of node", 90 << 20, "bytes"),
    )
    grown = (
        Count("rows of resources", 6),
        Count("descriptors of node", 50),
        Count("memory of node", 190 << 20, "bytes"),
    )
    assert leaks(before, before, 20) == []
    assert [line.partition(":")[0] for line in leaks(before, grown, 20)] == [count.name for count in before]
    assert "| rows of resources | 5 | 5 | 6 | 1 |" in render("netns", 20, 2.0, before, grown)
    assert len(leaks(before, grown, 20, halfway=grown)) == 2, "memory that stopped growing is a cache"
    assert leaks((), (Count("rows of tasks", 9, "history"),), 20) == [], "history is only shown"
