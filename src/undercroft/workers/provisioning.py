"""Makes the world match the state, one network at a time: namespaces, doors, records, names.

Nothing here decides anything: what should be is read from state, and every step may be repeated. The fabric may die and come
back empty at any time; whoever notices rebuilds (DESIGN section 4).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from weakref import WeakValueDictionary

import structlog
from sqlalchemy import Connection

from undercroft.clock import Clock
from undercroft.config import Settings
from undercroft.errors import CapabilityMissing, InvalidParameter, NamesUnavailable, Unavailable, UndercroftError
from undercroft.fabric.specification import Drift, Fabric, NetworkSpecification
from undercroft.state.database import Database
from undercroft.vault import connections
from undercroft.vnet import endpoints, networks, zones
from undercroft.vnet.doors import Door
from undercroft.workers import plans, siteplans
from undercroft.workers.listening import Listener, Listening, NameService
from undercroft.workers.publishing import Publisher
from undercroft.workers.reconciliation import Failure, History, Reconciliation

__all__ = ["Provisioner"]

_log = structlog.get_logger(__name__)
_WATCH_SECONDS = 1.0
_NETWORKS_AT_ONCE = 4
_PLURAL = {"networks": "virtual networks", "execute": "virtual machines"}
"""How an ability is called in a refusal, where its name does not say it."""


def _read(connection: Connection, key: str) -> plans.NetworkPlan | siteplans.SitePlan | None:
    return plans.read(connection, key) or siteplans.read(connection, key)


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
    ) -> None:
        self._database = database
        self._clock = clock
        self._settings = settings
        self._fabric = fabric
        self._names = names
        self._listener = listener
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """One per network while somebody holds or awaits it."""
        self._applied: dict[str, NetworkSpecification] = {}
        """What each network was last made to be; a network that is not in it is built, and its listeners taken anew."""
        self._followed: dict[str, int] = {}
        """How many changes of state there were when each network was last read and made."""
        self._shown: dict[str, Mapping[IPv4Address, Door]] = {}
        """By these doors, the public names of their vaults were published."""
        self._refused: dict[str, frozenset[IPv4Address]] = {}
        """Addresses that the fabric could not give a network, as ``apply`` last said."""
        self._built: set[str] = set()
        """Networks that were whole once: if one has to be built again, something took it away."""
        self._unheard: set[str] = set()
        """Networks whose listeners could not be had again since the last reconcile."""
        self.history = History()
        self.last: Reconciliation | None = None
        self._publisher = Publisher(database, settings, names)
        self._listening = Listening(settings, fabric, listener, names)
        self._wake = asyncio.Event()
        self._lost = False
        """Something that we built is gone: everything is looked at again."""
        names.on_lost = self._wake.set
        self._watcher: asyncio.Task[None] | None = None
        self._settling: set[asyncio.Task[None]] = set()

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

    def require(self, *abilities: str) -> None:
        """Raises ``CapabilityMissing`` for what the driver cannot do (a name of ``fabric.capabilities``): better refused than
        never finished."""
        try:
            found = self._fabric.capabilities
        except Unavailable:
            return  # it is being restarted, as what it was
        missing = dict(found.missing)
        for ability in abilities:
            if ability in missing:
                raise CapabilityMissing(f"There are no {_PLURAL.get(ability, ability)} here: {missing[ability]}.")

    def require_network(self, connection: Connection, key: str, prefixes: Collection[IPv4Network]) -> None:
        """Raises ``CapabilityMissing`` or ``InvalidParameter`` unless the driver can have this network beside those there are."""
        with contextlib.suppress(Unavailable):
            found = self._fabric.capabilities
            others = () if found.several_networks else [one for one in networks.keys(connection) if one != key.lower()]
            if others:
                reason = dict(found.missing)["several networks"]
                raise CapabilityMissing(
                    f"There is a virtual network already ({min(others)}), and there can be no other: {reason}."
                )
            if found.interface and (len(prefixes) != 1 or not set(prefixes) <= set(found.on_link)):
                raise InvalidParameter(
                    f"The network on {found.interface} has exactly the address prefix that the interface is attached to: "
                    f"{' or '.join(map(str, found.on_link))}.",
                    code="AddressPrefixNotOnInterface",
                    target="properties.addressSpace.addressPrefixes",
                )

    async def settle(self, network_keys: Iterable[str], timeout: float = 5.0) -> bool:
        """Whether the world matches the state of these networks within ``timeout`` seconds. If not, the tasks that the
        caller's transaction left go on trying."""
        work = [asyncio.create_task(self._settle(key)) for key in dict.fromkeys(network_keys)]
        if not work:
            return True
        self._settling.update(work)
        for task in work:
            task.add_done_callback(self._settled)
        finished, pending = await asyncio.wait(work, timeout=timeout)
        return not pending and all(task.exception() is None for task in finished)

    async def _settle(self, key: str) -> None:
        if key == zones.RECORDS:
            await self._publisher.changes()
        else:
            await self.converge_network(key)

    def _settled(self, task: asyncio.Task[None]) -> None:
        self._settling.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            known = isinstance(error, UndercroftError)
            _log.warning("network not settled", error=str(error), exc_info=None if known else error)

    async def carry_out_network(self, key: str) -> None:
        """The handler of ``network`` tasks."""
        await self.converge_network(key)

    async def carry_out_records(self, _key: str) -> None:
        """The handler of ``records`` tasks: record sets changed, whoever sees them."""
        await self._publisher.changes()

    async def carry_out_vault(self, key: str) -> None:
        """The handler of ``vault`` tasks: something about a vault changed that all its endpoints must follow."""

        def of_vault(connection: Connection) -> tuple[str, ...]:
            keys = [one.endpoint_key for one in connections.of_vault(connection, key)]
            return tuple(sorted({one.value.network_key for one in endpoints.of_vault(connection, keys)}))

        affected = await self._database.read(of_vault)
        _, failures = await self._each(affected)
        _raise_first(failures)
        await self._publisher.accounts((key.lower(),))

    # --- converging --------------------------------------------------------------------------------------------------

    async def converge_all(self) -> tuple[Drift, ...]:
        """As ``reconcile``, but raises the first failure when everything was tried; what had to be changed."""
        found = await self.reconcile()
        _raise_first(found.failures)
        return found.drift

    async def reconcile(self) -> Reconciliation:
        """Look at every network thoroughly, and mend what is not as it should be; networks that no state has are removed. One
        that fails does not hold up the others. ``Unavailable`` when fabric or name server are away."""
        at, start = self._clock.now(), self._clock.monotonic()
        self._unheard.clear()
        await self._publisher.restore()
        known = await self._database.read(plans.keys)
        existing = await self._existing()
        for key in self._listening.compare(await self._fabric.cookies()):
            self._applied.pop(key, None)
        stale = (existing | self._applied.keys() | self._names.networks | self._listener.networks) - set(known)
        drift, failures = await self._each((*known, *sorted(stale)), thorough=True)
        await self._publisher.prune()
        seconds = self._clock.monotonic() - start
        self.last = Reconciliation(at, seconds, len(known), drift, failures)
        return self.last

    async def _each(
        self, keys: Iterable[str], *, thorough: bool = False
    ) -> tuple[tuple[Drift, ...], tuple[Failure, ...]]:
        """A failing network does not hold up the others."""
        slots = asyncio.Semaphore(_NETWORKS_AT_ONCE)
        drift: list[Drift] = []
        failures: list[Failure] = []

        async def one(key: str) -> None:
            async with slots:
                try:
                    drift.extend(await self.converge_network(key, thorough=thorough))
                except Exception as error:
                    failures.append(Failure(key, error))

        await asyncio.gather(*(one(key) for key in keys))
        return tuple(drift), tuple(failures)

    async def converge_network(self, key: str, *, thorough: bool = False) -> tuple[Drift, ...]:
        """Make one network as the state says; ``thorough`` also looks at what seems unchanged."""
        key = key.lower()
        lock = self._locks.get(key)
        if lock is None:
            self._locks[key] = lock = asyncio.Lock()
        async with lock:
            changes = self._database.changes
            try:
                if thorough and self._followed.get(key) == changes and (drift := await self._look(key)) is not None:
                    return drift
                plan = await self._database.read(lambda connection: _read(connection, key))
                if plan is None:
                    await self._remove(key)
                    return ()
                drift = await self._make(plan, thorough)
                self._followed[key] = changes
                return drift
            except NamesUnavailable:
                self._wake.set()
                raise
            except Unavailable:
                self._forget_world()
                raise

    async def _look(self, key: str) -> tuple[Drift, ...] | None:
        """Nothing was written since this network was made as the state says: only the world can differ, so state need not be read
        for it. None: there is more to it, and the plan is needed."""
        wanted = self._applied.get(key)
        if wanted is None or self._refused.get(key) or self._publisher.lost or key not in await self._existing():
            return None
        drift = await self._fabric.apply(wanted)
        if any(one.refused is not None for one in drift):
            return None
        lost = await self._listening.keep(key, wanted)
        drift += tuple(Drift(key, what, created=False) for what in lost)
        self._tell(key, drift)
        return drift

    async def _make(self, plan: plans.NetworkPlan | siteplans.SitePlan, thorough: bool) -> tuple[Drift, ...]:
        key = plan.key
        changed: frozenset[str] = frozenset()
        if isinstance(plan, plans.NetworkPlan) and plan.needs_retreat_or_growth:
            before = plan
            plan, changed = await self._database.write(lambda connection: plans.retreat_and_grow(connection, before))
        # Doors first, and whatever the fabric says: one that is gone must not carry a byte more. One that is new is reached
        # only by its address.
        doors = plan.doors(self._settings)
        await self._listener.set_network(key, doors)
        if changed:
            await self._publisher.changes()
        elif self._publisher.lost:
            await self._publisher.restore()
        existing = await self._existing()
        listening = key in existing and key in self._applied
        if not listening:
            await self._listening.restart(key, exists=key in existing)
            await self._listener.set_network(key, doors)
        drift: tuple[Drift, ...] = ()
        wanted = plan.specification(self._settings)
        if not listening or thorough or self._applied[key] != wanted or self._listening.lost(key):
            drift = await self._fabric.apply(wanted)
            if isinstance(plan, plans.NetworkPlan):
                plan = await self._withhold(plan, {one.refused: one.what for one in drift if one.refused is not None})
            lost = await self._listening.keep(key, wanted, self._refused.get(key, ()))
            drift += tuple(Drift(key, what, created=False) for what in lost)
            if not listening and key in self._built:
                what = "listeners in another namespace" if key in existing else "the whole network"
                drift += (Drift(key, what, created=False),)
            self._applied[key] = wanted
            self._built.add(key)
            self._tell(key, drift)
        elif isinstance(plan, plans.NetworkPlan) and (refused := self._refused.get(key)):
            plan = replace(plan, refused=refused)
        if isinstance(plan, plans.NetworkPlan):
            await self._announce(plan, doors)
        else:
            await self._publisher.network(key, ())
        return drift

    async def _withhold(self, plan: plans.NetworkPlan, refused: Mapping[IPv4Address, str]) -> plans.NetworkPlan:
        """Take back what the network has no address for, and say so of its endpoints."""
        if refused or plan.has_conflicts:
            plan = replace(plan, refused=frozenset(refused))
            if await self._database.write(lambda connection: plans.withhold(connection, plan, refused)):
                await self._publisher.changes()
        self._refused[plan.key] = frozenset(refused)
        return plan

    def _tell(self, key: str, drift: tuple[Drift, ...]) -> None:
        mended = [one.what for one in drift if not one.created and one.refused is None]
        if mended:
            _log.info("network mended", network=key, changes=mended)
            self.history.note(self._clock.now(), drift)
        refused = [one.what for one in drift if one.refused is not None]
        if refused:
            _log.warning("addresses refused", network=key, addresses=refused)

    async def _announce(self, plan: plans.NetworkPlan, doors: Mapping[IPv4Address, Door]) -> None:
        """Everything by which these doors are found, and then their addresses are Ready."""
        ttl = self._settings.record_ttl
        reserved = bool(plan.reserved)
        if reserved:
            await self._database.write(lambda connection: plans.announce(connection, plan, ttl))
        await self._publisher.changes()
        await self._publisher.network(plan.key, plan.links)
        await self._publish_accounts(plan.key, doors)
        if reserved:
            late = await self._database.write(lambda connection: plans.advance(connection, plan, ttl))
            if late:
                await self._publisher.changes()

    async def _existing(self) -> frozenset[str]:
        """What the fabric has. Networks it has lost are ours to build and to listen in again."""
        existing = await self._fabric.networks()
        for key in self._applied.keys() - existing:
            del self._applied[key]
            self._lost = True
        return existing

    async def _remove(self, key: str) -> None:
        await self._listening.stop(key)
        await self._fabric.remove(key)
        self._applied.pop(key, None)
        self._refused.pop(key, None)
        self._followed.pop(key, None)
        self._built.discard(key)
        await self._publisher.forget(key)
        await self._publish_accounts(key, {})
        self._shown.pop(key, None)

    def _forget_world(self) -> None:
        """The fabric is gone: whatever comes back is empty or unknown."""
        self._applied.clear()
        self._lost = True

    async def _publish_accounts(self, key: str, doors: Mapping[IPv4Address, Door]) -> None:
        """Storage names have a CNAME while an endpoint of their vault is approved, which is while there is a door."""
        before = self._shown.get(key, {})
        if before != doors:
            moved = {*before.items()} ^ {*doors.items()}
            await self._publisher.accounts({door.vault_key for _, door in moved if door.vault_key})
            self._shown[key] = doors

    async def _hear(self) -> None:
        """Networks that nobody listens in any more are seen to at once; one where that fails waits for the next reconcile."""
        for key in [key for key in self._applied if key not in self._unheard and self._listening.lost(key)]:
            try:
                await self.converge_network(key)
            except Unavailable:
                raise
            except UndercroftError as error:
                self._unheard.add(key)
                _log.warning("network not mended", network=key, error=error.message)

    # --- watching ----------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Reconcile on a timer, and at once when the fabric lost something (it was restarted, and is empty)."""
        loop = asyncio.get_running_loop()
        due = loop.time() + self._settings.reconcile_seconds
        quiet = False
        pause = _WATCH_SECONDS
        while True:
            # Not wait_for: until Python 3.12 it loses a cancellation that comes in the same turn as what it waits for, and a node
            # whose supervisor and name server were killed at once would never end (python/cpython#86296).
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_WATCH_SECONDS):
                    await self._wake.wait()
            self._wake.clear()
            try:
                if self._publisher.lost:
                    await self._publisher.restore()
                    _log.info("names published again")
                await self._existing()
                await self._hear()
                if self._lost or loop.time() >= due:
                    self._lost = False
                    await self.converge_all()
                    due = loop.time() + self._settings.reconcile_seconds
                    pause = _WATCH_SECONDS
                quiet = False
            except Unavailable as error:  # the fabric or the name server is away; it may be back any moment
                self._lost = self._lost or not isinstance(error, NamesUnavailable)
                if not quiet:
                    _log.warning("world not reconciled", error=error.message)
                quiet = True
            except Exception as error:  # the outermost layer of this plane: the next round tries again
                # A network that cannot be built must not have all the others looked at every second.
                pause = min(pause * 2, max(_WATCH_SECONDS, self._settings.reconcile_seconds))
                due = loop.time() + pause
                unexpected = not isinstance(error, UndercroftError)
                _log.warning("world not reconciled", error=str(error), exc_info=unexpected, again_in=pause)


def _raise_first(failures: tuple[Failure, ...]) -> None:
    if failures:
        raise failures[0].error
