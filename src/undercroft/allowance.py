"""How many calls a caller may make: a steady rate, and a reserve that may be spent at once (a token bucket per caller).

It keeps one caller's loop from taking the service from the others; it is no accounting. Callers are remembered up to a bound: the one
that has not called for longest is forgotten, with a full reserve when it returns.
"""

from __future__ import annotations

from collections import OrderedDict

from undercroft.clock import Clock
from undercroft.errors import Throttled

__all__ = ["Allowance"]

RESERVE_SECONDS = 10
REMEMBERED = 10_000


class Allowance:
    """Used from one event loop."""

    def __init__(self, clock: Clock, per_second: int) -> None:
        """``per_second`` 0: no limit. The reserve is ten seconds' worth."""
        self._clock = clock
        self._rate = float(per_second)
        self._full = self._rate * RESERVE_SECONDS
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """Caller to (calls left, at which time)."""

    def take(self, caller: str) -> None:
        """One call of that caller; ``Throttled`` when it has none left, which takes nothing."""
        if not self._rate:
            return
        now = self._clock.monotonic()
        left, then = self._left.get(caller, (self._full, now))
        left = min(self._full, left + (now - then) * self._rate)
        self._left[caller] = (left - 1 if left >= 1 else left, now)
        self._left.move_to_end(caller)
        if len(self._left) > REMEMBERED:
            self._left.popitem(last=False)
        if left < 1:
            raise Throttled(
                f"This caller made more than {self._rate:.0f} calls a second for a while. Wait a second and go on (the setting "
                "calls_per_second)."
            )
