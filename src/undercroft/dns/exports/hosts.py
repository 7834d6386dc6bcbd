"""A hosts file: the article's ``<private ip><space><FQDN>``, between two marks, so that everything else in the file stays its owner's."""

from __future__ import annotations

from undercroft.dns.exports.plan import ConfigurationFile, Plan
from undercroft.errors import Conflict

__all__ = ["block_in", "merged", "render"]


def render(plan: Plan) -> tuple[ConfigurationFile, ...]:
    begin, end = _marks(plan)
    apply = (
        "Lines between the two marks are replaced; all others are yours. A line here wins over every DNS server.",
        f"Hosts must resolve login.{plan.required.deployment} as well; 168.63.129.16 answers it.",
    )
    lines = [f"{address} {name.fqdn}\n" for name in plan.required.names for address in name.addresses]
    return (ConfigurationFile("hosts", f"{begin}\n{plan.header('#', apply)}{''.join(lines)}{end}\n"),)


def merged(plan: Plan, existing: str, block: str) -> str:
    """The existing file with its block of these endpoints replaced, or added at the end. Raises ``Conflict`` when a person
    has taken away one of the two marks: then nobody knows which lines are ours."""
    lines = existing.splitlines(keepends=True)
    where = _extent(plan, lines)
    if where is None:
        glue = "" if not existing or existing.endswith("\n") else "\n"
        return existing + glue + block
    return "".join((*lines[: where.start], block, *lines[where.stop :]))


def block_in(plan: Plan, existing: str) -> str:
    """What the file has between our marks, with them; empty when they are not there."""
    lines = existing.splitlines(keepends=True)
    where = _extent(plan, lines)
    return "" if where is None else "".join(lines[where.start : where.stop])


def _extent(plan: Plan, lines: list[str]) -> slice | None:
    begin, end = _marks(plan)
    starts = [number for number, line in enumerate(lines) if line.rstrip() == begin]
    ends = [number for number, line in enumerate(lines) if line.rstrip() == end]
    if not starts and not ends:
        return None
    if len(starts) != 1 or len(ends) != 1 or starts[0] > ends[0]:
        raise Conflict(
            f"The marks '{begin}' and '{end}' are not there once each, in this order. Remove what is left of that block by hand.",
            code="DamagedHostsFile",
        )
    return slice(starts[0], ends[0] + 1)


def _marks(plan: Plan) -> tuple[str, str]:
    return f"# BEGIN undercroft {plan.title}", f"# END undercroft {plan.title}"
