"""HTTP/1.1 exchanges over pooled TLS connections, and nothing above them: no tokens, no retries, no meaning of statuses.

http.client, because the engine's threads are synchronous, it starts in 30 ms, connects to the address that the dialer chose
and trusts the deployment's CA alone. Measured, 32 MiB packs by TLS over loopback, one and three at once: 0.7-1.2 CPU-s/GiB against
obstore's 0.5-0.7 (1.2-1.5 when the pack is in parts, which it joins). A tenth of a second per backup does not buy a second
resolver, a second trust store (obstore adds its CA to the system's) and errors that do not say which leg failed.

A kept connection that the server has closed meanwhile is noticed at the next use and replaced once.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from undercroft.clock import Clock
from undercroft.errors import PeerMisbehaved

from .resolve import Dialer, LegFailed, PathName, Route, Target

__all__ = ["Answer", "Body", "ConnectionLost", "Exchange"]

Body = Sequence[bytes | bytearray | memoryview]
"""The parts of a body, sent one after the other. They are only read, and not kept."""

READ_SECONDS = 90.0
LARGEST_ANSWER = 512 * 2**20
IDLE_PER_TARGET = 4
PRIVATE_GRACE = 15.0
"""How long a private name that worked may fail to connect before the public one is tried: a service that restarts must not
send its agents through the public door (or into its refusal)."""


class ConnectionLost(LegFailed):
    """The connection broke after the request was sent; whether it was carried out is unknown."""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes
    route: Route

    @property
    def door(self) -> PathName | None:
        """By which kind of door the service saw this call come; None when it does not say."""
        said = self.headers.get("x-undercroft-door")
        return said if said in ("private", "public") else None  # type: ignore[return-value]


class Line(http.client.HTTPConnection):
    """An HTTP connection over a socket that the dialer opened."""

    def __init__(self, connection: ssl.SSLSocket, route: Route) -> None:
        super().__init__(route.host)
        self.sock = connection
        self.route = route
        self.auto_open = 0


@dataclass(slots=True)
class Pool:
    idle: list[Line] = field(default_factory=list)
    route: Route | None = None
    failing_since: float | None = None
    """Since when the private name, which worked before, does not connect."""


class Exchange:
    def __init__(self, dialer: Dialer, user_agent: str, clock: Clock, grace: float = PRIVATE_GRACE) -> None:
        self.dialer = dialer
        self._clock = clock
        self._grace = grace
        self._user_agent = user_agent
        self._lock = threading.Lock()
        self._pools: dict[Target, Pool] = {}
        self._closed = False
        self._busy: set[Line] = set()

    def route(self, target: Target) -> Route | None:
        """How this target was last reached in this process."""
        with self._lock:
            pool = self._pools.get(target)
            return pool.route if pool else None

    def send(
        self, target: Target, method: str, path: str, body: Body = (), headers: Mapping[str, str] | None = None
    ) -> Answer:
        """``LegFailed`` when no connection could be made, ``ConnectionLost`` when it broke."""
        line = self._take(target)
        if line is not None:
            try:
                return self._exchange(target, line, method, path, body, headers or {})
            except ConnectionLost:
                pass  # it was idle; the server may have closed it long ago. Once more on a new connection.
        return self._exchange(target, self._open(target), method, path, body, headers or {})

    def close(self) -> None:
        with self._lock:
            self._closed = True
            lines = [line for pool in self._pools.values() for line in pool.idle]
            for pool in self._pools.values():
                pool.idle = []
        for line in lines:
            line.close()

    def abort(self) -> None:
        """Break what is under way, so that whoever waits for it ends now. Later calls work."""
        with self._lock:
            busy = list(self._busy)
        for line in busy:
            with contextlib.suppress(OSError):
                if line.sock is not None:
                    line.sock.shutdown(socket.SHUT_RDWR)

    def _take(self, target: Target) -> Line | None:
        with self._lock:
            pool = self._pools.get(target)
            return pool.idle.pop() if pool and pool.idle else None

    def _open(self, target: Target) -> Line:
        # A route found before is tried by itself first: a private name that times out must not cost its timeout again
        # at every connection. When it fails, the search starts from the private name again.
        known = self.route(target)
        if known is not None and known.path == "public" and target.private is not None:
            try:
                connection, _ = self.dialer.leg(known.host, "public")
                connection.settimeout(READ_SECONDS)
                return Line(connection, known)
            except LegFailed:
                pass
        connection, route = self._dial(target, known)
        connection.settimeout(READ_SECONDS)
        with self._lock:
            pool = self._pools.setdefault(target, Pool())
            pool.route, pool.failing_since = route, None
        return Line(connection, route)

    def _dial(self, target: Target, known: Route | None) -> tuple[ssl.SSLSocket, Route]:
        if target.private is None or known is None or known.path != "private":
            return self.dialer.dial(target)
        try:
            return self.dialer.leg(target.private, "private")
        except LegFailed as error:
            now = self._clock.monotonic()
            with self._lock:
                pool = self._pools[target]
                pool.failing_since = pool.failing_since if pool.failing_since is not None else now
                waited = now - pool.failing_since
            if error.leg == "connect" and waited < self._grace:
                raise
        return self.dialer.dial(target)

    def _exchange(
        self, target: Target, line: Line, method: str, path: str, body: Body, headers: Mapping[str, str]
    ) -> Answer:
        host = line.route.host
        with self._lock:
            self._busy.add(line)
        try:
            line.putrequest(method, path, skip_accept_encoding=True, skip_host=True)
            line.putheader("Host", host.removesuffix(":443"))
            line.putheader("User-Agent", self._user_agent)
            for name, value in headers.items():
                line.putheader(name, value)
            if body or method not in ("GET", "HEAD"):
                line.putheader("Content-Length", str(sum(memoryview(part).nbytes for part in body)))
            line.endheaders()
            send_body(line, body)
            response = line.getresponse()
            data = response.read(LARGEST_ANSWER + 1)
        except (http.client.HTTPException, OSError) as error:
            line.close()
            reason = str(error) or type(error).__name__
            raise ConnectionLost(
                f"{host} at {line.route.address}:{line.route.port}: the connection was lost ({reason})", leg="connect"
            ) from error
        except BaseException:
            line.close()
            raise
        finally:
            with self._lock:
                self._busy.discard(line)
        if len(data) > LARGEST_ANSWER:
            line.close()
            raise PeerMisbehaved(f"{host} sent an answer of more than {LARGEST_ANSWER >> 20} MiB.")
        answer = Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, data, line.route)
        if response.will_close:
            line.close()
        else:
            self._put_back(target, line)
        return answer

    def _put_back(self, target: Target, line: Line) -> None:
        with self._lock:
            pool = self._pools.setdefault(target, Pool())
            if not self._closed and len(pool.idle) < IDLE_PER_TARGET:
                pool.idle.append(line)
                return
        line.close()


def send_body(line: Line, body: Body) -> None:
    """A service that refuses a large body answers and hangs up: then what counts is its answer, if it can still be read."""
    assert line.sock is not None
    try:
        for part in body:
            line.sock.sendall(part)
    except (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError):
        pass  # the answer, or its absence, tells the rest
