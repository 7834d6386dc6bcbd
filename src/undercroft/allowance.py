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
        if not self._spend(caller):
            raise Throttled(
                f"This caller made more than {self._rate:.0f} calls a second for a while. Wait a second and go on (the setting "
                "calls_per_second)."
            )

    def meet(self, address: str) -> None:
        """A call from there, of nobody yet; ``Throttled`` when too many from there have been ``refused``. It takes nothing."""
        if self._rate and self._now(_refusals(address)) < 1:
            raise Throttled(
                f"More than {self._rate:.0f} calls a second from this address were refused for a while, so no call from it is looked "
                "at. Wait a second and go on (the setting calls_per_second)."
            )

    def refused(self, address: str) -> None:
        """A call from there was not known: guesses of keys and names are as rare as the calls of one who is known."""
        self._spend(_refusals(address))

    def _now(self, caller: str) -> float:
        left, then = self._left.get(caller, (self._full, self._clock.monotonic()))
        return min(self._full, left + (self._clock.monotonic() - then) * self._rate)

    def _spend(self, caller: str) -> bool:
        if not self._rate:
            return True
        left = self._now(caller)
        self._left[caller] = (left - 1 if left >= 1 else left, self._clock.monotonic())
        self._left.move_to_end(caller)
        if len(self._left) > REMEMBERED:
            self._left.popitem(last=False)
        return left >= 1


def _refusals(address: str) -> str:
    return f"refused {address}"
