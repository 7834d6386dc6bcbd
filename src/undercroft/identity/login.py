"""The login endpoint: as much of OpenID Connect as ``az``, the SDKs and our agents ask for.

Entra's v2 and v1 URLs and AD FS's are one thing under several names. One grant is built: ``client_credentials``, with a secret or
with a client assertion. Refusals are in Entra's JSON with Entra's numbers, because clients print them as they are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl

from undercroft.clock import Clock
from undercroft.identity import principals
from undercroft.identity.audiences import Audiences
from undercroft.identity.client_assertions import ASSERTION_TYPE, Assertions, unverified_client
from undercroft.identity.login_errors import LoginRefused, render
from undercroft.identity.principals import Principal
from undercroft.identity.tokens import Tokens
from undercroft.identity.wire import WebReply, WebRequest
from undercroft.state.database import Database

__all__ = ["Login"]

_DISCOVERY = ".well-known"
_DEFAULT_SCOPE = "/.default"
_FORM = "application/x-www-form-urlencoded"
_ANY_TENANT = frozenset({"common", "organizations", "consumers"})
_LARGEST_FORM = 64 * 1024
_LONGEST_QUEUE = 64
"""Secrets that wait for their verification: about two seconds of it. More are told to come again."""


@dataclass(frozen=True, slots=True)
class _Page:
    """What a path names: ``discovery``, ``keys`` or ``token``, for a tenant, in the v1 or the v2 form."""

    name: str
    tenant: str
    v1: bool


def _page(segments: tuple[str, ...]) -> _Page | None:
    if len(segments) < 2:
        return None
    tenant, rest = segments[0], tuple(segment.lower() for segment in segments[1:])
    v1 = "v2.0" not in rest and tenant.lower() != "adfs"
    pages = {
        (_DISCOVERY, "openid-configuration"): "discovery",
        ("v2.0", _DISCOVERY, "openid-configuration"): "discovery",
        ("discovery", "keys"): "keys",
        ("discovery", "v2.0", "keys"): "keys",
        ("oauth2", "token"): "token",
        ("oauth2", "v2.0", "token"): "token",
    }
    name = pages.get(rest)
    return None if name is None else _Page(name, tenant.lower(), v1)


class Login:
    """A surface (``identity.wire``) that anyone may call."""

    def __init__(self, database: Database, tokens: Tokens, audiences: Audiences, clock: Clock) -> None:
        self._database = database
        self._tokens = tokens
        self._audiences = audiences
        self._clock = clock
        self._assertions = Assertions(audiences, tokens.tenant, clock)
        self._hashing = asyncio.Semaphore(2)  # each takes 19 MiB and a core for a moment
        self._waiting = 0

    def serves(self, segments: tuple[str, ...]) -> bool:
        return _page(segments) is not None

    async def answer(self, request: WebRequest) -> WebReply:
        page = _page(request.segments)
        assert page is not None  # the application asks ``serves`` first
        try:
            self._check_tenant(page)
            if page.name == "token":
                return await self._token(page, request)
            if request.method != "GET":
                raise LoginRefused(405, "invalid_request", 900561, f"This endpoint accepts GET, not {request.method}.")
            return WebReply(
                200, self._discovery(page, request) if page.name == "discovery" else self._tokens.public_keys()
            )
        except LoginRefused as refusal:
            return render(refusal, request, self._clock)

    def _check_tenant(self, page: _Page) -> None:
        if page.tenant in ("adfs", self._tokens.tenant):
            return
        if page.name != "token" and page.tenant in _ANY_TENANT:
            return
        raise LoginRefused(
            400,
            "invalid_request",
            90002,
            f"Tenant '{page.tenant}' not found. This deployment's tenant is '{self._tokens.tenant}'.",
        )

    def _discovery(self, page: _Page, request: WebRequest) -> dict[str, Any]:
        root = f"{request.base_url}/{page.tenant}"
        version = "" if page.v1 or page.tenant == "adfs" else "/v2.0"
        return {
            "issuer": self._issuer(page, request),
            "authorization_endpoint": f"{root}/oauth2{version}/authorize",
            "token_endpoint": f"{root}/oauth2{version}/token",
            "jwks_uri": f"{root}/discovery{version}/keys",
            "token_endpoint_auth_methods_supported": ["client_secret_post", "private_key_jwt"],
            "grant_types_supported": ["client_credentials"],
            "response_types_supported": ["token"],
            "subject_types_supported": ["pairwise"],
            "id_token_signing_alg_values_supported": ["RS256"],
            "token_endpoint_auth_signing_alg_values_supported": ["RS256", "ES256"],
            "scopes_supported": ["openid"],
            "claims_supported": ["aud", "iss", "exp", "tid", "oid", "appid"],
        }

    def _issuer(self, page: _Page, request: WebRequest) -> str:
        if page.tenant == "adfs":
            return f"{request.base_url}/adfs"
        tenant = "{tenantid}" if page.tenant in _ANY_TENANT else page.tenant
        return f"{request.base_url}/{tenant}{'' if page.v1 else '/v2.0'}"

    async def _token(self, page: _Page, request: WebRequest) -> WebReply:
        if request.method != "POST":
            raise LoginRefused(405, "invalid_request", 900561, f"This endpoint accepts POST, not {request.method}.")
        form = _form(request)
        grant = _required(form, "grant_type")
        if grant != "client_credentials":
            raise LoginRefused(
                400,
                "unsupported_grant_type",
                70003,
                f"The grant type '{grant}' is not implemented. Log in as a service principal (client_credentials).",
            )
        principal = await self._authenticated(form)
        audience = self._audience(form, principal)
        issued = self._tokens.issue(principal, audience, self._issuer(page, request))
        body: dict[str, Any] = {
            "token_type": "Bearer",
            "expires_in": issued.seconds,
            "ext_expires_in": issued.seconds,
            "access_token": issued.token,
        }
        if page.v1:  # v1 writes numbers as text, and says what the token is for
            body = {name: str(value) for name, value in body.items()}
            body |= {"expires_on": str(int(issued.expires.timestamp())), "resource": audience}
        return WebReply(200, body, {"Cache-Control": "no-store", "Pragma": "no-cache"})

    async def _authenticated(self, form: Mapping[str, str]) -> Principal:
        assertion = form.get("client_assertion")
        client_id = form.get("client_id") or (unverified_client(assertion) if assertion else None)
        if not client_id:
            raise LoginRefused(400, "invalid_request", 90014, "The request must contain the parameter 'client_id'.")
        principal = self._database.look(lambda connection: principals.find(connection, client_id))
        if principal is None:
            raise LoginRefused(
                400,
                "unauthorized_client",
                700016,
                f"Application with identifier '{client_id}' was not found in the tenant.",
            )
        if assertion is not None:
            if form.get("client_assertion_type") != ASSERTION_TYPE:
                raise LoginRefused(
                    400, "invalid_request", 90014, f"'client_assertion_type' must be '{ASSERTION_TYPE}'."
                )
            self._assertions.verify(assertion, principal)
        else:
            await self._check_secret(form, principal)
        if principal.not_after is not None and datetime.fromisoformat(principal.not_after) <= self._clock.now():
            raise LoginRefused(
                401,
                "invalid_client",
                7000222,
                f"The credential of '{client_id}' expired at {principal.not_after}. Make a new one.",
            )
        return principal

    async def _check_secret(self, form: Mapping[str, str], principal: Principal) -> None:
        secret = form.get("client_secret")
        if not secret:
            raise LoginRefused(
                401,
                "invalid_client",
                7000216,
                "'client_assertion' or 'client_secret' is required for the 'client_credentials' grant type.",
            )
        stored = principal.secret_hash
        if stored is not None and await self._verified(stored, secret):
            return
        raise LoginRefused(
            401,
            "invalid_client",
            7000215,
            "Invalid client secret provided. Ensure the secret being sent in the request is the client secret value, "
            f"not the client secret ID, for a secret added to app '{principal.client_id}'.",
        )

    async def _verified(self, stored: str, secret: str) -> bool:
        if self._waiting >= _LONGEST_QUEUE:
            raise LoginRefused(
                429, "temporarily_unavailable", 90033, "Too many logins at once; try again in some seconds."
            )
        self._waiting += 1
        try:
            async with self._hashing:
                return await asyncio.to_thread(principals.verify_secret, stored, secret)
        finally:
            self._waiting -= 1

    def _audience(self, form: Mapping[str, str], principal: Principal) -> str:
        resource = form.get("resource")
        if resource is None:
            scope = _required(form, "scope")
            if not scope.endswith(_DEFAULT_SCOPE) or " " in scope:
                raise LoginRefused(
                    400,
                    "invalid_scope",
                    1002012,
                    f"The scope '{scope}' is not valid: client credential flows take one resource and '{_DEFAULT_SCOPE}' after it.",
                )
            # exactly this suffix: "https://host//.default" asks for the audience "https://host/"
            resource = scope.removesuffix(_DEFAULT_SCOPE)
        if principal.audience is not None:
            if resource == principal.audience:
                return resource
        elif resource in self._audiences.management or resource in self._audiences.graph:
            return resource
        raise LoginRefused(
            400,
            "invalid_resource",
            500011,
            f"The resource principal named '{resource}' was not found in the tenant, or this application may not ask for it.",
        )


def _form(request: WebRequest) -> Mapping[str, str]:
    if request.content_type.split(";")[0].strip().lower() != _FORM:
        raise LoginRefused(400, "invalid_request", 900144, f"The request body must be {_FORM}.")
    if len(request.body) > _LARGEST_FORM:
        raise LoginRefused(400, "invalid_request", 900144, "The request body is larger than 64 KiB.")
    try:
        pairs = parse_qsl(
            request.body.decode(), keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=64
        )
    except ValueError as error:
        raise LoginRefused(400, "invalid_request", 900144, f"The request body is not a form: {error}.") from error
    form = dict(pairs)
    if len(form) != len(pairs):
        raise LoginRefused(400, "invalid_request", 900144, "The request body has a parameter twice.")
    return form


def _required(form: Mapping[str, str], name: str) -> str:
    value = form.get(name)
    if not value:
        raise LoginRefused(
            400, "invalid_request", 900144, f"The request body must contain the following parameter: '{name}'."
        )
    return value
