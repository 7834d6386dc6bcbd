"""The contract between the ARM wire and the providers: a parsed call in, a reply out, routes in between.

A provider is a tuple of routes. The wire has, before a handler runs: verified the token, parsed path and query, checked that
``api-version`` is a date, that every query parameter is known to the route, and that the caller may do ``action`` on the
route's resource. The handler parses the body into its own frozen type (``parse``), applies rules, and answers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import msgspec

from undercroft.errors import InvalidInput, InvalidParameter
from undercroft.names import ResourceId
from undercroft.trace import Correlation

__all__ = ["Call", "Handler", "Reply", "Rights", "Route", "parse"]


class Rights(Protocol):
    """Who is calling and what they may do."""

    @property
    def object_id(self) -> str: ...

    @property
    def display_name(self) -> str: ...

    async def may(self, action: str, scope: ResourceId) -> bool:
        """Whether a role assignment at or above ``scope`` grants ``action`` (for linked scopes and approval)."""

    async def require(self, action: str, scope: ResourceId) -> None:
        """``may``, or NotAuthorized naming the caller, the action and the scope."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request, parsed. ``parameters`` are the path's variables; ``base_url`` is how the client addressed us."""

    method: str
    id: ResourceId
    """The resource that the path names; for a collection, the enclosing scope (network's group, vault …)."""
    parameters: Mapping[str, str]
    query: Mapping[str, str]
    api_version: str
    body: bytes
    rights: Rights
    correlation: Correlation
    base_url: str
    if_match: str | None = None
    if_none_match: str | None = None
    path: str = "/"
    """The path as the client wrote it, decoded: for links back to the same collection."""


@dataclass(frozen=True, slots=True)
class Reply:
    """``body`` is anything msgspec encodes to JSON (a provider's wire Struct or a dict); None sends no body."""

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)


Handler = Callable[[Call], Awaitable[Reply]]


@dataclass(frozen=True, slots=True)
class Route:
    """``pattern`` in ARM's form, variables in braces: ``/subscriptions/{subscription}/resourceGroups/{group}/…``.

    ``action`` is the right needed on the resource (``Microsoft.Network/privateEndpoints/write``); None: any verified
    caller. ``query`` lists further query parameters that the route understands (``$filter``, ``$top``).
    """

    method: str
    pattern: str
    action: str | None
    handler: Handler
    query: frozenset[str] = frozenset()


S = TypeVar("S")


def parse(body: bytes, into: type[S]) -> S:
    """The body as a frozen wire type. Unknown properties and wrong types are errors that name the place."""
    if not body.strip():
        raise InvalidInput("The request content was empty; this call needs a JSON body.", code="InvalidRequestContent")
    try:
        return msgspec.json.decode(body, type=into)
    except msgspec.ValidationError as error:
        raise InvalidParameter(f"The request content is invalid: {error}.", code="InvalidRequestContent") from error
    except msgspec.DecodeError as error:
        raise InvalidInput(f"The request content was not valid JSON: {error}.", code="InvalidRequestContent") from error
