"""Tries what this machine allows, instead of guessing from versions and settings.

A forked child does once what the driver will do (user namespace, uid map, network namespace, a link, port 53, a mount) and says
through a pipe where it stopped; what it made goes with it. On a real interface nothing is tried that changes anything.
``choose_driver`` takes the host driver where an interface is set, else the best that works: netns for root, then rootless, then the
loopback simulation. Must be called from a process without other threads (it forks).
"""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from undercroft.errors import InvalidInput, InvalidParameter, LocalProblem, UndercroftError
from undercroft.fabric.capabilities import ABILITIES, DRIVERS, capabilities_of
from undercroft.fabric.interface import Interface, InterfaceOptions, interfaces, require
from undercroft.fabric.namespace import (
    CLONE_NEWNET,
    CLONE_NEWNS,
    bind_mount,
    enter_user_namespace,
    keep_mounts_private,
    unshare,
)
from undercroft.fabric.nftables import why_missing
from undercroft.fabric.rtnetlink import LOOPBACK, Netlink, add_pair, set_link

__all__ = ["Choice", "Finding", "choose_driver", "describe", "survey", "try_driver"]

_AUTOMATIC = ("netns", "rootless", "loopback")
"""Without an interface in the settings: nobody's real network is touched unasked."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a trial of one driver showed. ``step`` is where it failed, None if it did not."""

    driver: str
    step: str | None = None
    reason: str = ""
    advice: str = ""

    @property
    def works(self) -> bool:
        return self.step is None

    def __str__(self) -> str:
        if self.works:
            return f"{self.driver} works"
        return f"{self.driver} fails at {self.step}: {self.reason}. {self.advice}".rstrip()


@dataclass(frozen=True, slots=True)
class Choice:
    driver: str
    findings: tuple[Finding, ...]


_FORBIDDEN = (
    "Something forbids it: a container's seccomp profile (run it with one that allows unshare, setns and mount, and with "
    "CAP_SYS_ADMIN and CAP_NET_ADMIN for the netns driver), or a security module (on Ubuntu: "
    "'sysctl kernel.apparmor_restrict_unprivileged_userns=0'; on Debian: 'sysctl kernel.unprivileged_userns_clone=1')."
)
_ADVICE = {
    ("user namespace", errno.ENOSPC): "Raise the limit, as root: 'sysctl user.max_user_namespaces=15000'.",
    ("user namespace", errno.EINVAL): "This kernel is built without user namespaces (CONFIG_USER_NS).",
    ("network namespace", errno.ENOSPC): "Raise the limit, as root: 'sysctl user.max_net_namespaces=15000'.",
    ("network namespace", errno.EINVAL): "This kernel is built without network namespaces (CONFIG_NET_NS).",
    ("mount namespace", errno.ENOSPC): "Raise the limit, as root: 'sysctl user.max_mnt_namespaces=15000'.",
    ("link", errno.EOPNOTSUPP): "The kernel module veth is missing: 'modprobe veth', as root.",
    ("mount", errno.ENOENT): "Create an empty /etc/resolv.conf; a VM's own is mounted over it.",
}


def try_driver(driver: str, interface: InterfaceOptions | None = None) -> Finding:
    """``interface``: what the host driver would use."""
    if driver == "loopback":
        return Finding(driver)
    if driver == "host":
        return _try_interface(interface)
    if driver == "netns" and os.geteuid() != 0:
        return Finding(driver, "privilege", "this is not root", "Run as root, or use the rootless driver.")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reader)
            os.write(writer, json.dumps(_trial(driver)).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        said = stream.read()
    _, status = os.waitpid(child, 0)
    if not said:
        return Finding(driver, "trial", f"the trial's process ended with status {status}", _FORBIDDEN)
    step, code, reason = json.loads(said)
    if step is None:
        return Finding(driver)
    advice = _ADVICE.get((step, code)) or (_FORBIDDEN if code in (errno.EPERM, errno.EACCES, errno.ENOSYS) else "")
    return Finding(driver, step, reason, advice)


def _try_interface(options: InterfaceOptions | None) -> Finding:
    if options is None:
        advice = "Set host.interface and host.address in undercroft.toml; docs/drivers.md says how."
        return Finding("host", "settings", "no interface is chosen", advice)
    try:
        require(options)
    except UndercroftError as error:
        return Finding("host", f"interface {options.name}", error.message.rstrip("."))
    except OSError as error:
        return Finding("host", f"interface {options.name}", error.strerror or str(error))
    return Finding("host")


def _trial(driver: str) -> tuple[str | None, int, str]:
    """In the child: the step that failed, its error number and the kernel's words; (None, 0, "") if none did."""
    steps: list[tuple[str, Callable[[], None]]] = []
    if driver == "rootless":
        steps.append(("user namespace", enter_user_namespace))
    steps += [
        ("network namespace", lambda: unshare(CLONE_NEWNET)),
        ("mount namespace", lambda: unshare(CLONE_NEWNS)),
        ("link", _try_link),
        ("port 53", _try_port),
        ("mount", _try_mount),
    ]
    for name, step in steps:
        try:
            step()
        except OSError as error:
            # The maps are part of entering; they fail on their own where a security module allows the first half.
            where = "uid map" if str(error.filename or "").startswith("/proc/self/") else name
            return where, error.errno or 0, error.strerror or str(error)
        except LocalProblem as error:
            cause = errno.EOPNOTSUPP if "not supported" in error.message else 0
            return name, cause, error.message.rstrip(".")
    return None, 0, ""


def _try_link() -> None:
    netlink = Netlink()
    try:
        home = os.open("/proc/self/ns/net", os.O_RDONLY)
        mac, peer = bytes.fromhex("123456789abc"), bytes.fromhex("000d3a000001")
        pair = add_pair(
            index=1000,
            name="probe0",
            mac=mac,
            peer_index=1001,
            peer_name="probe1",
            peer_mac=peer,
            peer_namespace=home,
        )
        netlink.send([set_link(LOOPBACK), pair], "a trial")
        os.close(home)
    finally:
        netlink.close()


def _try_port() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as trial:
        trial.bind(("127.0.0.1", 53))


def _try_mount() -> None:
    keep_mounts_private()
    target = Path(os.path.realpath("/etc/resolv.conf"))
    bind_mount(target, target)


def choose_driver(driver: str = "auto", interface: InterfaceOptions | None = None) -> Choice:
    """The named driver if it works here (else ``LocalProblem`` saying what to change), or for ``auto`` the best one.

    ``interface`` is what the settings say: then ``auto`` is the host driver, and no other may be named.
    """
    if interface is not None:
        if driver not in ("auto", "host"):
            raise InvalidInput(
                f"undercroft.toml puts the network on the interface {interface.name}, and the driver {driver} would not. "
                "Take host.interface out, or leave --driver out.",
                target="driver",
            )
        driver = "host"
    if driver == "auto":
        findings = []
        for candidate in _AUTOMATIC:
            findings.append(try_driver(candidate))
            if findings[-1].works:
                break
        return Choice(findings[-1].driver, tuple(findings))
    if driver not in DRIVERS:
        raise InvalidParameter(
            f"There is no driver '{driver}'; choose one of auto, {', '.join(DRIVERS)}.", target="driver"
        )
    finding = try_driver(driver, interface)
    if not finding.works:
        raise LocalProblem(f"The driver {finding}", code="DriverNotPossible")
    return Choice(driver, (finding,))


def survey(chosen: Choice, interface: InterfaceOptions | None = None) -> tuple[Finding, ...]:
    """Every driver, tried; what the choice has tried already is not tried again."""
    known = {finding.driver: finding for finding in chosen.findings}
    return tuple(known.get(driver) or try_driver(driver, interface) for driver in DRIVERS)


def describe(choice: Choice, findings: tuple[Finding, ...] = ()) -> dict[str, Any]:
    """For ``fabric probe``: what the chosen driver can do; ``missing`` says what is not possible, why, and what to change;
    ``drivers`` the same of every driver in ``findings``; ``interfaces`` where the host driver could put its network."""
    missing = {f"driver {finding.driver}": str(finding) for finding in findings or choice.findings if not finding.works}
    described = _abilities(choice.driver)
    return {
        "driver": choice.driver,
        "simulation": choice.driver == "loopback",
        **described["abilities"],
        "missing": missing | described["missing"],
        "drivers": {
            one.driver: {"works": one.works, "why": "" if one.works else str(one), **_abilities(one.driver)}
            for one in findings
        },
        "interfaces": [_interface(one) for one in interfaces()],
    }


def _abilities(driver: str) -> dict[str, Any]:
    no_groups = why_missing(rootless=driver == "rootless") if driver in ("netns", "rootless") else ""
    missing = dict(capabilities_of(driver, no_groups).missing)
    return {"abilities": {name: name not in missing for name in ABILITIES}, "missing": missing}


def _interface(one: Interface) -> dict[str, Any]:
    return {"name": one.name, "up": one.up, "networks": [str(prefix) for prefix in one.on_link]}
