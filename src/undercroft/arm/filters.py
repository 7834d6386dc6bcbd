"""``$filter``, as far as Azure's clients use it: ``k eq 'v' and k2 ge 'v2' and atScope()``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from undercroft.errors import CapabilityMissing, InvalidParameter

__all__ = ["Condition", "equalities", "parse_filter"]

_CONDITION = re.compile(
    r"\s*(?:(?P<function>\w+)\(\s*(?:'(?P<argument>(?:[^']|'')*)')?\s*\)"
    r"|(?P<field>[\w/.]+)\s+(?P<operator>\w+)\s+(?:'(?P<text>(?:[^']|'')*)'|(?P<bare>[\w.:+-]+)))\s*",
    re.IGNORECASE,
)
_AND = re.compile(r"and\b", re.IGNORECASE)
_OPERATORS = frozenset({"eq", "ne", "ge", "gt", "le", "lt"})


@dataclass(frozen=True, slots=True)
class Condition:
    """``field`` and ``operator`` in lower case; of a function, ``field`` is its name and ``operator`` is ``()``."""

    field: str
    operator: str
    value: str


def parse_filter(text: str | None) -> tuple[Condition, ...]:
    """The conditions, all of which must hold. ``or``, ``not`` and parentheses are refused by name."""
    if text is None or not text.strip():
        return ()
    conditions: list[Condition] = []
    position = 0
    while True:
        found = _CONDITION.match(text, position)
        if found is None:
            raise InvalidParameter(
                f"The filter is not understood at '{text[position:][:60]}'. Write conditions like: name eq 'value', joined by 'and'.",
                code="InvalidFilterInQueryString",
                target="$filter",
            )
        conditions.append(_condition(found))
        position = found.end()
        if position == len(text):
            return tuple(conditions)
        joined = _AND.match(text, position)
        if joined is None:
            raise CapabilityMissing(
                f"Only conditions joined by 'and' are implemented, not '{text[position:][:60]}'.", target="$filter"
            )
        position = joined.end()


def _condition(found: re.Match[str]) -> Condition:
    if found["function"] is not None:
        return Condition(found["function"].lower(), "()", (found["argument"] or "").replace("''", "'"))
    operator = found["operator"].lower()
    if operator not in _OPERATORS:
        raise CapabilityMissing(f"The filter operator '{operator}' is not implemented.", target="$filter")
    value = found["bare"] if found["text"] is None else found["text"].replace("''", "'")
    return Condition(found["field"].lower(), operator, value)


def equalities(text: str | None, known: frozenset[str]) -> dict[str, str]:
    """For filters that are equalities only: lower-case field to value. Fields outside ``known`` are refused by name."""
    found: dict[str, str] = {}
    for condition in parse_filter(text):
        if condition.operator != "eq" or condition.field not in known:
            raise CapabilityMissing(
                f"The filter '{condition.field} {condition.operator}' is not implemented here; "
                f"possible: {', '.join(sorted(known))} with 'eq'.",
                target="$filter",
            )
        found[condition.field] = condition.value
    return found
