"""Makes the world match the state, one network at a time: namespaces, doors, records, names.

Nothing here decides anything: what should be is read from state, and every step may be repeated. The fabric may die and come
back empty at any time; whoever notices rebuilds (DESIGN section 4).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address
from typing import Protocol
from weakref import WeakValueDictionary

import structlog
from sqlalchemy import Connection, select

from undercroft.clock import Clock
from undercroft.config import Settings
from undercroft.dns.views import NetworkView, PublicNames
from undercroft.errors import CapabilityMissing, InvalidInput, Unavailable, UndercroftError
from undercroft.fabric.specification import WIRE_ADDRESS, Drift, Fabric, NetworkSpecification, Transport
from undercroft.state.database import Database
from undercroft.state.schema import resources
from undercroft.vault import connections
from undercroft.vnet import endpoints, networks
from undercroft.vnet.doors import Door
from undercroft.workers import plans

__all__ = ["DoorTable", "Listener", "NameService", "Provisioner"]

_log = structlog.get_logger(__name__)
_WATCH_SECONDS = 1.0
_NETWORKS_AT_ONCE = 4


class Listener(Protocol):
    """The data plane's side of a network: one TLS listener (``dataplane.listener.DataPlane``)."""

    async def serve(self, network: str, sock: socket.socket) -> None:
        """Accept on ``sock``, which it owns from now on."""

    async def stop(self, network: str) -> None:
        """Close the listener and its connections; unknown is fine."""


class NameService(Protocol):
    """``dns.server.NameServer``."""

    async def serve(self, network: str, udp: socket.socket, tcp: socket.socket) -> None: ...

    async def stop(self, network: str) -> None: ...

    def publish(self, network: str, view: NetworkView) -> None: ...

    def withdraw(self, network: str) -> None:
        """Forget what was published for a network that is gone."""

    def publish_public(self, names: PublicNames) -> None: ...


class DoorTable(Protocol):
    """``dataplane.doors.Doors``."""

    def set_network(self, network: str, mapping: Mapping[IPv4Address, Door]) -> None:
        """From now on exactly these; connections by doors that vanished are closed."""

    def remove_network(self, network: str) -> None: ...


class Provisioner:
    """``start`` builds everything and keeps watching; ``settle`` is what an ARM handler awaits after its transaction."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        settings: Settings,
        fabric: Fabric,
        listener: Listener,
        names: NameService,
        doors: DoorTable,
    ) -> None:
        self._database = database
        self._clock = clock
        self._settings = settings
        self._fabric = fabric
        self._listener = listener
        self._names = names
        self._doors = doors
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """One per network while somebody holds or awaits it."""
        self._applied: dict[str, NetworkSpecification] = {}
        """What each network was last made to be; a network that is not in it is built, and its listeners taken anew."""
        self._views: dict[str, NetworkView] = {}
        self._shown: dict[str, Mapping[IPv4Address, Door]] = {}
        self._public: PublicNames | None = None
        self._publishing = asyncio.Lock()
        self._lost = False
        """Something that we built is gone: everything is looked at again."""
        self._watcher: asyncio.Task[None] | None = None
        self._settling: set[asyncio.Task[tuple[Drift, ...]]] = set()

    # --- from outside ------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Build every network, then reconcile on a timer and whenever the fabric was restarted. Does not raise when the
        fabric is away: it is watched for."""
        try:
            await self.converge_all()
        except UndercroftError as error:
            self._lost = True
            _log.warning("world not built yet", error=error.message)
        self._watcher = asyncio.create_task(self._watch(), name="provisioning")

    async def close(self) -> None:
        """Stop watching. What was built stays (a restarted service adopts it); the listeners belong to their planes."""
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher
        if self._settling:
            await asyncio.wait(self._settling, timeout=5)

    def require_networks(self) -> None:
        """Raises ``CapabilityMissing`` where networks cannot be built at all: better refused than never finished."""
        try:
            found = self._fabric.capabilities
        except Unavailable:
            return  # it is being restarted, as what it was
        if not found.isolation:
            reason = dict(found.missing).get("networks", f"the driver {found.driver} builds none")
            raise CapabilityMissing(f"There are no virtual networks here: {reason}.")

    async def settle(self, network_keys: Iterable[str], timeout: float = 5.0) -> bool:
        """Whether the world matches the state of these networks within ``timeout`` seconds. If not, the tasks that the
        caller's transaction left go on trying."""
        work = [asyncio.create_task(self.converge_network(key)) for key in dict.fromkeys(network_keys)]
        if not work:
            return True
        self._settling.update(work)
        for task in work:
            task.add_done_callback(self._settled)
        finished, pending = await asyncio.wait(work, timeout=timeout)
        return not pending and all(task.exception() is None for task in finished)

    def _settled(self, task: asyncio.Task[tuple[Drift, ...]]) -> None:
        self._settling.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            known = isinstance(error, UndercroftError)
            _log.warning("network not settled", error=str(error), exc_info=None if known else error)

    async def carry_out_network(self, key: str) -> None:
        """The handler of ``network`` tasks."""
        await self.converge_network(key)

    async def carry_out_vault(self, key: str) -> None:
        """The handler of ``vault`` tasks: something about a vault changed that all its endpoints must follow."""

        def of_vault(connection: Connection) -> tuple[str, ...]:
            keys = [one.endpoint_key for one in connections.of_vault(connection, key)]
            return tuple(sorted({one.value.network_key for one in endpoints.of_vault(connection, keys)}))

        affected = await self._database.read(of_vault)
        await self._each(affected)
        await self.publish_public()

    # --- converging --------------------------------------------------------------------------------------------------

    async def converge_all(self) -> tuple[Drift, ...]:
        """Every network, thoroughly; networks that no state has are removed. Returns what had to be mended."""

        def keys_of(connection: Connection) -> tuple[str, ...]:
            query = select(resources.c.key).where(resources.c.type == networks.NETWORK_TYPE)
            return tuple(connection.execute(query.order_by(resources.c.key)).scalars())

        await self.publish_public()
        known = await self._database.read(keys_of)
        existing = await self._existing()
        stale = (existing | self._applied.keys()) - set(known)
        return await self._each((*known, *sorted(stale)), thorough=True)

    async def _each(self, keys: Iterable[str], *, thorough: bool = False) -> tuple[Drift, ...]:
        """A failing network does not hold up the others; the first failure is raised when all were tried."""
        slots = asyncio.Semaphore(_NETWORKS_AT_ONCE)

        async def one(key: str) -> tuple[Drift, ...]:
            async with slots:
                return await self.converge_network(key, thorough=thorough)

        results = await asyncio.gather(*(one(key) for key in keys), return_exceptions=True)
        drift: list[Drift] = []
        for result in results:
            if isinstance(result, BaseException):
                raise result
            drift.extend(result)
        return tuple(drift)

    async def converge_network(self, key: str, *, thorough: bool = False) -> tuple[Drift, ...]:
        """Make one network as the state says; ``thorough`` also looks at what seems unchanged."""
        key = key.lower()
        lock = self._locks.get(key)
        if lock is None:
            self._locks[key] = lock = asyncio.Lock()
        async with lock:
            try:
                plan = await self._database.read(lambda connection: plans.read(connection, key))
                if plan is None:
                    await self._remove(key)
                    return ()
                return await self._make(plan, thorough)
            except Unavailable:
                self._forget_world()
                raise

    async def _make(self, plan: plans.NetworkPlan, thorough: bool) -> tuple[Drift, ...]:
        key = plan.key
        changed: frozenset[str] = frozenset()
        if plan.needs_retreat_or_growth:
            plan, changed = await self._database.write(lambda connection: plans.retreat_and_grow(connection, plan))
        # Doors first, and whatever the fabric says: one that is gone must not carry a byte more. One that is new is reached
        # only by its address.
        doors = plan.doors(self._settings)
        self._doors.set_network(key, doors)
        await self._publish_changed(changed)
        listening = key in await self._existing() and key in self._applied
        if not listening:
            await self._stop_listening(key)
            self._doors.set_network(key, doors)
        drift: tuple[Drift, ...] = ()
        wanted = plan.specification(self._settings)
        if not listening or thorough or self._applied[key] != wanted:
            drift = await self._fabric.apply(wanted)
            if not listening:
                await self._listen(key)
            self._applied[key] = wanted
            if not all(one.created for one in drift):
                _log.info("network mended", network=key, changes=[one.what for one in drift if not one.created])
        if plan.reserved:
            ttl = self._settings.record_ttl
            changed = await self._database.write(lambda connection: plans.announce(connection, plan, ttl))
            await self._publish_names(key, changed, doors)
            changed = await self._database.write(lambda connection: plans.advance(connection, plan, ttl))
            await self._publish_changed(changed)
        await self._publish_names(key, frozenset(), doors)
        return drift

    async def _existing(self) -> frozenset[str]:
        """What the fabric has. Networks it has lost are ours to build and to listen in again."""
        existing = await self._fabric.networks()
        for key in self._applied.keys() - existing:
            del self._applied[key]
            self._lost = True
        return existing

    async def _listen(self, key: str) -> None:
        taken: list[socket.socket] = []
        try:
            for address, port, transport in (
                (None, 443, Transport.TCP),
                (WIRE_ADDRESS, 53, Transport.UDP),
                (WIRE_ADDRESS, 53, Transport.TCP),
            ):
                taken.append(await self._fabric.listen(key, address, port, transport))
        except BaseException:
            for sock in taken:
                sock.close()
            raise
        https, udp, tcp = taken
        await self._listener.serve(key, https)
        await self._names.serve(key, udp, tcp)

    async def _stop_listening(self, key: str) -> None:
        """Sockets in a namespace keep it alive: they are closed before it is removed or built again."""
        await self._listener.stop(key)
        await self._names.stop(key)

    async def _remove(self, key: str) -> None:
        self._doors.remove_network(key)
        await self._stop_listening(key)
        self._names.withdraw(key)
        await self._fabric.remove(key)
        self._applied.pop(key, None)
        self._views.pop(key, None)
        self._shown.pop(key, None)
        await self.publish_public()

    def _forget_world(self) -> None:
        """The fabric is gone: whatever comes back is empty or unknown."""
        self._applied.clear()
        self._lost = True

    # --- names -------------------------------------------------------------------------------------------------------

    async def _publish(self, key: str) -> None:
        async with self._publishing:  # an older view must not be read before and published after a newer one
            view = await self._database.read(lambda connection: plans.view(connection, key))
            if self._views.get(key) == view:
                return
            try:
                self._names.publish(key, view)
            except InvalidInput as error:  # one record that cannot be served must not take the network down with it
                _log.error("names not published; the old ones stay", network=key, error=error.message)
            else:
                self._views[key] = view

    async def _publish_names(self, key: str, zone_keys: frozenset[str], doors: Mapping[IPv4Address, Door]) -> None:
        """Everything by which these doors are found: the records in private zones, and the public names' aliases."""
        await self._publish_changed(zone_keys)
        await self._publish(key)
        if self._shown.get(key) != doors:  # storage names have a CNAME while an endpoint is approved
            await self.publish_public()
            self._shown[key] = doors

    async def _publish_changed(self, zone_keys: frozenset[str]) -> None:
        """To every network that sees one of these zones and was built."""
        if zone_keys:
            for key in await self._database.read(lambda connection: plans.seeing(connection, zone_keys)):
                if key in self._views:
                    await self._publish(key)

    async def publish_public(self) -> None:
        """The deployment's own names; storage names change with accounts and approvals."""
        async with self._publishing:
            names = await self._database.read(lambda connection: plans.public_names(connection, self._settings))
            if names != self._public:
                self._names.publish_public(names)
                self._public = names

    # --- watching ----------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Reconcile on a timer, and at once when the fabric lost something (it was restarted, and is empty)."""
        loop = asyncio.get_running_loop()
        due = loop.time() + self._settings.reconcile_seconds
        quiet = False
        pause = _WATCH_SECONDS
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            try:
                await self._existing()
                if self._lost or loop.time() >= due:
                    self._lost = False
                    await self.converge_all()
                    due = loop.time() + self._settings.reconcile_seconds
                    pause = _WATCH_SECONDS
                quiet = False
            except Unavailable as error:  # the fabric is away; it may be back any moment
                self._lost = True
                if not quiet:
                    _log.warning("world not reconciled", error=error.message)
                quiet = True
            except Exception as error:  # the outermost layer of this plane: the next round tries again
                # A network that cannot be built must not have all the others looked at every second.
                pause = min(pause * 2, max(_WATCH_SECONDS, self._settings.reconcile_seconds))
                due = loop.time() + pause
                unexpected = not isinstance(error, UndercroftError)
                _log.warning("world not reconciled", error=str(error), exc_info=unexpected, again_in=pause)
