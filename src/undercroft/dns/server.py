"""The name server: one UDP and one TCP socket per network, one chain per network, one set of public names for all.

Everything runs in one event loop. A query that published records answer is answered inside the read callback; only one that needs an
upstream costs a task. Networks take turns: each gives up the loop after a bounded number of queries, so a VM that floods its own network
delays the others by one turn of it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Generator, Sequence
from functools import partial
from secrets import token_bytes
from typing import Any
from weakref import WeakValueDictionary

import structlog
from dns.edns import EDECode
from dns.rcode import Rcode

from undercroft.clock import Clock
from undercroft.dns import message
from undercroft.dns.allowance import Allowance, Verdict
from undercroft.dns.answers import Answer, Inquiry, UpstreamReply
from undercroft.dns.cache import AnswerCache
from undercroft.dns.chain import Handler, LinkedZones, chain, resolution
from undercroft.dns.forward import Forwarder, UpstreamAddress
from undercroft.dns.publicside import PublicSide, ReverseNames
from undercroft.dns.stream import IDLE_SECONDS, Reply, StreamConnection, StreamListener
from undercroft.dns.views import NetworkView, PublicNames, ZoneView
from undercroft.dns.zones import Zone

__all__ = ["NameServer"]

_log = structlog.get_logger("undercroft.dns")

_DATAGRAM = 4096
"""A longer query is cut here, and then does not parse; no question needs so much."""
_DRAIN = 64
_DRAIN_UNCACHED = 16
"""Datagrams taken per turn of the event loop, and how many of them may miss the cache (some 20 microseconds each): the loop is
shared, with the other networks above all."""
_WAITING = 1024
"""Questions that wait for an upstream, over all networks; one network has at most a quarter of them."""
_CONNECTIONS = 128
"""TCP connections per network; one client has at most a quarter of them."""

_NOT_READY = Answer(Rcode.SERVFAIL, error=(EDECode.NOT_READY, "the names of this network are not published yet"))
_BUSY = Answer(Rcode.SERVFAIL, error=(EDECode.OTHER, "too many questions wait for the upstream resolvers"))
_BROKEN = Answer(Rcode.SERVFAIL, error=(EDECode.OTHER, "the name server failed; its log says why"))


class _Network:
    """What is kept per network, published or served or both."""

    def __init__(self, key: str, allowance: Allowance) -> None:
        self.key = key
        self.zones: LinkedZones | None = None
        self.hosts = ReverseNames({})
        self.handlers: tuple[Handler, ...] | None = None
        self.cache = AnswerCache()
        self.allowance = allowance
        self.udp: socket.socket | None = None
        self.listener: StreamListener | None = None
        self.connections: set[StreamConnection] = set()
        self.waiting: set[asyncio.Task[bytes]] = set()
        """Questions that wait for an upstream."""


class NameServer:
    """Serves the networks it is given sockets for, with the names that were published.

    ``serve`` and ``publish`` come in any order; until both the network's view and the public names are published, the network's
    clients get SERVFAIL, which makes them ask again, where a premature NXDOMAIN would be remembered and a premature public address used.
    """

    def __init__(
        self,
        clock: Clock,
        forward_to: Sequence[str] = (),
        *,
        idle_seconds: float = IDLE_SECONDS,
        connections: int = _CONNECTIONS,
        attempt_seconds: float | None = None,
        total_seconds: float | None = None,
        queries_per_second: int = 0,
    ) -> None:
        """``forward_to``: upstream resolvers, ``address`` or ``address:port``, in order of preference. ``queries_per_second``: what
        one client may ask by UDP (see ``allowance``); 0 is no limit. Raises ``InvalidParameter``."""
        upstreams = [UpstreamAddress.parse(text) for text in forward_to]
        limits = {"attempt_seconds": attempt_seconds, "total_seconds": total_seconds}
        given = {name: value for name, value in limits.items() if value is not None}
        self._forwarder = Forwarder(clock, upstreams, **given) if upstreams else None
        self._idle_seconds = idle_seconds
        self._limit = connections
        self._clock = clock
        self._queries_per_second = queries_per_second
        self._secret = token_bytes(32)
        self._networks: dict[str, _Network] = {}
        self._zones: WeakValueDictionary[tuple[str, int], Zone] = WeakValueDictionary()
        """By name and mapping of records: networks that are linked to one zone share what was parsed of it."""
        self._newest: WeakValueDictionary[str, Zone] = WeakValueDictionary()
        """By name: what was parsed of a zone last, from which its next state is made. Two zones of one name only cost more."""
        self._public: PublicSide | None = None
        self._waiting: set[asyncio.Task[bytes]] = set()

    @property
    def networks(self) -> frozenset[str]:
        """The networks that are served now."""
        return frozenset(name for name, network in self._networks.items() if network.udp is not None)

    async def serve(self, network: str, udp: socket.socket, tcp: socket.socket) -> None:
        """Answer on these bound sockets, ``tcp`` listening. They are ours from now on, closed by ``stop``.

        A network that is served already gets the new sockets in place of the old ones and keeps its names.
        """
        served = self._network(network)
        await self._release(served)
        udp.setblocking(False)
        tcp.setblocking(False)
        loop = asyncio.get_running_loop()

        def connection() -> StreamConnection:
            return StreamConnection(
                lambda wire, client: self._respond(served, wire, client, stream=True),
                lambda made: self._admit(served, made),
                served.connections.discard,
                self._idle_seconds,
            )

        served.listener = StreamListener(tcp, connection)
        served.udp = udp
        loop.add_reader(udp.fileno(), self._drain, served, udp)

    async def stop(self, network: str) -> None:
        """Close the network's sockets and connections. Unknown is fine.

        What was published stays: a network that is served again (its fabric was restarted) has its names at once.
        """
        served = self._networks.get(network)
        if served is not None:
            await self._release(served)

    def withdraw(self, network: str) -> None:
        """Forget what was published for a network that is gone. One that is still served answers SERVFAIL from now on."""
        published = self._networks.get(network)
        if published is None:
            return
        published.zones, published.hosts = None, ReverseNames({})
        self._link(published)
        if published.udp is None:
            del self._networks[network]

    def publish(self, network: str, view: NetworkView) -> None:
        """The next query sees this view. Raises ``InvalidParameter`` naming zone, record and value; then the old view stays."""
        zones = LinkedZones([(self._zone(zone), zone.nxdomain_redirect) for zone in view.zones])
        hosts = ReverseNames(view.hosts)
        published = self._network(network)
        published.zones, published.hosts = zones, hosts
        self._link(published)

    def _zone(self, view: ZoneView) -> Zone:
        key = (view.name.lower(), id(view.records))  # the zone holds the mapping: no other has its id while it lives
        zone = self._zones.get(key)
        if zone is None:
            zone = Zone(view, self._newest.get(key[0]))
            self._zones[key] = self._newest[key[0]] = zone
        return zone

    def publish_public(self, names: PublicNames) -> None:
        """The next query in any network sees these names. Raises ``InvalidParameter``; then the old names stay."""
        self._public = PublicSide(names)
        for network in self._networks.values():
            self._link(network)

    def _network(self, key: str) -> _Network:
        network = self._networks.get(key)
        if network is None:
            network = _Network(key, Allowance(self._queries_per_second, self._clock.monotonic))
            self._networks[key] = network
        return network

    def _link(self, network: _Network) -> None:
        """Make the network's chain of what is published, and forget what the old one answered."""
        network.cache.clear()
        if network.zones is None or self._public is None:
            network.handlers = None
        else:
            network.handlers = chain(network.zones, network.hosts, self._public, forwards=self._forwarder is not None)

    async def close(self) -> None:
        """Stop every network, and drop what still waits for an upstream."""
        for network in tuple(self._networks):
            await self.stop(network)
        tasks = tuple(self._waiting)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._forwarder is not None:
            await self._forwarder.close()

    async def _release(self, served: _Network) -> None:
        if served.udp is not None:
            asyncio.get_running_loop().remove_reader(served.udp.fileno())
            served.udp.close()
            served.udp = None
        if served.listener is not None:
            listener, served.listener = served.listener, None
            await listener.close()
            for connection in tuple(served.connections):
                connection.abort()

    def _admit(self, served: _Network, connection: StreamConnection) -> bool:
        """Not more than there is room for, and not all of it for one client: its neighbours ask by TCP as well."""
        if len(served.connections) >= self._limit:
            return False
        if connection.client is not None:
            own = sum(other.client == connection.client for other in served.connections)
            if own >= max(2, self._limit // 4):
                return False
        served.connections.add(connection)
        return True

    def _drain(self, served: _Network, udp: socket.socket) -> None:
        """Answer what waits on the socket, as much as one turn of the loop allows; the rest makes it readable again."""
        known = served.cache.datagrams
        allowance = served.allowance
        limited = allowance.limit > 0
        if limited and (worst := allowance.begin()) is not None:
            _log.warning(
                "a client asks more than its limit",
                network=served.key,
                client=worst[0],
                questions=worst[1],
                limit=allowance.limit,
            )
        uncached = 0
        for _ in range(_DRAIN):
            try:
                wire, peer = udp.recvfrom(_DATAGRAM)
            except BlockingIOError:
                return
            except OSError as error:
                _log.warning("receiving failed", error=str(error))
                return
            if limited:
                verdict = allowance.spend(peer[0])
                if verdict is Verdict.DROP:
                    continue
                if verdict is Verdict.TRUNCATE:
                    self._truncate(udp, wire, peer)
                    continue
            hit = known.get(wire[2:])
            if hit is not None:
                _send(udp, wire[:2] + hit, peer)
                continue
            reply = self._respond(served, wire, peer[0], stream=False)
            if isinstance(reply, bytes):
                _send(udp, reply, peer)
            elif reply is not None:
                reply.add_done_callback(partial(_send_later, served, udp, peer))
            uncached += 1
            if uncached >= _DRAIN_UNCACHED:
                return

    def _cookie(self, query: message.Query, client: str) -> bytes:
        return message.server_cookie(self._secret, client, query.cookie) if query.cookie else b""

    def _truncate(self, udp: socket.socket, wire: bytes, peer: Any) -> None:
        query = message.read(wire, stream=False)
        if isinstance(query, message.Query):
            _send(udp, message.truncated(query, self._cookie(query, peer[0])), peer)

    def _respond(self, served: _Network, wire: bytes, client: str, *, stream: bool) -> Reply:
        """The outermost layer of this plane: whatever goes wrong inside is logged and answered with SERVFAIL."""
        try:
            return self._answer(served, wire, client, stream)
        except Exception:
            _log.exception("answering failed", query=wire[:512].hex())
            return message.failure(wire, Rcode.SERVFAIL) if len(wire) >= 12 else None

    def _answer(self, served: _Network, wire: bytes, client: str, stream: bool) -> Reply:
        query = message.read(wire, stream=stream)
        if not isinstance(query, message.Query):
            return query
        cookie = self._cookie(query, client)
        key = query.key
        rendered = served.cache.find(key)
        if rendered is None:
            return self._work_out(served, query, key, cookie)
        reply = message.finish(query, rendered, cookie)
        if (
            not stream and not cookie
        ):  # asked before, so perhaps again in the same bytes; who asks once leaves nothing here
            served.cache.keep_datagram(wire, reply)
        return reply

    def _work_out(self, served: _Network, query: message.Query, key: message.Key, cookie: bytes) -> Reply:
        if served.handlers is None:
            return message.finish(query, message.render(query, _NOT_READY), cookie)
        steps = resolution(served.handlers, query.question)
        try:
            inquiry = next(steps)
            while self._forwarder is not None and (remembered := self._forwarder.recall(inquiry)) is not None:
                inquiry = steps.send(remembered)
        except StopIteration as end:
            answer: Answer = end.value
            rendered = message.render(query, answer)
            if answer.lasting:
                served.cache.keep(key, rendered)
            return message.finish(query, rendered, cookie)
        return self._later(served, query, steps, inquiry, cookie)

    def _later(
        self,
        served: _Network,
        query: message.Query,
        steps: Generator[Inquiry, UpstreamReply, Answer],
        inquiry: Inquiry,
        cookie: bytes,
    ) -> Reply:
        if self._forwarder is None or len(self._waiting) >= _WAITING or len(served.waiting) >= _WAITING // 4:
            return message.finish(query, message.render(query, _BUSY), cookie)
        task = asyncio.create_task(self._finish(self._forwarder, query, steps, inquiry, cookie))
        for waiting in (self._waiting, served.waiting):
            waiting.add(task)
            task.add_done_callback(waiting.discard)
        return task

    async def _finish(
        self,
        forwarder: Forwarder,
        query: message.Query,
        steps: Generator[Inquiry, UpstreamReply, Answer],
        inquiry: Inquiry,
        cookie: bytes,
    ) -> bytes:
        try:
            while True:
                inquiry = steps.send(await forwarder.ask(inquiry))
        except StopIteration as end:
            return message.finish(query, message.render(query, end.value), cookie)
        except Exception:
            _log.exception("answering failed", question=str(query.question))
            return message.finish(query, message.render(query, _BROKEN), cookie)


def _send(udp: socket.socket, reply: bytes, peer: Any) -> None:
    try:
        udp.sendto(reply, peer)
    except BlockingIOError:
        pass  # the socket's buffer is full: a datagram may be lost, and its client asks again
    except OSError as error:
        _log.info("sending failed", peer=str(peer), error=str(error))


def _send_later(served: _Network, udp: socket.socket, peer: Any, reply: asyncio.Future[bytes]) -> None:
    # Else the server closes, or the network was stopped or got other sockets meanwhile.
    if not reply.cancelled() and served.udp is udp:
        _send(udp, reply.result(), peer)
