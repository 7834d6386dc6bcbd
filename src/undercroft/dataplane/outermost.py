"""The outermost layer of whatever answers behind a door: every request gets an answer, in the one form of its service, and a line in the log."""

from __future__ import annotations

import sqlite3
from abc import ABC, abstractmethod

import structlog
from aiohttp import web
from sqlalchemy.exc import OperationalError

from undercroft.allowance import Allowance
from undercroft.clock import Clock
from undercroft.config import Settings
from undercroft.dataplane import admission, refusals, wire
from undercroft.dataplane.exchange import Connection, Exchange, PeerGone
from undercroft.dataplane.hosts import Host, Hosts
from undercroft.errors import Misdirected, NotAuthenticated, StorageFull, UndercroftError
from undercroft.trace import correlated, fresh

__all__ = ["REFUSED_BODY", "Outermost"]

log = structlog.get_logger("undercroft.dataplane")

REFUSED_BODY = 1 << 20
FAILED_BODY = 64 << 20
"""Of an admitted call that fails we read on further, so that who is sending a pack sees why it was not kept."""


class Outermost(ABC):
    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._clock = clock
        self._hosts = Hosts(settings.suffixes)
        self._allowance = Allowance(clock, settings.calls_per_second)

    @abstractmethod
    async def respond(self, exchange: Exchange) -> web.StreamResponse:
        """The answer to a request that is for a host of its door; may raise."""

    def ended(self, connection: Connection) -> None:  # noqa: B027
        """The request that this connection carried is answered, or has failed."""

    async def handle(self, request: web.BaseRequest, connection: Connection) -> web.StreamResponse:
        correlation = fresh(client_request_id=request.headers.get("x-ms-client-request-id"))
        with correlated(correlation):
            host = Host(connection.server_name or "-", connection.door.service)
            exchange = Exchange(request, connection, host, correlation, self._clock)
            try:
                self._allowance.meet(connection.address)
                exchange.host = admission.address(
                    connection.door, connection.server_name, request.headers.get("Host"), self._hosts
                )
                response = await self.respond(exchange)
            except UndercroftError as error:
                response = await self._failed(exchange, error)
            except (ConnectionError, TimeoutError):
                self._abort(request)
                raise
            except Exception as error:
                log.exception("call failed", path=request.path, door=connection.door.path, principal=exchange.principal)
                response = await self._failed(exchange, _unexpected(error))
            finally:
                self.ended(connection)
            if response.prepared:
                return response
            exchange.decorate(response)
            return await exchange.finish(response)

    async def _failed(self, exchange: Exchange, error: UndercroftError) -> web.StreamResponse:
        if isinstance(error, PeerGone):
            self.log(exchange, "broken off", reason=error.message)
            self._abort(exchange.request)
            return web.Response(status=400)
        if isinstance(error, (NotAuthenticated, Misdirected)):
            self._allowance.refused(exchange.connection.address)
        self.log(exchange, "failed" if exchange.admitted else "refused", reason=error.code, status=error.status)
        if exchange.sending is not None:  # the headers are out: only a cut shows that the rest is missing
            self._abort(exchange.request)
            return exchange.sending
        whole = await exchange.drain(FAILED_BODY if exchange.admitted else REFUSED_BODY)
        if exchange.door.service in ("blob", "queue"):
            head = exchange.request.method == "HEAD"
            response = wire.render(error, exchange.correlation.request_id, self._clock.now(), head=head)
        else:
            response = refusals.render(error)
        if not whole:
            response.force_close()
        return response

    def log(self, exchange: Exchange, event: str, **more: object) -> None:
        """Never the query: it holds signatures."""
        request, door = exchange.request, exchange.door
        log.info(
            event,
            method=request.method,
            host=exchange.host.name,
            path=request.path[:200],
            door=door.path,
            network=door.network,
            principal=exchange.principal,
            peer=exchange.connection.peer,
            request_id=exchange.correlation.request_id,
            **more,
        )

    def _abort(self, request: web.BaseRequest) -> None:
        if request.transport is not None:
            request.transport.abort()


def _unexpected(error: Exception) -> UndercroftError:
    """What the client hears of an error that is none of the tree's. A full disk under the database is the one it can mend."""
    if isinstance(error, OperationalError) and getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
        return StorageFull(
            "The service's state has no room left on its disk. Nothing was changed; free space and repeat."
        )
    return UndercroftError("The service failed on this call; the request id finds it in the log.")
