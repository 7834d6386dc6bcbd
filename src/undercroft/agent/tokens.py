"""Tokens by client assertion (docs/protocol.md, section 3; RFC 7523): ES256 with the caller's P-256 key."""

from __future__ import annotations

import secrets
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlencode, urlsplit

import msgspec

from undercroft.errors import NotAuthenticated, PeerMisbehaved, Unavailable, UndercroftError

from .resolve import LegFailed, Route, Target

if TYPE_CHECKING:
    from undercroft.clock import Clock

    from .exchange import Exchange

__all__ = ["Caller", "Tokens"]

ASSERTION_SECONDS = 300
RENEW_BEFORE_SECONDS = 300.0


@dataclass(frozen=True, slots=True, repr=False)
class Caller:
    """Who asks: a container, or a host with vault credentials."""

    client_id: str
    private_key: str
    tenant_id: str
    audience: str
    login_endpoint: str


class TokenReply(msgspec.Struct, frozen=True):
    access_token: str
    expires_in: int


class TokenRefusal(msgspec.Struct, frozen=True):
    error: str
    error_description: str = ""


class Tokens:
    """Keeps one bearer token and renews it before it expires. Thread-safe."""

    def __init__(self, caller: Caller, exchange: Exchange, clock: Clock) -> None:
        self._caller = caller
        self._exchange = exchange
        self._clock = clock
        self._lock = threading.Lock()
        self._token = ""
        self._renew_at = 0.0
        self.route: Route | None = None
        """How the login endpoint was last reached."""

    def bearer(self) -> str:
        with self._lock:
            if not self._token or self._clock.monotonic() >= self._renew_at:
                reply = self._request()
                self._token = reply.access_token
                margin = min(RENEW_BEFORE_SECONDS, reply.expires_in / 2)
                self._renew_at = self._clock.monotonic() + reply.expires_in - margin
            return self._token

    def forget(self, token: str) -> None:
        """The service did not accept it (its keys changed, our clock slept): the next call asks for another one."""
        with self._lock:
            if self._token == token:
                self._token = ""

    def _assertion(self, url: str) -> str:
        from joserfc import jwt
        from joserfc.jwk import ECKey

        issued = int(self._clock.now().timestamp())
        claims = {
            "iss": self._caller.client_id,
            "sub": self._caller.client_id,
            "aud": url,
            "iat": issued,
            "exp": issued + ASSERTION_SECONDS,
            "jti": secrets.token_hex(16),
        }
        return jwt.encode({"alg": "ES256"}, claims, ECKey.import_key(self._caller.private_key), algorithms=["ES256"])

    def _request(self) -> TokenReply:
        url = f"{self._caller.login_endpoint.rstrip('/')}/{self._caller.tenant_id}/oauth2/v2.0/token"
        parts = urlsplit(url)
        form = {
            "grant_type": "client_credentials",
            "client_id": self._caller.client_id,
            "scope": f"{self._caller.audience}/.default",
            "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            "client_assertion": self._assertion(url),
        }
        try:
            answer = self._exchange.send(
                Target(None, parts.netloc),
                "POST",
                parts.path,
                (urlencode(form).encode(),),
                {"Content-Type": "application/x-www-form-urlencoded"},
            )
        except LegFailed as error:
            if error.leg == "proxy":
                raise LegFailed(
                    f"The login endpoint cannot be reached: {error.message}",
                    leg="proxy",
                    code=error.code,
                    proxy=error.proxy,
                ) from error
            raise Unavailable(
                f"The login endpoint cannot be reached: {error.message}. A private endpoint does not cover it: this host "
                "needs access to the login endpoint as well (article: the prerequisite of access to Microsoft Entra ID). Where a "
                "security group denies the internet, a rule before that allows the service tag AzureActiveDirectory.",
                code="UserErrorCannotConnectToAzureActiveDirectoryService",
            ) from error
        self.route = answer.route
        if answer.status != 200:
            raise self._refusal(answer.status, answer.body, parts.netloc)
        try:
            return msgspec.json.decode(answer.body, type=TokenReply)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise PeerMisbehaved(f"{parts.netloc} answered 200 without a token: {error}.") from error

    def _refusal(self, status: int, body: bytes, host: str) -> UndercroftError:
        try:
            refusal = msgspec.json.decode(body, type=TokenRefusal)
            text = f"{refusal.error}: {refusal.error_description}".rstrip(": ")
        except (msgspec.DecodeError, UnicodeDecodeError):
            text = ""
        if status >= 500 or status == 429:
            return Unavailable(f"{host} answered {status} {text}".rstrip() + ". Try again later.")
        return NotAuthenticated(
            f"{host} gave no token ({status} {text}). The key of this host is not, or no longer, the one that the vault knows: "
            "register it again with new vault credentials ('undercroft agent register'), and check this machine's clock."
        )
