"""The client of ``/v1``: typed calls with bounded patience. A refusal is final; what may pass by itself is tried again.

Before the first answer patience is short, because then a name or an address is probably wrong and a person waits for the
reason; afterwards it covers a restart of the service.
"""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Mapping
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlencode

import msgspec

from undercroft.errors import (
    Conflict,
    InvalidInput,
    NotAuthenticated,
    NotAuthorized,
    NotFound,
    PeerMisbehaved,
    RefusedByNetworkRule,
    StorageFull,
    Throttled,
    Unavailable,
    UndercroftError,
)

from .exchange import Answer, Exchange
from .messages import Refusal
from .resolve import LegFailed, Route, Target

if TYPE_CHECKING:
    from undercroft.clock import Clock

    from .tokens import Tokens

__all__ = ["ObjectsMissing", "Patience", "Session", "VaultHosts", "refusal"]

Reply = TypeVar("Reply")
FIRST_PATIENCE = 6.0
PATIENCE = 120.0
LONGEST_PAUSE = 15.0


class ObjectsMissing(Conflict):
    """The commit names objects that the service does not have (409 ``UserErrorObjectsMissing``): send them again."""

    default_code = "UserErrorObjectsMissing"

    def __init__(self, message: str, missing: tuple[str, ...]) -> None:
        super().__init__(message)
        self.missing = missing


class VaultHosts(msgspec.Struct, frozen=True):
    """The vault's two host patterns, with ``{svc}`` in them."""

    vault_name: str
    private: str
    public: str

    def target(self, service: str) -> Target:
        return Target(self.private.replace("{svc}", service), self.public.replace("{svc}", service))


class Patience:
    """Growing pauses until ``seconds`` have gone; ``stop`` ends a pause at once. At most one attempt per pause."""

    def __init__(self, clock: Clock, seconds: float, stop: threading.Event | None = None) -> None:
        self._clock = clock
        self._start = clock.monotonic()
        self._end = self._start + seconds
        self._pause = 0.25
        self._stop = stop or threading.Event()

    @property
    def spent(self) -> float:
        return self._clock.monotonic() - self._start

    def wait(self, asked: float | None = None) -> bool:
        """Sleeps and says whether another attempt is due. ``asked`` is a Retry-After."""
        pause = self._pause * random.uniform(0.75, 1.25) if asked is None else asked
        self._pause = min(self._pause * 2, LONGEST_PAUSE)
        if self._clock.monotonic() + pause > self._end:
            return False
        return not self._stop.wait(pause)


class Session:
    """One caller's conversation with one vault. Thread-safe."""

    def __init__(
        self,
        hosts: VaultHosts,
        exchange: Exchange,
        tokens: Tokens,
        clock: Clock,
        *,
        first_patience: float = FIRST_PATIENCE,
        patience: float = PATIENCE,
    ) -> None:
        self.hosts = hosts
        self.exchange = exchange
        self.clock = clock
        self.stop = threading.Event()
        self._tokens = tokens
        self._first_patience = first_patience
        self._patience = patience
        self._answered = False
        self._routes: dict[str, Route] = {}
        self._ahead = timedelta()

    @property
    def routes(self) -> Mapping[str, Route]:
        """By service: how it was last reached."""
        return dict(self._routes)

    @property
    def login_route(self) -> Route | None:
        """How the login endpoint was last reached by this session."""
        return self._tokens.route

    def call(
        self,
        service: str,
        method: str,
        path: str,
        reply: type[Reply],
        *,
        body: object = None,
        query: Mapping[str, str] | None = None,
    ) -> Reply:
        """One call and its parsed reply; refusals are raised as the error that the service named."""
        answer = self._send(service, method, path, body, query)
        if answer.status == 204 or reply is type(None):
            return None  # type: ignore[return-value]
        try:
            return msgspec.json.decode(answer.body, type=reply)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise PeerMisbehaved(
                f"{answer.route.host} answered {method} {path} with something else than docs/protocol.md says: {error}."
            ) from error

    def tell(self, service: str, path: str, body: object) -> None:
        """A POST without a reply."""
        self.call(service, "POST", path, type(None), body=body)

    def fetch(self, service: str, path: str) -> bytes:
        return self._send(service, "GET", path, None, None).body

    def server_time(self) -> datetime:
        """The service's clock, by its last ``Date``: leases and grants are in its time, and ours may be wrong."""
        return self.clock.now() + self._ahead

    def close(self) -> None:
        self.stop.set()
        self.exchange.close()

    def _send(self, service: str, method: str, path: str, body: object, query: Mapping[str, str] | None) -> Answer:
        if query:
            path = f"{path}?{urlencode(query)}"
        data = () if body is None else (msgspec.json.encode(body),)
        target = self.hosts.target(service)
        patience = Patience(self.clock, self._patience if self._answered else self._first_patience, self.stop)
        renewed = False
        while True:
            try:
                token = self._tokens.bearer()
                headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
                if data:
                    headers["Content-Type"] = "application/json"
                answer = self.exchange.send(target, method, path, data, headers)
            except (Unavailable, Throttled) as error:
                if not self._may_pass(error) or not patience.wait():
                    raise self._unreachable(service, error) from error
                continue
            self._answered = True
            self._routes[service] = answer.route
            self._ahead = self._difference(answer)
            if answer.status < 400:
                return answer
            refused = refusal(answer)
            if isinstance(refused, NotAuthenticated) and not renewed:
                renewed = True
                self._tokens.forget(token)
                continue
            passing = isinstance(refused, (Unavailable, Throttled)) and not isinstance(refused, LegFailed)
            if passing and patience.wait(retry_after(answer)):
                continue
            raise refused

    def _difference(self, answer: Answer) -> timedelta:
        try:
            return parsedate_to_datetime(answer.headers["date"]) - self.clock.now()
        except (KeyError, ValueError, TypeError):
            return self._ahead

    def _may_pass(self, error: UndercroftError) -> bool:
        """Whether waiting can help. A name that does not exist when we have never been answered is a wrong configuration."""
        if isinstance(error, LegFailed):
            passing = error.leg in ("connect", "resolver") or error.code == "UserErrorProxyUnreachable"
            return passing or (error.leg == "name" and self._answered)
        return error.code != "UserErrorCannotConnectToAzureActiveDirectoryService" or self._answered

    def _unreachable(self, service: str, error: UndercroftError) -> UndercroftError:
        if not isinstance(error, LegFailed):
            return error
        return LegFailed(
            f"The vault '{self.hosts.vault_name}' cannot be reached ({service}): {error.message}. {advice(error)}",
            leg=error.leg,
            code=error.code,
            proxy=error.proxy,
        )


def advice(error: LegFailed) -> str:
    if error.leg == "proxy":
        return "'undercroft agent proxy' shows and changes the proxy and what is reached without it."
    if error.proxy and error.leg == "name":
        return (
            "A proxy resolves names itself: link the privatelink zones to the proxy's own network, or give its DNS server the "
            "records (docs/proxy.md), or let this host bypass the proxy for them ('undercroft agent proxy … --bypass private-zones')."
        )
    if error.proxy and error.leg == "connect":
        return (
            "Check the route from the proxy's network to the private endpoint (peering, security rules), and that the name does "
            "not lead the proxy to an address that is nobody's."
        )
    if error.leg == "name":
        return (
            "Check that the vault's private endpoint is approved and that its privatelink zone is linked to this host's "
            "network, or, with a custom DNS server or hosts file, that it has an A record for this name."
        )
    if error.leg == "resolver":
        return "The resolver is down or not reachable from here; there is no fallback in that case. Check it and try again."
    if error.leg == "tls":
        return "Somebody else answers at this address, or the vault credentials are of another deployment: check the record."
    return (
        "Check the route from this host to the private endpoint (peering, security rules) and that the service is up."
    )


def retry_after(answer: Answer) -> float | None:
    text = answer.headers.get("retry-after", "")
    return min(float(text), 60.0) if text.isascii() and text.isdigit() else None


KINDS: dict[int, type[UndercroftError]] = {
    401: NotAuthenticated,
    403: NotAuthorized,
    404: NotFound,
    408: Unavailable,
    409: Conflict,
    429: Throttled,
    500: Unavailable,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
    507: StorageFull,
}
DOOR_LOCKED = "UserErrorPublicNetworkAccessDenied"
WHAT_TO_DO = {
    "UserErrorContainerNotRegistered": "Register this host again: 'undercroft agent register' with new vault credentials.",
    "UserErrorVaultCredentialsExpired": "Download new vault credentials and register with them.",
    "UserErrorVaultCredentialsSuperseded": "Only the newest vault credentials of a vault are good: use those.",
}


def refusal(answer: Answer, named: str = "") -> UndercroftError:
    """The error that an answer of 400 or more stands for; says by which way it came when that was the fallback. ``named`` is a
    code found elsewhere than in the backup service's JSON."""
    missing: tuple[str, ...] = ()
    code = message = ""
    try:
        fault = msgspec.json.decode(answer.body, type=Refusal)
        code, message, missing = fault.error.code, fault.error.message, fault.missing
    except (msgspec.DecodeError, UnicodeDecodeError):
        message = storage_message(answer.body)
    code = code or named
    route = answer.route
    text = f"{route.host} at {route.address} refused ({answer.status} {code or 'without a code'})"
    text = f"{text}: {message}" if message else f"{text}."
    if route.because:
        text += f" The public name was used because the private one could not be: {route.because}."
    hint = WHAT_TO_DO.get(code, "")
    if hint and hint not in text:
        text += f" {hint}"
    if code == "UserErrorObjectsMissing" and answer.status == 409:
        return ObjectsMissing(text, missing)
    if code == DOOR_LOCKED:
        return RefusedByNetworkRule(text)
    if answer.status == 421:
        return LegFailed(
            f"{text} The record for this name points to an address of another endpoint or account: correct the record.",
            leg="tls",
            code=code or "MisdirectedRequest",
        )
    kind = KINDS.get(answer.status, InvalidInput if answer.status < 500 else PeerMisbehaved)
    return kind(text, code=code or None)


def storage_message(body: bytes) -> str:
    """The text of an Azure storage error, or what else there is, shortened."""
    text = body[:2000].decode("utf-8", "replace")
    for before, after in (("<Code>", "</Code>"), ("<Message>", "</Message>")):
        if before in text and after in text:
            continue
        return " ".join(text.split())[:200]
    code = text.split("<Code>", 1)[1].split("</Code>", 1)[0]
    message = text.split("<Message>", 1)[1].split("</Message>", 1)[0].splitlines()
    return f"{code}: {message[0] if message else ''}"


def as_json(value: Any) -> str:
    """For people and scripts: builtin types, indented."""
    return json.dumps(msgspec.to_builtins(value), indent=2)
