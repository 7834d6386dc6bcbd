"""The forecast against addresses that are really given out."""

from __future__ import annotations

from ipaddress import IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undercroft.vnet.allocations import capacity
from undercroft.vnet.forecast import Verdict, forecast

lengths = st.integers(22, 29)


@given(lengths, st.integers(0, 300), st.integers(0, 40), st.integers(1, 30), st.integers(0, 60))
def test_the_verdict_is_what_happens(length: int, used: int, claimed: int, at_once: int, later: int) -> None:
    prefix = IPv4Network((0x0A000000, length))
    used = min(used, capacity(prefix))
    found = forecast(prefix, used, claimed, at_once, at_once + later)
    left = capacity(prefix) - used - at_once
    if left < 0:
        assert found.verdict is Verdict.REFUSED
    else:
        assert (found.verdict is Verdict.FITS) == (left - claimed - later >= 0)
    assert found.free == capacity(prefix) - used


@given(lengths, st.integers(0, 200), st.integers(0, 40), st.integers(1, 400))
def test_the_smallest_prefix_has_room_and_the_next_one_has_not(
    length: int, used: int, claimed: int, total: int
) -> None:
    found = forecast(IPv4Network((0x0A000000, length)), used, claimed, 1, total)
    need = used + claimed + total
    assert capacity(IPv4Network((0, found.smallest))) >= need
    assert found.smallest == 29 or capacity(IPv4Network((0, found.smallest + 1))) < need
    assert found.recommended == min(25, found.smallest)


@pytest.mark.parametrize(
    ("prefix", "verdict"),
    [("10.0.0.0/29", "Refused"), ("10.0.0.0/28", "Fits"), ("10.0.0.0/25", "Fits")],
)
def test_the_sizes_that_people_ask_about(prefix: str, verdict: str) -> None:
    """Eight addresses at once and eleven with the first accounts: a /28 has eleven (reference: pains C1)."""
    assert forecast(IPv4Network(prefix), 0, 0, 8, 11).verdict == verdict
