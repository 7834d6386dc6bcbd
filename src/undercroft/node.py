"""The composition root: builds every part of one node, hands each its collaborators, starts and stops them in order.

Nothing else constructs another plane, but for the fabric, the name server and the data plane, which are processes of their own. Order of start: state
and keys first (they may refuse), then what answers (the data plane's process opens them too), then the world (``Provisioner`` makes the fabric match the state), then the tasks that were left, and last the listener of the host and
``connection.json``: who can read that file finds everything ready.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import structlog
from aiohttp import web
from sqlalchemy import func, select

from undercroft.allowance import Allowance
from undercroft.arm import operations
from undercroft.arm.application import Application
from undercroft.arm.listener import Listener
from undercroft.arm.routes import resource_types
from undercroft.capacity import raise_descriptor_limit
from undercroft.clock import Clock, SystemClock
from undercroft.config import Home, Settings
from undercroft.control.client import Request
from undercroft.control.server import ControlServer
from undercroft.dataplane.front import Front
from undercroft.dataplane.remote import RemoteData
from undercroft.dns.remote import RemoteNames
from undercroft.errors import CapabilityMissing, InvalidInput, NotFound, Unavailable, UndercroftError
from undercroft.fabric.reconnecting import ReconnectingFabric
from undercroft.fabric.specification import Execution
from undercroft.identity import deployment as deployments
from undercroft.identity.audiences import Audiences
from undercroft.identity.authority import CertificateAuthority
from undercroft.identity.authorization import Authorization
from undercroft.identity.graph import Graph
from undercroft.identity.login import Login
from undercroft.identity.metadata import Metadata
from undercroft.identity.tokens import Tokens
from undercroft.logs import configure_logs
from undercroft.names import ResourceId
from undercroft.providers import authorization, compute, fabric, network, recovery_services, resources
from undercroft.providers.collaborators import Collaborators
from undercroft.providers.resources.deletion import GroupDeletion
from undercroft.state.database import Connection, Database
from undercroft.state.schema import resources as resource_rows
from undercroft.state.schema import tasks as task_rows
from undercroft.store.filesystem import FilesystemStore
from undercroft.workers import rebuild
from undercroft.workers.manifests import ManifestWriter
from undercroft.workers.provisioning import Provisioner
from undercroft.workers.tasks import TaskRunner

__all__ = ["Node", "main", "rebuild_from_store"]

_log = structlog.get_logger(__name__)

_COUNTED = {
    "virtual networks": "microsoft.network/virtualnetworks",
    "virtual machines": "microsoft.compute/virtualmachines",
    "sites": "undercroft.fabric/sites",
    "private endpoints": "microsoft.network/privateendpoints",
    "vaults": "microsoft.recoveryservices/vaults",
}


_HOSTS = ("microsoft.compute/virtualmachines", "undercroft.fabric/sites/hosts")
"""What commands run in."""


class Node:
    """``start``, then ``finished.wait()``, then ``close``. Must be constructed inside the running loop."""

    def __init__(self, home: Home, settings: Settings, clock: Clock) -> None:
        self._home = home
        self.finished = asyncio.Event()
        self.database = Database.open(home.state)
        self._deployment = deployments.ensure(self.database, home, clock)
        self._authority = CertificateAuthority(home, settings.suffixes, clock)
        self._context = self._authority.server_context()
        tokens = Tokens(home, self._deployment.tenant_id, clock, timedelta(minutes=settings.access_token_minutes))
        audiences = Audiences.of(settings.suffixes)
        rights = Authorization(self.database, clock)
        self._store = FilesystemStore(home.store)
        self._fabric = ReconnectingFabric(home.fabric_socket)
        manifests = ManifestWriter(self.database, self._store)
        front = Front(self._at_front, self._context, settings, clock) if settings.login_reachable else None
        self._data = RemoteData(
            home.data_socket, settings, lambda: home.fingerprint(settings), front, lambda: self._tasks.wake()
        )
        self._names = RemoteNames(home.names_socket)
        self._provisioner = Provisioner(self.database, clock, settings, self._fabric, self._data, self._names)
        self._tasks = TaskRunner(
            self.database,
            clock,
            {
                "network": self._provisioner.carry_out_network,
                "records": self._provisioner.carry_out_records,
                "vault": self._provisioner.carry_out_vault,
                "manifest": manifests.write,
            },
        )
        tenant = self._deployment.tenant_id
        parts = Collaborators(self.database, clock, settings, self._provisioner, tenant)
        kinds = (
            *network.routes(parts),
            *compute.routes(parts),
            *fabric.routes(parts),
            *recovery_services.routes(parts),
        )
        deleters = {  # what refers to others goes before what is referred to
            **compute.deleters(parts),
            **fabric.deleters(parts),
            **network.deleters(parts),
            **recovery_services.deleters(parts),
        }
        self._deletion = GroupDeletion(self.database, clock, rights, deleters)
        types = resource_types(kinds)
        routes = (
            *kinds,
            *resources.routes(self.database, clock, rights, tenant, self._deletion, types),
            *authorization.routes(self.database, clock, rights, tenant),
            *operations.routes(self.database, (*types, "Microsoft.Resources")),
        )
        owner = self._deployment
        self._application = Application(
            routes,
            tokens,
            rights,
            database=self.database,
            audiences=audiences,
            allowance=Allowance(clock, settings.calls_per_second),
            surfaces=(
                Metadata(settings.suffixes),
                Login(self.database, tokens, audiences, clock),
                Graph(self.database, tokens, rights, audiences, owner.subscription_id, owner.object_id, clock),
            ),
        )
        self._control = ControlServer(home.control_socket, self._controlled)
        self._listener: Listener | None = None

    async def start(self, port: int) -> None:
        await self._fabric.connect()
        # The port is what can be taken by others: it is tried before anything is built.
        self._listener = await Listener.open(self._application.handle, self._context, port)
        self._application.base_url = self._resource_manager
        await self._data.connect()
        await self._provisioner.start()
        await self._tasks.start()
        await self._deletion.resume()
        await self._control.start()
        self._write_connection()

    async def close(self) -> None:
        """What was built in the fabric stays: the next node adopts it, or the supervisor ends it."""
        await self._control.close()
        if self._listener is not None:
            await self._listener.close()
        await self._deletion.close()
        await self._tasks.close()
        await self._provisioner.close()
        await self._names.close()
        await self._data.close()
        await self._store.close()
        await self._fabric.close()
        self.database.close()

    @property
    def _resource_manager(self) -> str:
        assert self._listener is not None
        return f"https://localhost:{self._listener.port}"

    async def _at_front(self, request: web.BaseRequest, address: str) -> web.StreamResponse:
        return await self._application.handle(request, address)

    def _write_connection(self) -> None:
        """Whole or not at all, and never readable by others: it holds the deployment's secret."""
        content = {
            "resourceManager": self._resource_manager,
            "loginEndpoint": self._resource_manager,
            "tenantId": self._deployment.tenant_id,
            "subscriptionId": self._deployment.subscription_id,
            "clientId": self._deployment.client_id,
            "clientSecret": self._deployment.client_secret,
            "caBundle": str(self._home.ca_bundle.absolute()),
            "fabric": self._fabric.capabilities.driver,
        }
        target = self._home.connection_file
        temporary = target.with_name(f".{target.name}.new")
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(content)) + b"\n")
        temporary.replace(target)

    # --- the control socket ------------------------------------------------------------------------------------------

    async def _controlled(self, request: Request, descriptors: tuple[int, ...]) -> Any:
        if request.verb == "execute":
            return await self._execute(request, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        if request.verb == "status":
            return await self._status()
        if request.verb == "reconcile":
            return (await self._provisioner.reconcile()).shown()
        raise InvalidInput(f"The control socket does not know '{request.verb}'.", target="verb")

    async def _status(self) -> dict[str, Any]:
        def read(connection: Connection) -> tuple[dict[str, int], list[str]]:
            by_type = select(resource_rows.c.type, func.count()).group_by(resource_rows.c.type)
            found = {str(kind): int(number) for kind, number in connection.execute(by_type).all()}
            failing = select(task_rows.c.kind, task_rows.c.key, task_rows.c.last_error)
            rows = connection.execute(failing.where(task_rows.c.last_error.is_not(None)).limit(20)).all()
            counts = {name: found.get(kind, 0) for name, kind in _COUNTED.items()}
            return counts, [f"{kind} {key}: {error}" for kind, key, error in rows]

        counts, problems = await self.database.read(read)
        pids = {"node": os.getpid(), "supervisor": os.getppid()}
        try:
            pids["fabric"] = (await self._fabric.connect()).pid
        except UndercroftError as error:
            problems.append(error.message)
        if self._names.connected and self._names.pid is not None:
            pids["dns"] = self._names.pid
        else:
            problems.append("The name server is being started again.")
        if self._data.connected and self._data.pid is not None:
            pids["data"] = self._data.pid
        else:
            problems.append("The data plane is being started again; agents wait for it.")
        return {
            "resourceManager": self._resource_manager,
            "fabric": self._fabric.capabilities.driver,
            "pid": os.getpid(),
            "processes": pids,
            "counts": counts,
            "problems": problems,
            "lastReconcile": None if self._provisioner.last is None else self._provisioner.last.shown(),
            "mended": self._provisioner.history.shown(),
        }

    async def _execute(self, request: Request, descriptors: tuple[int, ...]) -> int:
        try:
            if len(descriptors) != 3:
                raise InvalidInput("execute needs the three standard streams.", target="descriptors")
            if not request.arguments:
                raise InvalidInput("There is no command: undercroft vm exec NAME -- COMMAND …", target="command")
            if not self._fabric.capabilities.execute:
                missing = dict(self._fabric.capabilities.missing)
                raise CapabilityMissing(
                    f"This fabric cannot run commands in VMs: {missing.get('execute', '')}".rstrip(": ")
                )
            host = await self.database.read(lambda connection: _find_vm(connection, request.vm or ""))
        except BaseException:
            for descriptor in descriptors:
                os.close(descriptor)
            raise
        stdin, stdout, stderr = descriptors
        return await self._fabric.execute(
            Execution(host, request.arguments, request.environment, request.directory, stdin, stdout, stderr)
        )


def _find_vm(connection: Connection, name: str) -> str:
    """Key of the VM, or host of a site, ``name`` or ``group/name``; several of one name need the group."""
    group, _, plain = name.rpartition("/")
    wanted = resource_rows.c.type.in_(_HOSTS) & (func.lower(resource_rows.c.name) == plain.lower())
    rows = connection.execute(select(resource_rows.c.key, resource_rows.c.id).where(wanted)).all()
    found = {str(key): _places(ResourceId.parse(str(id))) for key, id in rows}
    if group:
        found = {key: places for key, places in found.items() if group.lower() in map(str.lower, places)}
    if not found:
        raise NotFound(
            f"There is no VM '{name}'. 'undercroft vm list' and 'undercroft site host-list' show those there are."
        )
    if len(found) > 1:
        places = ", ".join(sorted(" in ".join(reversed(places)) for places in found.values()))
        raise InvalidInput(
            f"'{plain}' is in several places ({places}): say in which group with -g, or in which site as SITE/{plain}.",
            target="name",
        )
    return next(iter(found))


def _places(host: ResourceId) -> tuple[str, ...]:
    """The names by which a host is told from others of its name: its group, and its site if it is in one."""
    return (host.group or "", *host.names[:-1])


async def rebuild_from_store(home: Home) -> rebuild.Report:
    """``undercroft rebuild``: the rows about vaults, containers and points, made again from the store."""
    clock = SystemClock()
    home.run.mkdir(mode=0o700, parents=True, exist_ok=True)
    database = Database.open(home.state)
    store = FilesystemStore(home.store)
    try:
        deployments.ensure(database, home, clock)
        return await rebuild.rebuild(database, store, clock, home.settings().suffixes)
    finally:
        await store.close()
        database.close()


async def _run(home: Home, port: int, ready: int | None, go: int | None) -> None:
    loop = asyncio.get_running_loop()
    node = Node(home, home.settings(), SystemClock())
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, node.finished.set)
    try:
        if go is not None:  # nothing is served yet, so nothing is kept waiting
            said = os.read(go, 1)
            os.close(go)
            if not said:
                raise Unavailable("The fabric process did not start.")
        await node.start(port)
        if ready is not None:
            os.write(ready, b"1")
            os.close(ready)
        await node.finished.wait()
    finally:
        await node.close()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m undercroft.node", allow_abbrev=False)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--port", type=int, default=8443)
    parser.add_argument("--ready-fd", type=int)
    parser.add_argument("--go-fd", type=int, help="a byte is read from it before the fabric is asked for anything")
    chosen = parser.parse_args(arguments)
    configure_logs()
    raise_descriptor_limit()
    try:
        asyncio.run(_run(Home(chosen.home), chosen.port, chosen.ready_fd, chosen.go_fd))
    except UndercroftError as error:
        print(f"node: {error.message}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
