"""The table of formats, and the rule which of them have which mode."""

from __future__ import annotations

from collections.abc import Mapping

from undercroft.dns.exports import bind, coredns, dnsmasq, hosts, listing, unbound, windows
from undercroft.dns.exports.plan import ConfigurationFile, Mode, Plan, Renderer
from undercroft.errors import InvalidParameter

__all__ = ["FORMATS", "SEVERAL_FILES", "WITHOUT_FORWARDING", "check", "render"]

FORMATS: Mapping[str, Renderer] = {
    "bind": bind.render,
    "unbound": unbound.render,
    "dnsmasq": dnsmasq.render,
    "coredns": coredns.render,
    "windows": windows.render,
    "hosts": hosts.render,
    "json": listing.render,
}
WITHOUT_FORWARDING = frozenset({"hosts"})
"""What only knows names and addresses."""
SEVERAL_FILES = frozenset({"bind"})
"""What needs a folder; all others are one file."""


def check(format: str, mode: Mode) -> None:
    """Raises ``InvalidParameter`` for a format that is not in the table, or lacks the mode."""
    if format not in FORMATS:
        raise InvalidParameter(f"'{format}' is not a format; there are: {', '.join(FORMATS)}.", target="--format")
    if mode == "forward" and format in WITHOUT_FORWARDING:
        raise InvalidParameter(f"A {format} file cannot forward; use --mode records.", target="--mode")


def render(format: str, plan: Plan) -> tuple[ConfigurationFile, ...]:
    """The files, the one to start from first; raises as ``check``."""
    check(format, plan.mode)
    return FORMATS[format](plan)
