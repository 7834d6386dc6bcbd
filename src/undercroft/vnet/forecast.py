"""Whether a subnet has room for an endpoint, now and when its vault has grown; told before the endpoint is made."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Network

from undercroft.vnet.allocations import capacity

__all__ = ["RECOMMENDED", "Forecast", "Verdict", "forecast"]

RECOMMENDED = 25
"""Microsoft's advice for a subnet with endpoints of vaults (reference: azure-facts section 1)."""
_SMALLEST, _LARGEST = 29, 8


class Verdict(StrEnum):
    FITS = "Fits"
    AT_RISK = "AtRisk"
    """It can be made, and cannot grow as far as was asked about."""
    REFUSED = "Refused"


@dataclass(frozen=True, slots=True)
class Forecast:
    verdict: Verdict
    capacity: int
    free: int
    """Now."""
    claimed: int
    """Of those that are free: what the endpoints that stand there already will still need."""
    smallest: int
    """Length of the smallest prefix with room for everything that is in the subnet and will be."""

    @property
    def recommended(self) -> int:
        return min(self.smallest, RECOMMENDED)


def forecast(prefix: IPv4Network, used: int, claimed: int, at_once: int, total: int) -> Forecast:
    """``used`` addresses are taken; the new endpoint takes ``at_once`` and, in the end, ``total``."""
    room = capacity(prefix)
    free = room - used
    verdict = Verdict.FITS
    if free < at_once:
        verdict = Verdict.REFUSED
    elif free - claimed < total:
        verdict = Verdict.AT_RISK
    wanted = used + claimed + total
    lengths = (length for length in range(_SMALLEST, _LARGEST - 1, -1) if _capacity(length) >= wanted)
    return Forecast(verdict, room, free, claimed, next(lengths, _LARGEST))


def _capacity(length: int) -> int:
    return capacity(IPv4Network((0, length)))
