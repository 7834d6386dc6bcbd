"""``fabric probe``: what this machine allows, driver by driver, and what to change for more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

__all__ = ["mount"]

_WIDTH = 24


def probe(
    *,
    home: Annotated[
        Path | None, Parameter(name="--home", env_var="UNDERCROFT_HOME", help="Read undercroft.toml there.")
    ] = None,
    driver: str = "auto",
    as_json: Annotated[bool, Parameter(name="--json", negative=(), help="Print JSON.")] = False,
) -> int:
    """Try what this machine allows, and say what to change for more. Nothing is left behind, no interface is changed. Status 1:
    the driver that is meant does not work here.

    Parameters
    ----------
    driver
        Which one is meant: netns, rootless, host or loopback; auto is what 'undercroft up' would take.
    """
    from undercroft.cli.local import home_of
    from undercroft.cli.up import interface_of
    from undercroft.fabric.probe import Choice, choose_driver, describe, survey, try_driver

    interface = interface_of(home_of(home).settings()) if home is not None else None
    if interface is not None and driver in (
        "auto",
        "host",
    ):  # described also when it does not work: that is the question
        chosen = Choice("host", (try_driver("host", interface),))
    else:
        chosen = choose_driver(driver, interface)
    description = describe(chosen, survey(chosen, interface))
    print(json.dumps(description) if as_json else "\n".join(_lines(description)))
    return 0 if chosen.findings[-1].works else 1


def _lines(description: dict[str, Any]) -> list[str]:
    """The driver that is meant and what it cannot, with the reasons; every driver beside the others; what stands in the way."""
    from undercroft.fabric.capabilities import ABILITIES

    missing: dict[str, str] = dict(description["missing"])
    lines = [f"driver: {description['driver']}"]
    if description["simulation"]:
        lines.append("*** a SIMULATION: no network is built, nothing is isolated, and no command runs in a VM ***")
    for name, meaning in ABILITIES.items():
        reason = "" if description["simulation"] else missing.get(name, "")
        able = "yes" if description[name] else "no "
        lines.append(f"  {able}  {meaning}" + (f": {reason}" if reason else ""))
    drivers: dict[str, dict[str, Any]] = description["drivers"]
    lines += ["", " " * _WIDTH + "".join(f"{name:10}" for name in drivers)]
    lines.append(_row("works here", [one["works"] for one in drivers.values()]))
    lines += [_row(name, [one["abilities"][name] for one in drivers.values()]) for name in ABILITIES]
    if "loopback" in drivers:
        lines.append("loopback is a simulation; 'undercroft up' takes it only where nothing else works, and says so.")
    refused = [one["why"] for one in drivers.values() if not one["works"]]
    if refused:
        lines += ["", "Not possible as it is:", *(f"  {why}" for why in refused)]
    places = [f"  {one['name']}: {', '.join(one['networks'])}" for one in description["interfaces"] if one["networks"]]
    if places:
        lines += ["", "Interfaces on which the host driver could put its network:", *places]
    return lines


def _row(name: str, values: list[bool]) -> str:
    return f"{name:{_WIDTH}}" + "".join(f"{'yes' if value else 'no':10}" for value in values).rstrip()


def mount(app: App) -> None:
    fabric = App(name="fabric", help="The networking of this machine.")
    fabric.command(probe)
    app.command(fabric)
