"""dns export and dns watch: configuration files for the DNS servers and hosts files that people keep themselves."""

from __future__ import annotations

import signal
import threading
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from undercroft.cli.kept_files import KeptFiles
from undercroft.cli.local import HomeOption
from undercroft.cli.management import GroupOption, LoginOption, connect
from undercroft.cli.requirements import EndpointsOption, OfNetworkOption, OfVaultOption, Selection, requirements
from undercroft.cli.vms import captured
from undercroft.cli.watcher import Watcher
from undercroft.clock import SystemClock
from undercroft.dns.exports.formats import SEVERAL_FILES, check, render
from undercroft.dns.exports.plan import Mode, Plan
from undercroft.dns.requirements import AZURE_DNS, Requirements, forwarder_addresses
from undercroft.errors import InvalidInput, InvalidParameter, NotFound

__all__ = ["export", "watch"]

FormatOption = Annotated[
    str, Parameter(name="--format", help="bind, unbound, dnsmasq, coredns, windows (PowerShell), hosts or json.")
]
ModeOption = Annotated[
    Literal["forward", "records"] | None,
    Parameter(
        name="--mode",
        help="forward: the server asks Azure DNS; records: it answers by itself. Records for hosts, else forward.",
    ),
]
ForwardOption = Annotated[
    str,
    Parameter(
        name="--forward-to", help="Resolvers, separated by commas: Azure DNS, or one of yours that forwards to it."
    ),
]
TtlOption = Annotated[
    int,
    Parameter(name="--ttl", help="Seconds for which records may be kept; short, because they change as vaults grow."),
]
OutOption = Annotated[
    Path | None,
    Parameter(name="--out", help="A folder, or the file where there is only one. Of a hosts file, a block is ours."),
]
VmOption = Annotated[
    str | None, Parameter(name="--vm", help="With --format hosts, instead of --out: the hosts file of this VM.")
]
InstalledOption = Annotated[
    Path | None,
    Parameter(name="--installed-in", help="The files' folder on the DNS server, where it is not that of --out (bind)."),
]


@dataclass(frozen=True, slots=True)
class Style:
    """How to write and where, checked before anything is asked."""

    format: str
    mode: Mode
    forward_to: tuple[IPv4Address, ...]
    ttl: int
    folder: str

    @classmethod
    def of(
        cls, format: str, mode: Mode | None, forward_to: str, ttl: int, out: Path | None, installed_in: Path | None
    ) -> Style:
        chosen: Mode = mode or ("records" if format in ("hosts", "json") else "forward")
        check(format, chosen)
        if not 0 <= ttl <= 2**31 - 1:
            raise InvalidParameter(f"--ttl {ttl}: a TTL is 0 to 2147483647 seconds (RFC 2181).", target="--ttl")
        folder = str(installed_in or (out or Path("/etc/bind/undercroft")).absolute())
        if format in SEVERAL_FILES and any(sign in folder for sign in '"\\;\n'):
            raise InvalidParameter(f"'{folder}' cannot stand in a configuration file.", target="--installed-in")
        return cls(format, chosen, forwarder_addresses(forward_to.split(",")), ttl, folder)

    def plan(self, required: Requirements) -> Plan:
        return Plan(required, self.mode, self.forward_to, SystemClock().now(), self.ttl, self.folder)


def export(
    *,
    group: GroupOption,
    home: HomeOption,
    endpoint: EndpointsOption = (),
    vault: OfVaultOption = None,
    vnet_name: OfNetworkOption = None,
    format: FormatOption,
    mode: ModeOption = None,
    forward_to: ForwardOption = str(AZURE_DNS),
    ttl: TtlOption = 10,
    out: OutOption = None,
    vm: VmOption = None,
    installed_in: InstalledOption = None,
    login: LoginOption = None,
) -> None:
    """Print or write what a DNS server or a hosts file needs for private endpoints."""
    selection = Selection(group, endpoint, vault, vnet_name)
    target = _target(home, group, format, out, vm)
    style = Style.of(format, mode, forward_to, ttl, target, installed_in)
    plan = style.plan(requirements(connect(home, login), home, selection))
    files = render(format, plan)
    if target is None:
        print("\n".join(f"===== {file.name}\n{file.text}" if len(files) > 1 else file.text for file in files), end="")
        return
    kept = KeptFiles(format, target)
    kept.update(plan)
    kept.reload_mark.unlink(missing_ok=True)
    for file in files:
        print(kept.path(file))


def watch(
    *,
    group: GroupOption,
    home: HomeOption,
    endpoint: EndpointsOption = (),
    vault: OfVaultOption = None,
    vnet_name: OfNetworkOption = None,
    format: FormatOption,
    mode: ModeOption = None,
    forward_to: ForwardOption = str(AZURE_DNS),
    ttl: TtlOption = 10,
    out: OutOption = None,
    vm: VmOption = None,
    installed_in: InstalledOption = None,
    hook: str | None = None,
    once: Annotated[bool, Parameter(negative=())] = False,
    interval: float = 5.0,
    login: LoginOption = None,
) -> None:
    """Keep the files of 'dns export' current as the vault's names grow, until SIGTERM.

    Parameters
    ----------
    hook
        A shell command to run after a change, such as "rndc reload". One that fails is run again.
    once
        Bring the files up to date and end.
    interval
        Seconds between looks at the endpoints.
    """
    selection = Selection(group, endpoint, vault, vnet_name)
    if not 0.1 <= interval <= 86400:
        raise InvalidParameter("--interval is from 0.1 to 86400 seconds.", target="--interval")
    target = _target(home, group, format, out, vm)
    if target is None:
        raise InvalidInput("Where to? Give --out, or --vm for the hosts file of a VM.", target="--out")
    style = Style.of(format, mode, forward_to, ttl, target, installed_in)

    def plan() -> Plan:
        """Connects anew each time: a restarted service has another port, and tokens expire."""
        return style.plan(requirements(connect(home, login), home, selection))

    watcher = Watcher(KeptFiles(format, target), plan, hook, SystemClock())
    if once:
        watcher.look()
        return
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    watcher.run(stop, interval)


def _target(home: Path, group: str, format: str, out: Path | None, vm: str | None) -> Path | None:
    if vm is None:
        return None if out is None else out.absolute()
    if out is not None or format != "hosts":
        raise InvalidInput("--vm goes with --format hosts and without --out.", target="--vm")
    status, said = captured(home, f"{group}/{vm}", ("printenv", "UNDERCROFT_AGENT_HOME"))
    if status:
        raise NotFound(f"The VM '{vm}' does not say where its files are.", code="VmNotReady")
    return Path(said.strip()).parent / "hosts"
