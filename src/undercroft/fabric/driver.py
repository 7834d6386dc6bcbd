"""Drivers: what builds networks on this machine. One contract, four names.

``netns`` (root) and ``rootless`` are the same code; the second runs after the process has entered a user namespace of its own.
``host`` puts the addresses of one network on a real interface (``interface``).
``loopback`` is for machines whose kernel forbids both: a labelled simulation that builds nothing, so that what
needs no network still runs and everything else is refused by name. A driver is used from one thread, the event loop's; what may take
seconds it does in another, and awaits.
"""

from __future__ import annotations

import errno
import os
import secrets
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address
from pathlib import Path
from typing import NoReturn, Protocol

from undercroft.errors import CapabilityMissing, Conflict, LocalProblem, NotFound
from undercroft.fabric import occupants
from undercroft.fabric.capabilities import SIMULATION, capabilities_of
from undercroft.fabric.network import Network, check
from undercroft.fabric.occupants import Record
from undercroft.fabric.specification import Capabilities, Drift, Execution, NetworkSpecification, Transport

__all__ = ["Driver", "LoopbackDriver", "NamespaceDriver"]


class Driver(Protocol):
    """See ``specification.Fabric`` for what each method means. ``apply`` and ``remove`` of one network are called one at a time; during
    them, the other methods, and those two for other networks."""

    @property
    def capabilities(self) -> Capabilities: ...

    async def apply(self, specification: NetworkSpecification) -> tuple[Drift, ...]: ...

    async def remove(self, network: str) -> None: ...

    def networks(self) -> frozenset[str]: ...

    def cookies(self) -> dict[str, int]: ...

    def listen(self, network: str, address: IPv4Address | None, port: int, transport: Transport) -> socket.socket: ...

    def spawn(self, execution: Execution) -> subprocess.Popen[bytes] | int:
        """The started process, or the exit status when it could not be started (said on its standard error)."""

    def close(self) -> None:
        """End everything that lives in the networks and drop them. The files of VMs stay. Nobody awaits an answer any more."""


class NamespaceDriver:
    def __init__(self, name: str, vms: Path, record: Path, no_security_groups: str = "") -> None:
        self._capabilities = capabilities_of(name, no_security_groups)
        self._vms = vms
        self._record = record
        self._mark = secrets.token_hex(8)
        self._boot = Record.current_boot()
        self._networks: dict[str, Network] = {}
        # One thread: the library numbers what it makes by variables of its own, whatever the context.
        self._slow = ThreadPoolExecutor(1, "packet-filters")

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    def _write_record(self) -> None:
        inodes = (host.namespace.inode for network in self._networks.values() for host in network.hosts.values())
        Record(self._boot, self._mark, tuple(sorted(inodes))).write(self._record)

    async def apply(self, specification: NetworkSpecification) -> tuple[Drift, ...]:
        check(specification)
        if specification.filters and not self._capabilities.security_groups:
            reason = dict(self._capabilities.missing)["security groups"]
            raise CapabilityMissing(
                f"Network {specification.id} has security groups, which are not possible here: {reason}."
            )
        network = self._networks.get(specification.id)
        for other in self._networks.values():
            if other is not network and (both := other.hosts.keys() & {host.id for host in specification.hosts}):
                raise Conflict(f"The VM {min(both)} is in network {other.id}; take it out there first.")
        if network is None:
            network = Network(specification.id, self._vms, self._mark, self._write_record, self._slow)
            self._networks[specification.id] = network
        return tuple(await network.apply(specification, self._networks))

    async def remove(self, network: str) -> None:
        found = self._networks.get(network)
        if found is not None:
            for other in found.links.close({id: other.links for id, other in self._networks.items()}):
                self._networks[other].route()
            found.close(keep_files=False)
            del self._networks[network]
            self._write_record()

    def networks(self) -> frozenset[str]:
        return frozenset(self._networks)

    def cookies(self) -> dict[str, int]:
        return {id: network.namespace.netlink.cookie for id, network in self._networks.items()}

    def listen(self, network: str, address: IPv4Address | None, port: int, transport: Transport) -> socket.socket:
        found = self._networks.get(network)
        if found is None:
            raise NotFound(f"There is no network {network} in this fabric.")
        kind = socket.SOCK_STREAM if transport is Transport.TCP else socket.SOCK_DGRAM
        where = "0.0.0.0" if address is None else str(address)
        try:
            return found.namespace.bind(where, port, kind)
        except OSError as error:
            hint = " Something else listens there." if error.errno == errno.EADDRINUSE else ""
            raise LocalProblem(
                f"The kernel refused to listen on {where}:{port}/{transport} in network {network}: "
                f"{os.strerror(error.errno or 0)}.{hint}"
            ) from error

    def spawn(self, execution: Execution) -> subprocess.Popen[bytes] | int:
        for network in self._networks.values():
            if (host := network.hosts.get(execution.host)) is not None:
                return host.spawn(execution)
        raise NotFound(f"There is no VM {execution.host} in this fabric.")

    def close(self) -> None:
        self._slow.shutdown(cancel_futures=True)
        # All at once: looking through every process of the machine is the expensive part.
        occupants.end({host.namespace.inode for network in self._networks.values() for host in network.hosts.values()})
        for network in list(self._networks.values()):
            network.close(keep_files=True)
            del self._networks[network.id]


class LoopbackDriver:
    """Builds nothing. It exists so that management can be tried where namespaces are forbidden; it says so."""

    @property
    def capabilities(self) -> Capabilities:
        return capabilities_of("loopback")

    def _refuse(self, what: str) -> NoReturn:
        raise CapabilityMissing(f"The fabric cannot {what}: {SIMULATION}.")

    async def apply(self, specification: NetworkSpecification) -> tuple[Drift, ...]:
        self._refuse(f"build network {specification.id}")

    async def remove(self, network: str) -> None:
        """There is none, so it is gone."""

    def networks(self) -> frozenset[str]:
        return frozenset()

    def cookies(self) -> dict[str, int]:
        return {}

    def listen(self, network: str, address: IPv4Address | None, port: int, transport: Transport) -> socket.socket:
        self._refuse(f"listen in network {network}")

    def spawn(self, execution: Execution) -> subprocess.Popen[bytes] | int:
        self._refuse(f"run a command in VM {execution.host}")

    def close(self) -> None:
        """Nothing was built."""
