"""The recovery points of this host."""

from __future__ import annotations

from collections.abc import Iterator

from undercroft.errors import InvalidInput, NotFound

from .messages import Point, Points
from .session import Session

__all__ = ["find_point", "list_points"]

SERVICE = "rec2"


def list_points(session: Session, item: str | None = None) -> tuple[Point, ...]:
    """Newest first."""
    return tuple(_newest_first(session, item))


def _newest_first(session: Session, item: str | None = None) -> Iterator[Point]:
    """Asks for no page that nobody looks at."""
    query = {"item": item} if item is not None else {}
    while True:
        page = session.call(SERVICE, "GET", "/v1/points", Points, query=query)
        yield from page.points
        if page.next is None or not page.points:
            return
        query["after"] = page.next


def find_point(session: Session, wanted: str) -> Point:
    """By ``latest``, by id, or by the first characters of an id (at least four)."""
    listed = _newest_first(session)
    newest = next(listed, None)
    if newest is None:
        raise NotFound(
            f"The vault '{session.hosts.vault_name}' has no recovery point of this host: nothing was backed up yet."
        )
    if wanted == "latest":
        return newest
    points = (newest, *listed)
    found = [point for point in points if point.id.lower() == wanted.lower()]
    if not found and len(wanted) >= 4:
        found = [point for point in points if point.id.lower().startswith(wanted.lower())]
    if len(found) == 1:
        return found[0]
    if found:
        raise InvalidInput(f"'{wanted}' is the beginning of {len(found)} recovery points: give more of the id.")
    raise NotFound(
        f"There is no recovery point '{wanted}' of this host; 'undercroft agent points' lists those that are there."
    )
