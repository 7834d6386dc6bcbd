"""The pipeline that every request to ARM, login, metadata and Graph passes: ``Application.LINKS``, in order, with the reasons.

A link does its part on the *exchange* (typed, named fields) and returns None, or a reply, which ends the chain. An error raised in a link
is rendered by ``arm.errors``. The application is given requests by the host's listener and, for the names ``login.*`` and
``management.*``, by the data plane; it does not know which.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import ClassVar

import msgspec
import structlog
from aiohttp import web

from undercroft.allowance import Allowance
from undercroft.arm import errors
from undercroft.arm.call import Call, Reply, Route
from undercroft.arm.paths import named_id, parse_query, parse_target
from undercroft.arm.resources import subscription_exists, subscription_missing
from undercroft.arm.routes import Match, RouteTable
from undercroft.errors import (
    InvalidInput,
    InvalidParameter,
    MethodNotAllowed,
    NotAuthenticated,
    Throttled,
    TooLarge,
    TooSlow,
    UndercroftError,
)
from undercroft.identity.audiences import Audiences
from undercroft.identity.authorization import Authorization, CallerRights
from undercroft.identity.tokens import Tokens
from undercroft.identity.wire import Surface, WebRequest
from undercroft.names import ResourceId
from undercroft.state.database import Database
from undercroft.trace import Correlation, correlated, fresh

__all__ = ["Application", "Exchange"]

_log = structlog.get_logger("undercroft.arm")
_LARGEST_BODY = 4 * 2**20
_LARGEST_PAGE = 2**17
"""Of login, metadata and Graph: it is read before anybody is known."""
_LONGEST_TARGET = 8 * 1024
_BODY_SECONDS = 30.0
_CALLS_PER_PRINCIPAL = 64
_METHODS = frozenset({"GET", "HEAD", "PUT", "PATCH", "POST", "DELETE"})
_API_VERSION = re.compile(
    r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])(-(preview|privatepreview|beta|alpha))?", re.IGNORECASE
)
_CLIENT_ID = re.compile(r"[\x21-\x7e]{1,128}")
_ALWAYS_KNOWN = {"api-version": "api-version", "$skiptoken": "$skiptoken", "$top": "$top"}


_ROOT = ResourceId(None, None, None, (), ())


@dataclass(slots=True)
class Exchange:
    """One request on its way down the chain. Fields are filled by the link that is named beside them."""

    request: web.BaseRequest
    address: str
    correlation: Correlation
    base_url: str
    segments: tuple[str, ...] = ()
    """path"""
    query: dict[str, str] = field(default_factory=dict)
    """path; cut down to the route's own parameters by *query*"""
    rights: CallerRights | None = None
    """authentication"""
    api_version: str = ""
    """api-version"""
    match: Match | None = None
    """route"""
    id: ResourceId = _ROOT
    """route"""


class Application:
    def __init__(
        self,
        routes: Iterable[Route],
        tokens: Tokens,
        authorization: Authorization,
        *,
        database: Database,
        audiences: Audiences,
        allowance: Allowance,
        surfaces: Iterable[Surface] = (),
        base_url: str = "https://localhost",
    ) -> None:
        """``surfaces`` are login, metadata and Graph. ``base_url`` is what links say when a request's Host is not a name of ours."""
        self.table = RouteTable(routes)
        self.base_url = base_url
        self._tokens = tokens
        self._authorization = authorization
        self._database = database
        self._audiences = audiences
        self._allowance = allowance
        self._surfaces = tuple(surfaces)
        self._subscriptions: set[str] = set()
        self._running: Counter[str] = Counter()

    # --- the chain -------------------------------------------------------------------------------------------------

    async def limits(self, exchange: Exchange) -> Reply | None:
        request = exchange.request
        if request.method not in _METHODS:
            raise MethodNotAllowed(f"The HTTP method '{request.method[:20]}' is not one of ARM's.")
        if len(request.raw_path) > _LONGEST_TARGET:
            raise InvalidInput(f"The URL is longer than {_LONGEST_TARGET} characters.", code="InvalidRequestUri")
        if (request.content_length or 0) > _LARGEST_BODY:
            raise TooLarge(f"The request body of {request.content_length} bytes is larger than {_LARGEST_BODY} bytes.")
        encoding = request.headers.get("Content-Encoding", "identity").lower()
        if encoding != "identity":
            raise InvalidInput(f"The content encoding '{encoding[:40]}' is not accepted.", code="UnsupportedMediaType")
        return None

    async def address(self, exchange: Exchange) -> Reply | None:
        self._allowance.meet(exchange.address)
        return None

    async def path(self, exchange: Exchange) -> Reply | None:
        exchange.segments, query = parse_target(exchange.request.raw_path)
        exchange.query = parse_query(query)
        return None

    async def pages(self, exchange: Exchange) -> Reply | None:
        surface = next((each for each in self._surfaces if each.serves(exchange.segments)), None)
        if surface is None:
            return None
        request = exchange.request
        answer = await surface.answer(
            WebRequest(
                request.method,
                exchange.segments,
                exchange.query,
                await _body(request, _LARGEST_PAGE),
                request.headers.get("Content-Type", ""),
                request.headers.get("Authorization"),
                exchange.base_url,
                exchange.correlation,
            )
        )
        if answer.status == NotAuthenticated.status:
            self._allowance.refused(exchange.address)
        return Reply(answer.status, answer.body, answer.headers)

    async def authentication(self, exchange: Exchange) -> Reply | None:
        header = exchange.request.headers.get("Authorization")
        if header is None:
            raise NotAuthenticated("Authentication failed. The 'Authorization' header is missing. Log in first.")
        scheme, _, token = header.partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise NotAuthenticated(
                "Authentication failed. The 'Authorization' header must be 'Bearer' and an access token.",
                code="AuthenticationFailedInvalidHeader",
            )
        exchange.rights = self._authorization.rights(self._tokens.verify(token.strip(), self._audiences.management))
        return None

    async def allowance(self, exchange: Exchange) -> Reply | None:
        assert exchange.rights is not None
        self._allowance.take(exchange.rights.object_id)
        return None

    async def version(self, exchange: Exchange) -> Reply | None:
        # every date is accepted: one session of az uses versions that are eight years apart
        given = next((value for name, value in exchange.query.items() if name.lower() == "api-version"), None)
        if not given:
            raise InvalidParameter(
                "The api-version query parameter (?api-version=) is required for all requests.",
                code="MissingApiVersionParameter",
                target="api-version",
            )
        if not _API_VERSION.fullmatch(given):
            raise InvalidParameter(
                f"The api-version '{given[:60]}' is invalid. It must be a date such as '2024-01-01', optionally with '-preview'.",
                code="InvalidApiVersionParameter",
                target="api-version",
            )
        exchange.api_version = given
        return None

    async def subscription(self, exchange: Exchange) -> Reply | None:
        segments = exchange.segments
        if len(segments) < 2 or segments[0].lower() != "subscriptions":
            return None
        subscription = segments[1].lower()
        if subscription not in self._subscriptions:
            if not self._database.look(lambda connection: subscription_exists(connection, subscription)):
                raise subscription_missing(segments[1])
            self._subscriptions.add(subscription)
        return None

    async def route(self, exchange: Exchange) -> Reply | None:
        exchange.match = self.table.match(exchange.request.method, exchange.segments)
        scope = exchange.match.scope
        exchange.id = named_id(exchange.segments if scope is None else scope)
        return None

    async def query(self, exchange: Exchange) -> Reply | None:
        assert exchange.match is not None
        known = _ALWAYS_KNOWN | {name.lower(): name for name in exchange.match.route.query}
        found: dict[str, str] = {}
        for name, value in exchange.query.items():
            canonical = known.get(name.lower())
            if canonical is None or canonical in found:
                raise InvalidParameter(
                    f"The query parameter '{name[:80]}' is not {'allowed twice' if canonical else 'known here'}. "
                    f"Known: {', '.join(sorted(known.values()))}.",
                    code="InvalidQueryParameter",
                    target=name[:80],
                )
            found[canonical] = value
        del found["api-version"]
        exchange.query = found
        return None

    async def authorize(self, exchange: Exchange) -> Reply | None:
        assert exchange.match is not None and exchange.rights is not None
        action = exchange.match.route.action
        if action is not None:
            await exchange.rights.require(action, exchange.id)
        return None

    async def handler(self, exchange: Exchange) -> Reply | None:
        assert exchange.match is not None and exchange.rights is not None
        request, caller = exchange.request, exchange.rights.object_id
        if self._running[caller] >= _CALLS_PER_PRINCIPAL:
            raise Throttled(
                f"More than {_CALLS_PER_PRINCIPAL} calls of this principal are running. Wait for some of them."
            )
        self._running[caller] += 1
        try:
            call = Call(
                method=request.method,
                id=exchange.id,
                parameters=exchange.match.parameters,
                query=exchange.query,
                api_version=exchange.api_version,
                body=await _body(request),
                rights=exchange.rights,
                correlation=exchange.correlation,
                base_url=exchange.base_url,
                if_match=request.headers.get("If-Match"),
                if_none_match=request.headers.get("If-None-Match"),
                path="/" + "/".join(exchange.segments),
            )
            return await exchange.match.route.handler(call)
        finally:
            self._running[caller] -= 1
            if not self._running[caller]:
                del self._running[caller]

    LINKS: ClassVar[tuple[tuple[str, Callable[[Application, Exchange], Awaitable[Reply | None]]], ...]] = (
        ("limits", limits),  # first: what is too large is not even parsed
        ("address", address),  # before a guess is looked at, and before what looking costs
        ("path", path),  # everything below works on decoded segments
        ("pages", pages),  # before authentication: nobody has a token before login answered
        ("authentication", authentication),  # before anything that would tell a stranger what exists
        ("allowance", allowance),  # as soon as it is known whose call it is, before it costs more
        ("version", version),  # ARM refuses a missing api-version before it looks at the path
        (
            "subscription",
            subscription,
        ),  # before the route: a foreign subscription is "not found", whatever is asked of it
        ("route", route),  # the right and the known parameters depend on it
        ("query", query),  # a misspelled $filter must not return everything
        ("authorize", authorize),  # the last thing before the body is read
        ("handler", handler),
    )

    # --- around it -------------------------------------------------------------------------------------------------

    async def handle(self, request: web.BaseRequest, address: str | None = None) -> web.StreamResponse:
        """Answer one request. Never raises, except when it is cancelled. ``address``: whence it came, where the peer's address does not
        say it alone, because networks may use the same ones."""
        whence = address or str(request.remote)
        exchange = Exchange(request, whence, _correlation(request), self._base_url(request))
        with correlated(exchange.correlation):
            reply = await self._reply(exchange)
            return _response(reply, exchange)

    async def _reply(self, exchange: Exchange) -> Reply:
        passed = ""
        try:
            for name, link in self.LINKS:
                passed = name
                reply = await link(self, exchange)
                if reply is not None:
                    return reply
            raise AssertionError("the last link always replies")
        except UndercroftError as error:
            if isinstance(error, NotAuthenticated):
                self._allowance.refused(exchange.address)
            _log.info(
                "refused",
                link=passed,
                method=exchange.request.method,
                path="/".join(exchange.segments)[:300],
                status=error.status,
                code=error.code,
                request_id=exchange.correlation.request_id,
            )
            if exchange.rights is not None and error.mentions:
                await errors.hide(error, exchange.rights)
            uri = f"{exchange.base_url}/{self._tokens.tenant}"
            return errors.render(error, uri)
        except Exception as error:
            return errors.unexpected(error, exchange.correlation)

    def _base_url(self, request: web.BaseRequest) -> str:
        host = request.headers.get("Host", "")
        url = f"https://{host}"
        return url if self._audiences.path_of(url) is not None else self.base_url


async def _body(request: web.BaseRequest, largest: int = _LARGEST_BODY) -> bytes:
    chunks: list[bytes] = []
    received = 0
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for chunk in request.content.iter_any():
                received += len(chunk)
                if received > largest:
                    raise TooLarge(f"The request body is larger than {largest} bytes.")
                chunks.append(chunk)
    except TimeoutError as error:
        raise TooSlow(f"The request body did not arrive within {_BODY_SECONDS:.0f} seconds.") from error
    except (web.RequestPayloadError, ConnectionResetError) as error:
        raise InvalidInput(f"The request body could not be read: {error}.", code="InvalidRequestContent") from error
    return b"".join(chunks)


def _correlation(request: web.BaseRequest) -> Correlation:
    def given(header: str) -> str | None:
        value = request.headers.get(header, "")
        return value if _CLIENT_ID.fullmatch(value) else None

    return fresh(given("x-ms-correlation-request-id"), given("x-ms-client-request-id"))


def _response(reply: Reply, exchange: Exchange) -> web.Response:
    correlation = exchange.correlation
    headers = {
        "x-ms-request-id": correlation.request_id,
        "x-ms-correlation-request-id": correlation.correlation_id,
        "Cache-Control": "no-cache",
        "Strict-Transport-Security": "max-age=31536000; includeSubDomains",
        "X-Content-Type-Options": "nosniff",
        **reply.headers,
    }
    if correlation.client_request_id is not None:
        headers["x-ms-client-request-id"] = correlation.client_request_id
    if reply.body is None and reply.status != 202:
        return web.Response(status=reply.status, headers=headers)
    # az decodes the body of every 202 of the backup provider, and crashes if there is none; null is fine
    content = b"null" if reply.body is None else msgspec.json.encode(reply.body)
    return web.Response(
        status=reply.status, body=content, headers={"Content-Type": "application/json; charset=utf-8", **headers}
    )
