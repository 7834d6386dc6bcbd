"""From a request to its answer: caller, admission, service.

The order is protocol.md section 2; each step has its reason in ``admission``. Nothing reads a byte of the body before
``admitted`` is logged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol
from urllib.parse import unquote

import structlog
from aiohttp import web

from undercroft.clock import Clock
from undercroft.config import Settings
from undercroft.dataplane import admission, backup, queue, sas
from undercroft.dataplane.admission import Bearer, Caller, VaultAudience, VaultRule
from undercroft.dataplane.backup import BackupService, Visit
from undercroft.dataplane.blob import BlobService, Target, operation_name
from undercroft.dataplane.exchange import Connection, Exchange
from undercroft.dataplane.front import FRONT
from undercroft.dataplane.outermost import REFUSED_BODY, Outermost
from undercroft.dataplane.paths import PathNotes
from undercroft.dataplane.sessions import KeepVault, Sessions
from undercroft.errors import (
    CapabilityMissing,
    InvalidInput,
    MethodNotAllowed,
    NotFound,
    UndercroftError,
    UnknownField,
)
from undercroft.identity.tokens import Claims
from undercroft.names import region, regions
from undercroft.state.database import Connection as DatabaseConnection
from undercroft.state.database import Database
from undercroft.store.store import Store
from undercroft.vault import accounts, containers, vaults
from undercroft.vault.accounts import Account
from undercroft.vault.containers import Container
from undercroft.vault.vaults import VaultRecord

__all__ = ["Application", "Verifier"]

log = structlog.get_logger("undercroft.dataplane")

_WATCH_SECONDS = 1.0


class Verifier(Protocol):
    """What we need of ``identity.tokens.Tokens``."""

    tenant: str

    def verify(self, token: str, audiences: VaultAudience, /) -> Claims: ...


@dataclass(frozen=True, slots=True)
class _Known:
    caller: Caller
    vault: VaultRecord | None
    container: Container | None = None


class Application(Outermost):
    def __init__(
        self,
        database: Database,
        store: Store,
        tokens: Verifier,
        settings: Settings,
        clock: Clock,
        keep_vault: KeepVault,
    ) -> None:
        super().__init__(settings, clock)
        self._database = database
        self._tokens = tokens
        self._audience = VaultAudience(tokens.tenant)
        self.sessions = Sessions(database, store, settings, clock, keep_vault)
        self._backup = BackupService(database, store, self.sessions, settings, clock)
        self._blob = BlobService(store)
        self._paths = PathNotes(database, clock)
        self._outside: dict[Connection, str] = {}
        """Admitted by the public side and not answered yet: the vault's key."""

    async def respond(self, exchange: Exchange) -> web.StreamResponse:
        service = exchange.door.service
        if service in FRONT:  # where nobody takes such connections over, there is nothing behind the door
            raise NotFound(f"'{exchange.host.name}' is not served here.")
        response = await (self._serve_backup if service == "backup" else self._serve_storage)(exchange)
        if not await exchange.drain(REFUSED_BODY):  # a body that the call had no use for
            response.force_close()
        return response

    def ended(self, connection: Connection) -> None:
        self._outside.pop(connection, None)

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
        self.log(exchange, "admitted")


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
