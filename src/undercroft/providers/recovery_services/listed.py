"""What the lists of backup resources share: the vault or 404, times in filters, pages behind a mark."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from undercroft.arm import filters, paging
from undercroft.arm.call import Call
from undercroft.clock import timestamp
from undercroft.errors import CapabilityMissing, InvalidParameter, NotFound
from undercroft.names import ResourceId
from undercroft.vault.inventory import Mark

__all__ = ["FABRIC", "check_fabric", "conditions", "mark", "mark_text", "moment", "vault_id"]

FABRIC = "Azure"
"""The only fabric of a vault, as in Azure."""
_TIMES = ("%Y-%m-%d %I:%M:%S %p", "%Y-%m-%d %H:%M:%S")


def vault_id(id: ResourceId) -> ResourceId:
    """The vault that a nested resource is in."""
    return ResourceId(id.subscription, id.group, id.namespace, id.types[:1], id.names[:1])


def check_fabric(call: Call) -> None:
    if call.parameters["fabric"].lower() != FABRIC.lower():
        raise NotFound(f"The vault has no fabric '{call.parameters['fabric']}'; there is one, called '{FABRIC}'.")


def conditions(call: Call, *known: str, times: Mapping[str, str] | None = None) -> dict[str, str]:
    """``$filter``: field in lower case to value. ``times`` maps a field of time to the operator it may have beside ``eq``."""
    found: dict[str, str] = {}
    times = times or {}
    for one in filters.parse_filter(call.query.get("$filter")):
        allowed = one.operator == "eq" or times.get(one.field) == one.operator
        if one.field not in (*known, *times) or not allowed:
            raise CapabilityMissing(
                f"The filter '{one.field} {one.operator}' is not implemented here; possible: "
                f"{', '.join(sorted((*known, *times)))} with 'eq'.",
                target="$filter",
            )
        found[one.field] = moment(one.value, one.field) if one.field in times else one.value
    return found


def moment(text: str, field: str) -> str:
    """A time of a filter, as it is stored. ``az`` writes ``2026-11-01 12:00:00 AM``, in UTC."""
    for form in _TIMES:
        try:
            return timestamp(datetime.strptime(text, form).replace(tzinfo=UTC))
        except ValueError:
            continue
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise InvalidParameter(
            f"'{text[:60]}' is not a time for '{field}'. Write it like '2026-11-01 12:00:00 AM' or 2026-11-01T00:00:00Z.",
            code="InvalidFilterInQueryString",
            target="$filter",
        ) from error
    return timestamp(found if found.tzinfo else found.replace(tzinfo=UTC))


def mark(call: Call) -> Mark | None:
    """Behind which row the page begins; None for the first page."""
    text = paging.after(call)
    if not text:
        return None
    time, separator, id = text.partition("|")
    if not separator:
        raise InvalidParameter(
            "'$skiptoken' is not one that this list made. Begin the list again without it.",
            code="InvalidSkipToken",
            target="$skiptoken",
        )
    return time, id


def mark_text(time: str, id: str) -> str:
    return f"{time}|{id}"
