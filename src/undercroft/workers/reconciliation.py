"""What a look at every network found: mended, refused, failing; and what was mended lately. Values for ``reconcile`` and ``status``."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from undercroft.clock import timestamp
from undercroft.fabric.specification import Drift

__all__ = ["Failure", "History", "Reconciliation"]

_REMEMBERED = 20


@dataclass(frozen=True, slots=True)
class Failure:
    """A network that could not be made as it should be; it is tried again."""

    network: str
    error: Exception

    @property
    def message(self) -> str:
        return str(self.error)


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """One look at every network."""

    at: datetime
    seconds: float
    networks: int
    """How many there should be."""
    drift: tuple[Drift, ...]
    failures: tuple[Failure, ...]

    @property
    def mended(self) -> tuple[Drift, ...]:
        return tuple(one for one in self.drift if not one.created and one.refused is None)

    @property
    def refused(self) -> tuple[Drift, ...]:
        return tuple(one for one in self.drift if one.refused is not None)

    def shown(self) -> dict[str, Any]:
        return {
            "at": timestamp(self.at),
            "seconds": round(self.seconds, 3),
            "networks": self.networks,
            "mended": [_shown(one) for one in self.mended],
            "failing": [{"network": one.network, "what": one.message} for one in self.failures]
            + [_shown(one) for one in self.refused],
        }


class History:
    """What was mended, whenever that was noticed: the last few."""

    def __init__(self) -> None:
        self._mended: deque[tuple[datetime, Drift]] = deque(maxlen=_REMEMBERED)

    def note(self, at: datetime, drift: Iterable[Drift]) -> None:
        self._mended.extend((at, one) for one in drift if not one.created and one.refused is None)

    def shown(self) -> list[dict[str, Any]]:
        """The latest last."""
        return [{"at": timestamp(at), **_shown(one)} for at, one in self._mended]


def _shown(drift: Drift) -> dict[str, Any]:
    return {"network": drift.network, "what": drift.what}
