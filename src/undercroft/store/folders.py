"""The distinct next segments below a prefix, without walking what is under each of them."""

from __future__ import annotations

from collections.abc import AsyncIterator

from undercroft.store.store import Store

__all__ = ["folders"]


async def folders(store: Store, prefix: str = "") -> AsyncIterator[str]:
    """``prefix`` ends in ``/`` or is empty. Yields each segment that has objects below it, in order.

    After a segment ``s`` the listing jumps behind ``{s}/…``: ``0`` is the character after ``/``, and no name of an object
    lies between ``s/`` and ``s0`` but those of the folder.
    """
    after = ""
    while True:
        found: str | None = None
        listing = store.list(prefix, after)
        try:
            async for each in listing:
                rest = each.name[len(prefix) :]
                if "/" in rest:
                    found = rest.split("/", 1)[0]
                    break
                after = each.name
        finally:
            close = getattr(listing, "aclose", None)
            if close is not None:
                await close()
        if found is None:
            return
        yield found
        after = f"{prefix}{found}0"
