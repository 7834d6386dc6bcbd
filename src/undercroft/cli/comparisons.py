"""dns diff and dns observe: what resolvers answer against what private endpoints need."""

from __future__ import annotations

import json
import sys
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import Parameter
from cyclopts.validators import Number

from undercroft.cli.local import HomeOption, home_of
from undercroft.cli.management import Arm, GroupOption, JsonOption, LoginOption, connect
from undercroft.cli.requirements import (
    EndpointsOption,
    OfNetworkOption,
    OfVaultOption,
    Selection,
    addresses_of_endpoints,
    requirements,
)
from undercroft.cli.vms import captured
from undercroft.dns.comparison import Comparison, advice, compare
from undercroft.dns.observations import OWN_NAMES, Observation, ResolverAddress
from undercroft.dns.requirements import Requirements
from undercroft.errors import Unavailable

__all__ = ["diff", "observe", "summary"]

DIFFERENT, NOT_ASKED = 1, 2

ServerOption = Annotated[
    str | None,
    Parameter(
        name="--server", help="The resolver to ask, ADDRESS or ADDRESS:PORT; else all that the host itself uses."
    ),
]
TimesOption = Annotated[
    int, Parameter(name="--times", validator=Number(gte=1, lte=100), help="How often to ask for each name.")
]


def diff(
    *,
    group: GroupOption,
    home: HomeOption,
    endpoint: EndpointsOption = (),
    vault: OfVaultOption = None,
    vnet_name: OfNetworkOption = None,
    from_vm: Annotated[
        str | None,
        Parameter(name="--from", help="The VM to ask from (NAME, or GROUP/NAME): its hosts file and its resolvers."),
    ] = None,
    server: ServerOption = None,
    times: TimesOption = 2,
    as_json: JsonOption = False,
    login: LoginOption = None,
) -> int:
    """Compare what resolvers answer with what private endpoints need, and say how to put right what differs.

    Exit status: 0 nothing differs, 1 something does, 2 somebody could not be asked (and nothing else differs).
    """
    selection = Selection(group, endpoint, vault, vnet_name)
    resolver = None if server is None else ResolverAddress.parse(server)
    arm = connect(home, login)
    required = requirements(arm, home, selection)
    settings = home_of(home).settings()
    names = (*required.names, required.login) if settings.login_reachable else required.names
    vm = f"{group}/{from_vm}" if from_vm and "/" not in from_vm else from_vm
    observations = _observed(home, vm, tuple(name.fqdn for name in names), resolver, times)
    comparisons = compare(names, observations, IPv4Network(settings.public_range), _others(arm, required))
    if as_json:
        print(json.dumps([_as_json(comparison) for comparison in comparisons], indent=2))
    else:
        for comparison in comparisons:
            _report(required, comparison, from_vm or "this machine")
    if any(comparison.different for comparison in comparisons):
        return DIFFERENT
    return NOT_ASKED if not comparisons or any(comparison.unreachable for comparison in comparisons) else 0


def observe(
    *names: Annotated[str, Parameter(help="Host names.")],
    server: ServerOption = None,
    times: TimesOption = 1,
) -> None:
    """Print, as JSON, what this host's own names and each of its resolvers answer for some names; run it inside a VM."""
    from undercroft.dns.observations import observe as observed

    resolver = None if server is None else ResolverAddress.parse(server)
    print(msgspec.json.encode(observed(names, resolver, times, _waiting)).decode())


def _observed(
    home: Path, vm: str | None, names: tuple[str, ...], server: ResolverAddress | None, times: int
) -> list[Observation]:
    if vm is None:
        from undercroft.dns.observations import observe as observed

        return observed(names, server, times, _waiting)
    command = (sys.executable, "-m", "undercroft.cli", "dns", "observe", *names, "--times", str(times))
    if server is not None:
        command = (*command, "--server", str(server))
    status, said = captured(home, vm, command)
    try:
        return msgspec.json.decode(said, type=list[Observation])
    except msgspec.DecodeError as error:
        raise Unavailable(f"Asking from the VM '{vm}' failed with status {status}.", code="VmNotReady") from error


def _waiting(what: str) -> None:
    print(f"{what} …", file=sys.stderr, flush=True)


def _others(arm: Arm, required: Requirements) -> dict[IPv4Address, str]:
    """Addresses of every other endpoint, so that an answer that leads to one of them can be named."""
    ours = {address for name in required.names for address in name.addresses}
    return {address: name for address, name in addresses_of_endpoints(arm).items() if address not in ours}


def summary(comparison: Comparison) -> str:
    total, wrong = len(comparison.verdicts), len(comparison.different) + len(comparison.unreachable)
    if wrong:
        return f"{wrong} of {total} names {'is' if wrong == 1 else 'are'} not as needed"
    return "the one name is as it should be" if total == 1 else f"all {total} names are as they should be"


def _report(required: Requirements, comparison: Comparison, asker: str) -> None:
    if not comparison.verdicts:
        return  # the hosts file has every name
    asked = "hosts file, then resolvers" if comparison.asked == OWN_NAMES else comparison.asked
    print(f"{asked}, asked from {asker}: {summary(comparison)}")
    for verdict in comparison.verdicts:
        if verdict.state != "ok":
            needed = ", ".join(map(str, verdict.name.addresses)) or "an address"
            print(f"  {verdict.state:<12} {verdict.name.fqdn}\n{'':15}needs {needed}; {verdict.said}")
    for line in advice(required, comparison):
        print(f"  {line}")


def _as_json(comparison: Comparison) -> dict[str, object]:
    return {
        "asked": comparison.asked,
        "names": [
            {
                "fqdn": verdict.name.fqdn,
                "needs": [str(address) for address in verdict.name.addresses],
                "state": verdict.state,
                "said": verdict.said,
            }
            for verdict in comparison.verdicts
        ],
    }
