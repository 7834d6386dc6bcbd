"""The ways this host took to its vault, leg by leg, and telling the service what it cannot see (docs/protocol.md, ``/v1/paths``).

A *leg* is one of: the backup service, blobs, the login endpoint. What is told is kept by the vault for its owner; the same is
noted in the agent's home for ``agent status``. Neither is worth failing a backup for.
"""

from __future__ import annotations

from collections.abc import Callable

from undercroft.errors import UndercroftError

from .identity import AgentHome, RouteNote
from .resolve import Route
from .session import Session

__all__ = ["Ways", "ways_of"]

LONGEST = 2000


def ways_of(session: Session, storage: Route | None = None) -> dict[str, Route]:
    """By leg. Of the eight service names that stand for one leg, one that went publicly counts."""
    found: dict[str, Route] = {}
    services = sorted(session.routes.values(), key=lambda route: route.path == "private")
    if services:
        found["backup"] = services[0]
    if storage is not None:
        found["blob"] = storage
    if session.login_route is not None:
        found["login"] = session.login_route
    return found


class Ways:
    """What one run of the agent has to tell of its ways; told once for each leg."""

    def __init__(self, session: Session, home: AgentHome, say: Callable[[str], None]) -> None:
        self._session = session
        self._home = home
        self._say = say
        self._told: set[str] = set()

    def tell(self, job: str | None = None, storage: Route | None = None) -> None:
        """To the service, as far as not told, and into the agent's home; neither fails a run."""
        ways = ways_of(self._session, storage)
        try:
            self.keep(ways)
        except UndercroftError as error:
            self._say(f"warning: the way taken was not noted on this host: {error.message}")
        fresh = {leg: route for leg, route in ways.items() if leg not in self._told}
        if not fresh:
            return
        self._told |= fresh.keys()
        legs = [
            {"leg": leg, "because": route.because[:LONGEST], "proxy": route.proxy[:256]} for leg, route in fresh.items()
        ]
        body: dict[str, object] = {"legs": legs}
        if job is not None:
            body["jobId"] = job
        try:
            self._session.tell("fc1", "/v1/paths", body)
        except UndercroftError as error:
            self._say(f"warning: the vault was not told which way was taken: {error.message}")

    def keep(self, ways: dict[str, Route]) -> None:
        """In the agent's home, over what was noted of the same legs before."""
        now = self._session.clock.now()
        notes = dict(self._home.last_ways())
        for leg, route in ways.items():
            before = notes.get(leg)
            fallbacks = (before.fallbacks if before else 0) + (1 if route.because and leg not in self._told else 0)
            notes[leg] = RouteNote(route.path, route.host, route.address, route.because, now, route.proxy, fallbacks)
        self._home.note_ways(notes)
