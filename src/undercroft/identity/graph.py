"""The little of Microsoft Graph that role assignments need: service principals, read and made.

Served under ``/v1.0/`` and ``/msgraph/v1.0/`` (the URL that the cloud's metadata names). A token for the Graph or for the resource
manager is accepted: they are one service here. Reading is for every principal of the tenant; making and removing principals needs
``Microsoft.Authorization/roleAssignments/write`` on the deployment's subscription.

``POST /v1.0/servicePrincipals {"displayName"}`` is our own short form of Graph's three calls (application, service principal,
addPassword): it makes all of them and answers the secret, once, in ``passwordCredentials[0].secretText``.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from undercroft.clock import Clock
from undercroft.errors import (
    CapabilityMissing,
    Conflict,
    InvalidInput,
    InvalidParameter,
    MethodNotAllowed,
    NotAuthenticated,
    NotFound,
)
from undercroft.identity import principals
from undercroft.identity.audiences import Audiences, GraphAudience, ManagementAudience
from undercroft.identity.authorization import Authorization, CallerRights
from undercroft.identity.principals import Principal
from undercroft.identity.tokens import Tokens
from undercroft.identity.wire import WebReply, WebRequest
from undercroft.names import ResourceId
from undercroft.state.database import Database

__all__ = ["Graph"]

T = TypeVar("T")
_ADMINISTER = "Microsoft.Authorization/roleAssignments/write"
_CLIENT = re.compile(r"servicePrincipalNames/any\(\s*(\w+):\s*\1 eq '([^']*)'\s*\)", re.IGNORECASE)
_FIELD = re.compile(r"(appId|displayName|id) eq '((?:[^']|'')*)'", re.IGNORECASE)
_PREFIX = re.compile(r"startswith\(\s*displayName\s*,\s*'((?:[^']|'')*)'\s*\)", re.IGNORECASE)
_LONGEST_NAME = 120
_KNOWN_QUERY = frozenset({"$filter", "$top", "$select", "$count", "api-version"})


class _NewPrincipal(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    display_name: str


class _GetByIds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    ids: tuple[str, ...]
    types: tuple[str, ...] = ()


class _Either:
    def __init__(self, *audiences: GraphAudience | ManagementAudience) -> None:
        self._audiences = audiences

    def __contains__(self, audience: object) -> bool:
        return any(audience in each for each in self._audiences)


class Graph:
    """A surface (``identity.wire``) that verifies the caller itself."""

    def __init__(
        self,
        database: Database,
        tokens: Tokens,
        authorization: Authorization,
        audiences: Audiences,
        subscription_id: str,
        bootstrap_object_id: str,
        clock: Clock,
    ) -> None:
        self._database = database
        self._tokens = tokens
        self._authorization = authorization
        self._accepted = _Either(audiences.graph, audiences.management)
        self._subscription = ResourceId(subscription_id, None, None, (), ())
        self._bootstrap = bootstrap_object_id
        self._clock = clock

    def serves(self, segments: tuple[str, ...]) -> bool:
        return _inside(segments) is not None

    async def answer(self, request: WebRequest) -> WebReply:
        rights = self._caller(request)
        unknown = set(request.query) - _KNOWN_QUERY
        if unknown:
            raise InvalidParameter(
                f"The query parameter '{sorted(unknown)[0]}' is not known.", target=sorted(unknown)[0]
            )
        path = tuple(segment.lower() for segment in _inside(request.segments) or ())
        match path:
            case ("serviceprincipals",):
                if request.method == "POST":
                    return await self._create(request, rights)
                _only(request, "GET", "POST")
                return await self._list(request)
            case ("serviceprincipals", object_id):
                _only(request, "GET", "DELETE")
                if request.method == "DELETE":
                    return await self._delete(object_id, rights)
                return WebReply(200, _shown(await self._find(object_id)))
            case ("directoryobjects", "getbyids"):
                _only(request, "POST")
                return await self._by_ids(request)
        raise CapabilityMissing(
            f"Graph's '/{'/'.join(path)}' is not implemented here; servicePrincipals and directoryObjects/getByIds are."
        )

    def _caller(self, request: WebRequest) -> CallerRights:
        scheme, _, token = (request.authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise NotAuthenticated("The 'Authorization: Bearer …' header is missing. Log in first.")
        return self._authorization.rights(self._tokens.verify(token.strip(), self._accepted))

    async def _find(self, object_id: str) -> Principal:
        found = await self._database.read(lambda connection: principals.find_by_object_id(connection, object_id))
        if found is None or found.kind != principals.SERVICE_PRINCIPAL:
            raise NotFound(f"Resource '{object_id}' does not exist.", code="Request_ResourceNotFound")
        return found

    async def _list(self, request: WebRequest) -> WebReply:
        everyone = await self._database.read(principals.listing)
        matches = _filter(request.query.get("$filter", ""))
        return WebReply(200, {"value": [_shown(one) for one in everyone if matches(one)]})

    async def _by_ids(self, request: WebRequest) -> WebReply:
        wanted = _parse(request.body, _GetByIds)
        if len(wanted.ids) > 1000:
            raise InvalidInput("At most 1000 ids may be asked for at once.", code="Request_BadRequest")
        found = await self._database.read(lambda connection: principals.listing(connection, wanted.ids))
        return WebReply(
            200, {"value": [{"@odata.type": "#microsoft.graph.servicePrincipal", **_shown(one)} for one in found]}
        )

    async def _create(self, request: WebRequest, rights: CallerRights) -> WebReply:
        await rights.require(_ADMINISTER, self._subscription)
        name = _parse(request.body, _NewPrincipal).display_name.strip()
        if not 1 <= len(name) <= _LONGEST_NAME or not name.isprintable():
            raise InvalidParameter(
                f"'displayName' must have 1 to {_LONGEST_NAME} printable characters.", target="displayName"
            )
        secret = principals.new_secret()
        secret_hash = await asyncio.to_thread(principals.hash_secret, secret)
        now = self._clock.now()
        made = await self._database.write(
            lambda connection: principals.create(connection, display_name=name, now=now, secret_hash=secret_hash)
        )
        return WebReply(
            201, _shown(made) | {"passwordCredentials": [{"secretText": secret}]}, {"Cache-Control": "no-store"}
        )

    async def _delete(self, object_id: str, rights: CallerRights) -> WebReply:
        await rights.require(_ADMINISTER, self._subscription)
        found = await self._find(object_id)
        if found.object_id == self._bootstrap:
            raise Conflict("This is the deployment's own principal; without it nobody could manage the deployment.")
        await self._database.write(lambda connection: principals.remove(connection, found.object_id))
        self._authorization.changed()
        return WebReply(204)


def _inside(segments: tuple[str, ...]) -> tuple[str, ...] | None:
    rest = segments[1:] if segments and segments[0].lower() == "msgraph" else segments
    return rest[1:] if rest and rest[0].lower() == "v1.0" else None


def _only(request: WebRequest, *methods: str) -> None:
    if request.method not in methods:
        raise MethodNotAllowed(f"{request.method} is not possible here; {' and '.join(methods)} are.")


def _shown(principal: Principal) -> dict[str, Any]:
    return {
        "id": principal.object_id,
        "appId": principal.client_id,
        "displayName": principal.display_name,
        "appDisplayName": principal.display_name,
        "servicePrincipalNames": [principal.client_id],  # az takes the first of them without looking
        "servicePrincipalType": "Application",
        "accountEnabled": True,
    }


def _filter(text: str) -> Callable[[Principal], bool]:
    if not text.strip():
        return lambda _one: True
    if found := _CLIENT.fullmatch(text.strip()):
        client = found[2].lower()
        return lambda one: one.client_id == client
    if found := _FIELD.fullmatch(text.strip()):
        field, value = found[1].lower(), found[2].replace("''", "'").lower()
        column = {"appid": "client_id", "displayname": "display_name", "id": "object_id"}[field]
        return lambda one: getattr(one, column).lower() == value
    if found := _PREFIX.fullmatch(text.strip()):
        prefix = found[1].replace("''", "'").lower()
        return lambda one: one.display_name.lower().startswith(prefix)
    raise CapabilityMissing(f"The filter '{text[:200]}' is not implemented for service principals.", target="$filter")


def _parse(body: bytes, into: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=into)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidInput(f"The request's JSON is not usable: {error}.", code="Request_BadRequest") from error
