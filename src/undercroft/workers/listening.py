"""Which sockets each network is served by: taken in the fabric, handed to the planes that serve, and looked after.

A network with a namespace of its own has one TLS socket for every address in it, and the name server's at 168.63.129.16 (a site: at the
public resolver's address). On an interface
of the machine each address has its own, because the others are not ours (host driver); the name server is at ``host.address``.

A socket is *deaf* when it does not listen any more although nobody here closed it (``ss -K`` shuts one, for example), and *astray* when
its namespace is not the network's any more. Either is found by ``keep`` and ``astray``, and taken anew.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection, Mapping
from ipaddress import IPv4Address
from typing import Protocol

from undercroft.channel import namespace_of
from undercroft.config import Settings
from undercroft.fabric.specification import Fabric, NetworkSpecification, Transport
from undercroft.vnet.doors import Door
from undercroft.workers.publishing import Names

__all__ = ["Listener", "Listening", "NameService"]

_EVERY = IPv4Address(0)


class Listener(Protocol):
    """The data plane's side of networks (``dataplane.remote.RemoteData``)."""

    @property
    def networks(self) -> frozenset[str]:
        """Those that it was told of."""

    async def set_network(self, network: str, mapping: Mapping[IPv4Address, Door]) -> None:
        """From now on exactly these doors; connections by doors that vanished are cut when it returns."""

    def served(self, network: str, namespace: int) -> frozenset[str]:
        """The addresses on which it listens, in the namespace with this cookie (0: unknown)."""

    async def serve(self, network: str, sock: socket.socket) -> None:
        """Accept on ``sock``, which it owns from now on, in place of one on the same address."""

    def deaf(self, network: str) -> frozenset[str]:
        """The addresses (0.0.0.0: every one) on which it was given a socket that listens no more."""

    async def release(self, network: str, address: str) -> None:
        """Close the socket on that address; its connections go on. Unknown is fine."""

    async def stop(self, network: str) -> None:
        """Close every socket of the network and its connections, and forget its doors; unknown is fine."""


class NameService(Names, Protocol):
    """``dns.remote.RemoteNames``: the sockets of the name server, beside what is published there."""

    @property
    def networks(self) -> frozenset[str]:
        """Those that it was told of."""

    on_lost: Callable[[], None]

    def serves(self, network: str, namespace: int) -> bool:
        """Whether it serves the network already, in the namespace with this cookie (0: unknown)."""

    def deaf(self, network: str) -> bool:
        """Whether the network's TCP socket listens no more."""

    async def serve(self, network: str, udp: socket.socket, tcp: socket.socket) -> None: ...

    async def stop(self, network: str) -> None: ...


class Listening:
    def __init__(self, settings: Settings, fabric: Fabric, listener: Listener, names: NameService) -> None:
        self._settings = settings
        self._fabric = fabric
        self._listener = listener
        self._names = names
        self._own = settings.host_address
        """Where the service itself answers on an interface of the machine."""
        self._taken: dict[str, set[IPv4Address]] = {}
        """Addresses with a TLS socket."""
        self._cookies: dict[str, int] = {}
        """The namespace in which the sockets of a network were taken."""
        self._named: set[str] = set()

    def places(self, wanted: NetworkSpecification, refused: Collection[IPv4Address]) -> frozenset[IPv4Address]:
        """Where TLS is listened for. Addresses that are refused are somebody else's."""
        if self._own is None:
            return frozenset({_EVERY})
        own = {self._own} if self._settings.login_reachable else set()
        return frozenset((wanted.addresses | own) - set(refused))

    async def keep(
        self, key: str, wanted: NetworkSpecification, refused: Collection[IPv4Address] = ()
    ) -> tuple[str, ...]:
        """Take the sockets that are missing and let go of those that are not wanted. Returns in words those that were lost."""
        lost = await self._keep_tls(key, self.places(wanted, refused))
        return (*lost, *await self._keep_names(key, self._own or wanted.resolver, self._own in refused))

    async def _keep_tls(self, key: str, places: frozenset[IPv4Address]) -> list[str]:
        taken = self._taken.setdefault(key, set())
        deaf = {IPv4Address(address) for address in self._listener.deaf(key)} & taken
        for address in deaf | (taken - places):
            await self._listener.release(key, str(address))
            taken.discard(address)
        already = self._listener.served(key, self._cookies.get(key, 0)) - self._listener.deaf(key)
        for address in sorted(places - taken):
            if str(address) in already:  # a data plane that outlived our predecessor
                taken.add(address)
                continue
            sock = await self._fabric.listen(key, None if address == _EVERY else address, 443, Transport.TCP)
            self._cookies[key] = namespace_of(sock)
            await self._listener.serve(key, sock)
            taken.add(address)
        return [f"listener on {_place(address)}:443" for address in sorted(deaf & places)]

    async def _keep_names(self, key: str, address: IPv4Address, refused: bool) -> list[str]:
        deaf = key in self._named and self._names.deaf(key)
        if refused or deaf:
            await self._names.stop(key)
            self._named.discard(key)
        if key in self._named or refused:
            return []
        if deaf or not self._named_elsewhere(key):
            await self._names.stop(key)
            udp = await self._fabric.listen(key, address, 53, Transport.UDP)
            try:
                tcp = await self._fabric.listen(key, address, 53, Transport.TCP)
            except BaseException:
                udp.close()
                raise
            self._cookies[key] = namespace_of(udp)
            await self._names.serve(key, udp, tcp)
        self._named.add(key)
        return [f"name server's listener on {address}:53"] if deaf else []

    def _named_elsewhere(self, key: str) -> bool:
        """A name server that outlived our predecessor goes on with its sockets, if they are in this network's namespace."""
        cookie = self._cookies.get(key)
        return cookie is not None and self._names.serves(key, cookie) and not self._names.deaf(key)

    def lost(self, key: str) -> bool:
        """Whether a socket of the network is deaf. Cheap; asked every second."""
        return bool(self._listener.deaf(key)) or (key in self._named and self._names.deaf(key))

    def compare(self, cookies: Mapping[str, int]) -> frozenset[str]:
        """Networks whose sockets are in another namespace than the fabric says (0: it cannot say). From now on its word is what holds."""
        told = {key: cookie for key, cookie in cookies.items() if cookie}
        astray = frozenset(key for key, cookie in self._cookies.items() if told.get(key, cookie) != cookie)
        self._cookies.update(told)
        return astray

    async def restart(self, key: str, *, exists: bool) -> None:
        """Close what we listen on, and cut the connections, to take everything anew. ``exists``: the fabric has the network still,
        so a name server that serves it goes on, and so does a data plane."""
        cookie = self._cookies.get(key, 0) if exists else 0
        if not self._listener.served(key, cookie):
            await self._listener.stop(key)
        if not exists:
            await self._names.stop(key)
        self._forget(key)
        if cookie:
            self._cookies[key] = cookie

    async def stop(self, key: str) -> None:
        """Sockets in a namespace keep it alive: they are closed before it is removed."""
        await self._listener.stop(key)
        await self._names.stop(key)
        self._forget(key)

    def _forget(self, key: str) -> None:
        self._taken.pop(key, None)
        self._cookies.pop(key, None)
        self._named.discard(key)


def _place(address: IPv4Address) -> str:
    return "*" if address == _EVERY else str(address)
