"""The rate of one caller's calls."""

from __future__ import annotations

from datetime import timedelta

import pytest

from undercroft import allowance
from undercroft.allowance import Allowance
from undercroft.clock import ManualClock, SystemClock
from undercroft.errors import Throttled


def taken(subject: Allowance, caller: str, tries: int) -> int:
    done = 0
    for _ in range(tries):
        try:
            subject.take(caller)
        except Throttled:
            return done
        done += 1
    return done


def test_a_reserve_and_then_the_rate_for_each_caller() -> None:
    clock = ManualClock(SystemClock().now())
    subject = Allowance(clock, 3)
    assert taken(subject, "a", 100) == 30
    clock.advance(timedelta(seconds=2))
    assert taken(subject, "a", 100) == 6
    assert taken(subject, "b", 100) == 30
    clock.advance(timedelta(hours=1))
    assert taken(subject, "a", 100) == 30


def test_no_limit_and_a_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ManualClock(SystemClock().now())
    assert taken(Allowance(clock, 0), "a", 1000) == 1000
    monkeypatch.setattr(allowance, "REMEMBERED", 5)
    subject = Allowance(clock, 1)
    for number in range(50):
        subject.take(str(number))
    assert len(subject._left) == 5


def test_what_was_refused_is_counted_by_address_and_meeting_costs_nothing() -> None:
    clock = ManualClock(SystemClock().now())
    subject = Allowance(clock, 2)
    for _ in range(100):
        subject.meet("a")
    for _ in range(20):
        subject.meet("a")
        subject.refused("a")
    with pytest.raises(Throttled, match="More than 2 calls a second from this address were refused"):
        subject.meet("a")
    subject.meet("b")
    assert taken(subject, "a", 100) == 20  # who is known is another account
    clock.advance(timedelta(seconds=1))
    subject.meet("a")
