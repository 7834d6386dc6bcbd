"""From a request to its answer: address, caller, admission, service. The outermost layer of the data plane.

The order is protocol.md section 2; each step has its reason in ``admission``. Nothing reads a byte of the body before
``admitted`` is logged.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol
from urllib.parse import unquote

import structlog
from aiohttp import web
from sqlalchemy.exc import OperationalError

from undercroft.allowance import Allowance
from undercroft.clock import Clock
from undercroft.config import Settings
from undercroft.dataplane import admission, backup, queue, sas, wire
from undercroft.dataplane.admission import Bearer, Caller, VaultAudience, VaultRule
from undercroft.dataplane.backup import BackupService, Visit
from undercroft.dataplane.blob import BlobService, Target, operation_name
from undercroft.dataplane.exchange import Connection, Exchange, PeerGone
from undercroft.dataplane.hosts import Host, Hosts
from undercroft.dataplane.paths import PathNotes
from undercroft.dataplane.sessions import KeepVault, Sessions
from undercroft.errors import (
    CapabilityMissing,
    InvalidInput,
    MethodNotAllowed,
    Misdirected,
    NotAuthenticated,
    NotFound,
    StorageFull,
    UndercroftError,
    UnknownField,
)
from undercroft.identity.tokens import Claims
from undercroft.names import region, regions
from undercroft.state.database import Connection as DatabaseConnection
from undercroft.state.database import Database
from undercroft.store.store import Store
from undercroft.trace import correlated, fresh
from undercroft.vault import accounts, containers, vaults
from undercroft.vault.accounts import Account
from undercroft.vault.containers import Container
from undercroft.vault.vaults import VaultRecord

__all__ = ["Application", "Front", "Verifier"]

log = structlog.get_logger("undercroft.dataplane")

_WATCH_SECONDS = 1.0
REFUSED_BODY = 1 << 20
FAILED_BODY = 64 << 20
"""Of an admitted call that fails we read on further, so that who is sending a pack sees why it was not kept."""

Front = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Verifier(Protocol):
    """What we need of ``identity.tokens.Tokens``."""

    tenant: str

    def verify(self, token: str, audiences: VaultAudience, /) -> Claims: ...


@dataclass(frozen=True, slots=True)
class _Known:
    caller: Caller
    vault: VaultRecord | None
    container: Container | None = None


class Application:
    def __init__(
        self,
        database: Database,
        store: Store,
        tokens: Verifier,
        settings: Settings,
        clock: Clock,
        keep_vault: KeepVault,
        front: Front | None,
    ) -> None:
        self._database = database
        self._tokens = tokens
        self._clock = clock
        self._front = front
        self._hosts = Hosts(settings.suffixes)
        self._audience = VaultAudience(tokens.tenant)
        self.sessions = Sessions(database, store, settings, clock, keep_vault)
        self._backup = BackupService(database, store, self.sessions, settings, clock)
        self._blob = BlobService(store)
        self._paths = PathNotes(database, clock)
        self._allowance = Allowance(clock, settings.calls_per_second)
        self._outside: dict[Connection, str] = {}
        """Admitted by the public side and not answered yet: the vault's key."""

    async def handle(self, request: web.BaseRequest, connection: Connection) -> web.StreamResponse:
        correlation = fresh(client_request_id=request.headers.get("x-ms-client-request-id"))
        with correlated(correlation):
            service = connection.door.service
            host = Host(connection.server_name or "-", service)
            exchange = Exchange(request, connection, host, correlation, self._clock)
            try:
                self._allowance.meet(_address(connection))
                exchange.host = admission.address(
                    connection.door, connection.server_name, request.headers.get("Host"), self._hosts
                )
                if service in ("login", "management", "front"):
                    return await exchange.finish(await self._pass_on(exchange))
                response = await (self._serve_backup if service == "backup" else self._serve_storage)(exchange)
                if not await exchange.drain(REFUSED_BODY):  # a body that the call had no use for
                    response.force_close()
            except UndercroftError as error:
                response = await self._failed(exchange, error)
            except (ConnectionError, TimeoutError):
                self._abort(request)
                raise
            except Exception as error:
                log.exception("call failed", path=request.path, door=connection.door.path, principal=exchange.principal)
                response = await self._failed(exchange, _unexpected(error))
            finally:
                self._outside.pop(connection, None)
            if response.prepared:
                return response
            exchange.decorate(response)
            return await exchange.finish(response)

    async def watch_public_side(self) -> None:
        """Until cancelled: cut calls by the public side whose vault has refused it since they were admitted."""
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            if not (keys := frozenset(self._outside.values())):
                continue
            try:
                closed = await self._database.read(partial(_closed, keys=keys))
            except Exception as error:  # the next round asks again
                log.error("network rules not read", error=str(error))
                continue
            for connection, key in list(self._outside.items()):
                if key in closed:
                    log.info("connection cut", reason="public access disabled", door=connection.door.path, vault=key)
                    connection.cut()

    async def _pass_on(self, exchange: Exchange) -> web.StreamResponse:
        if self._front is None:
            raise NotFound(f"'{exchange.host.name}' is not served here.")
        connection = exchange.connection
        exchange.request["peer"] = _address(connection)
        self._allowance.take(_address(connection))  # nobody is known yet
        return await self._front(exchange.request)

    # --- the backup service --------------------------------------------------------------------------------------

    async def _serve_backup(self, exchange: Exchange) -> web.StreamResponse:
        request = exchange.request
        if request.path.endswith("/CommonProtectionCatalogService.svc") and request.method == "GET":
            return web.Response(text="")  # what pre-registration checks ask of prot1
        if _is_soap(request):
            raise NotFound(
                "This service does not speak the SOAP protocol of Azure Backup. Use the agent of this deployment; its protocol "
                "is JSON under /v1.",
                code="SoapNotServed",
            )
        presented = admission.credential("backup", request.headers, request.query)
        assert isinstance(presented, Bearer)
        claims = self._tokens.verify(presented.token, self._audience)
        exchange.principal = f"{claims.kind}:{claims.client_id}"
        self._allowance.take(claims.client_id)
        known = self._database.look(partial(_read_caller, claims=claims))
        found = backup.find_call(request.method, request.path)
        kinds = (found[0].kind,) if found else ("Container", "VaultCredential")
        admission.enter(exchange.door, exchange.host, known.caller, _rule(known.vault), kinds)
        assert known.vault is not None
        self._admitted(exchange, known.vault)
        if found is None:
            raise _no_such_call(request.method, request.path)
        call, parameters = found
        admission.secondary(exchange.door, call.reads_points)
        for name in request.query:
            if name not in call.query:
                raise UnknownField(f"The query parameter '{name[:80]}' is not understood by this call.")
        visit = Visit(exchange, known.vault, claims.object_id, claims.audience, known.container, parameters)
        if known.container is not None:
            await self._paths.note(known.container.id, "backup", exchange.door)
        return await call.handler(self._backup, visit)

    # --- storage -------------------------------------------------------------------------------------------------

    async def _serve_storage(self, exchange: Exchange) -> web.StreamResponse:
        request, name = exchange.request, exchange.host.account
        assert name is not None
        query = _query(request)
        admission.credential(exchange.host.service, request.headers, query)
        container, blob = _resource(request)
        token = sas.parse(query)
        exchange.principal = f"Sas:{name}/{container}"
        found = self._database.look(partial(_read_account, name=name, container=container))
        if found is None:
            raise sas.unknown_account()
        account, known = found
        sas.verify(token, account.name, account.signing_key, container, blob, self._clock.now())
        admission.enter(exchange.door, exchange.host, known.caller, _rule(known.vault), ("Sas",))
        assert known.vault is not None
        self._admitted(exchange, known.vault)
        if known.container is not None:
            await self._paths.note(known.container.id, exchange.host.service, exchange.door)
        if exchange.host.service == "queue":
            raise queue.refuse(request.method, request.path, query)
        if not container:
            raise CapabilityMissing(
                f"The operation '{operation_name(request.method, query.get('comp', ''), False)}' of the "
                "account is not implemented by this service."
            )
        if known.container is None:
            raise NotFound(f"The container '{container}' does not exist.", code="ContainerNotFound")
        target = Target(known.vault.region, account.name, account.purpose, container, blob)
        return await self._blob.serve(exchange, target, token, query)

    # --- ends ----------------------------------------------------------------------------------------------------

    def _admitted(self, exchange: Exchange, vault: VaultRecord) -> None:
        exchange.admitted = True
        if exchange.door.public:
            self._outside[exchange.connection] = vault.key
        self._log(exchange, "admitted")

    async def _failed(self, exchange: Exchange, error: UndercroftError) -> web.StreamResponse:
        if isinstance(error, PeerGone):
            self._log(exchange, "broken off", reason=error.message)
            self._abort(exchange.request)
            return web.Response(status=400)
        if isinstance(error, (NotAuthenticated, Misdirected)):
            self._allowance.refused(_address(exchange.connection))
        self._log(exchange, "failed" if exchange.admitted else "refused", reason=error.code, status=error.status)
        if exchange.sending is not None:  # the headers are out: only a cut shows that the rest is missing
            self._abort(exchange.request)
            return exchange.sending
        whole = await exchange.drain(FAILED_BODY if exchange.admitted else REFUSED_BODY)
        if exchange.door.service in ("blob", "queue"):
            head = exchange.request.method == "HEAD"
            response = wire.render(error, exchange.correlation.request_id, self._clock.now(), head=head)
        else:
            response = backup.render(error)
        if not whole:
            response.force_close()
        return response

    def _log(self, exchange: Exchange, event: str, **more: object) -> None:
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


def _address(connection: Connection) -> str:
    return f"{connection.door.network} {connection.peer}"


def _unexpected(error: Exception) -> UndercroftError:
    """What the client hears of an error that is none of the tree's. A full disk under the database is the one it can mend."""
    if isinstance(error, OperationalError) and getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
        return StorageFull(
            "The service's state has no room left on its disk. Nothing was changed; free space and repeat."
        )
    return UndercroftError("The service failed on this call; the request id finds it in the log.")


def _rule(vault: VaultRecord | None) -> VaultRule | None:
    if vault is None:
        return None
    home = region(vault.region)
    pair = None if home.pair is None else regions().get(home.pair)
    return VaultRule(
        vault.key, vault.vault_id, home.geo_code, vault.public_access, None if pair is None else pair.geo_code
    )


def _closed(connection: DatabaseConnection, keys: frozenset[str]) -> frozenset[str]:
    """Those of the vaults that let nobody in by the public side (any more)."""
    found = ((key, vaults.get(connection, key)) for key in keys)
    return frozenset(key for key, vault in found if vault is None or not vault.public_access)


def _read_caller(connection: DatabaseConnection, claims: Claims) -> _Known:
    key = claims.vault_key or ""
    caller = Caller(claims.kind, claims.client_id, key, claims.audience)
    vault = vaults.get(connection, key)
    container = containers.find(connection, claims.client_id) if claims.kind == "Container" else None
    if container is not None and container.vault_key != key:
        container = None
    return _Known(caller, vault, container)


def _read_account(connection: DatabaseConnection, name: str, container: str) -> tuple[Account, _Known] | None:
    """All that a storage call needs, by one visit to the database; ``container`` is the blob container of the path."""
    account = accounts.find(connection, name)
    if account is None:
        return None
    caller = Caller("Sas", name, account.vault_key)
    owner = containers.find_by_blob_container(connection, account.vault_key, container) if container else None
    return account, _Known(caller, vaults.get(connection, account.vault_key), owner)


def _is_soap(request: web.BaseRequest) -> bool:
    kind = request.headers.get("Content-Type", "").lower()
    return "soap" in kind or "xml" in kind or "SOAPAction" in request.headers or request.path.lower().endswith(".svc")


def _no_such_call(method: str, path: str) -> UndercroftError:
    if any(call.path.fullmatch(path) for call in backup.CALLS):
        return MethodNotAllowed(f"{method} is not among the calls on '{path[:200]}'.")
    return NotFound(f"There is no call '{method} {path[:200]}'. The protocol is version 1, under /v1.", code="NotFound")


def _query(request: web.BaseRequest) -> Mapping[str, str]:
    """A parameter given twice is refused: which of the two was meant is nobody's to guess."""
    query: dict[str, str] = {}
    for name, value in request.query.items():
        if name in query:
            raise InvalidInput(f"The query parameter '{name[:80]}' is given twice.", code="InvalidQueryParameterValue")
        query[name] = value
    return query


def _resource(request: web.BaseRequest) -> tuple[str, str | None]:
    """Container and blob, as the path names them."""
    path = unquote(request.rel_url.raw_path, errors="replace")
    container, _, blob = path.lstrip("/").partition("/")
    return container, blob or None
