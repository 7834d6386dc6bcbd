"""Client assertions (RFC 7523): a principal proves itself with a JWT that it signed, once.

The signature is by the principal's registered public key (P-256 or RSA), ``aud`` is our token URL under any name we answer as,
the JWT lives ten minutes at most, and its ``jti`` is accepted once. Used ids are kept in memory until they expire: after a
restart of the service a captured assertion could be replayed within its ten minutes, by someone who broke TLS.
"""

from __future__ import annotations

import base64
import math
from datetime import UTC, datetime, timedelta

import msgspec
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, RSAKey

from undercroft.clock import Clock
from undercroft.identity.audiences import Audiences
from undercroft.identity.login_errors import LoginRefused
from undercroft.identity.principals import Principal

__all__ = ["ASSERTIONS_EACH", "ASSERTION_TYPE", "Assertions", "token_paths", "unverified_client"]

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_LONGEST_LIFE = timedelta(minutes=10)
_SKEW = timedelta(minutes=5)
_LONGEST = 16 * 1024
ASSERTIONS_EACH = 1000
"""Of one principal, within their ten minutes: a client asks for a token once an hour."""
_CLIENTS = 10_000


class _Payload(msgspec.Struct, frozen=True):
    iss: str
    sub: str
    aud: str | tuple[str, ...]
    exp: float
    jti: str
    iat: float | None = None
    nbf: float | None = None


def token_paths(tenant: str) -> frozenset[tuple[str, ...]]:
    """Where tokens are asked for: Entra v2, v1, and the AD FS form."""
    return frozenset(
        {
            (tenant, "oauth2", "v2.0", "token"),
            (tenant, "oauth2", "token"),
            ("adfs", "oauth2", "token"),
        }
    )


def _bad(number: int, message: str) -> LoginRefused:
    return LoginRefused(401, "invalid_client", number, message)


def unverified_client(assertion: str) -> str | None:
    """Who the assertion says it is from, to find the key; believed only after ``verify``."""
    try:
        payload = msgspec.json.decode(_unpadded(assertion.split(".")[1]), type=dict[str, object])
    except (IndexError, ValueError, msgspec.MsgspecError):
        return None
    subject = payload.get("sub")
    return subject if isinstance(subject, str) else None


def _unpadded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


class Assertions:
    def __init__(self, audiences: Audiences, tenant: str, clock: Clock) -> None:
        self._audiences = audiences
        self._paths = token_paths(tenant)
        self._clock = clock
        self._used: dict[str, dict[str, float]] = {}
        """By client: the ids, and when they end."""

    def verify(self, assertion: str, principal: Principal) -> None:
        """``LoginRefused`` says which rule the assertion breaks."""
        payload = self._decode(assertion, principal)
        if payload.iss.lower() != principal.client_id or payload.sub.lower() != principal.client_id:
            raise _bad(700021, "The client assertion's 'iss' and 'sub' must both be the client id.")
        self._check_audience(payload)
        self._check_time(payload)
        self._use_once(principal, payload)

    def _decode(self, assertion: str, principal: Principal) -> _Payload:
        if len(assertion) > _LONGEST:
            raise _bad(50027, "The client assertion is larger than 16 KiB.")
        try:
            if principal.public_key is None:
                raise _bad(700027, "The application has no registered key; use its client secret.")
            key, algorithm = _key(principal.public_key)
            token = jwt.decode(assertion, key, algorithms=[algorithm])
            return msgspec.convert(token.claims, _Payload)
        except msgspec.ValidationError as error:
            raise _bad(50027, f"The client assertion's claims are not usable: {error}.") from error
        except (JoseError, ValueError, TypeError, KeyError) as error:
            raise _bad(
                700027,
                "The client assertion's signature does not verify with the key that is registered for the application "
                f"({type(error).__name__}).",
            ) from error

    def _check_audience(self, payload: _Payload) -> None:
        named = (payload.aud,) if isinstance(payload.aud, str) else payload.aud
        if not any(self._audiences.path_of(text) in self._paths for text in named):
            raise _bad(700023, f"The client assertion's audience {named} is not the token endpoint's URL.")

    def _check_time(self, payload: _Payload) -> None:
        now = self._clock.now().timestamp()
        made = payload.iat if payload.iat is not None else payload.nbf
        skew = _SKEW.total_seconds()
        if not all(math.isfinite(moment) for moment in (payload.exp, made or 0.0, payload.nbf or 0.0)):
            raise _bad(50027, "The client assertion's times are not finite numbers.")
        if made is None:
            raise _bad(50027, "The client assertion carries neither 'iat' nor 'nbf'.")
        if payload.exp <= now:
            expired = datetime.fromtimestamp(max(0.0, min(payload.exp, 4e9)), UTC)
            raise _bad(
                700024,
                f"The client assertion expired at {expired:%Y-%m-%dT%H:%M:%SZ}; it is {self._clock.now():%H:%M:%SZ} here.",
            )
        if max(made, payload.nbf or made) > now + skew:
            raise _bad(700024, "The client assertion is from the future; compare the clocks.")
        longest = _LONGEST_LIFE.total_seconds()
        if payload.exp - made > longest + 1 or payload.exp > now + longest + skew:
            raise _bad(700024, "The client assertion lives longer than ten minutes.")

    def _use_once(self, principal: Principal, payload: _Payload) -> None:
        now = self._clock.now().timestamp()
        if not payload.jti or len(payload.jti) > 200:
            raise _bad(50027, "The client assertion's 'jti' must have 1 to 200 characters.")
        if len(self._used) >= _CLIENTS:
            self._used = {
                client: used for client, used in self._used.items() if any(end > now for end in used.values())
            }
        used = self._used.setdefault(principal.client_id, {})
        if len(used) >= ASSERTIONS_EACH:
            used = self._used[principal.client_id] = {each: end for each, end in used.items() if end > now}
        if used.get(payload.jti, 0) > now:
            raise _bad(700027, "The client assertion was used before; sign a new one with a 'jti' of its own.")
        if len(used) >= ASSERTIONS_EACH:
            raise LoginRefused(
                429, "temporarily_unavailable", 90033, "Too many logins of this client; try again in some minutes."
            )
        used[payload.jti] = payload.exp


def _key(pem: str) -> tuple[ECKey | RSAKey, str]:
    key = load_pem_public_key(pem.encode())
    if isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1):
        return ECKey.import_key(pem), "ES256"
    if isinstance(key, RSAPublicKey):
        return RSAKey.import_key(pem), "RS256"
    raise _bad(700027, "The application's registered key is neither P-256 nor RSA.")
