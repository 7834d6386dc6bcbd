"""Tokens: RS256 JWTs of this tenant, issued by login and verified by everyone who serves.

The signing keys are a JWK set in ``DIR/keys/token-keys.json``; its first key signs, all of them verify, so that a rotation
invalidates nothing. A verified token is remembered by its hash until it expires: the signature is checked once.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Container
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet, RSAKey

from undercroft.clock import Clock
from undercroft.config import Home
from undercroft.errors import LocalProblem, NotAuthenticated
from undercroft.identity import keyfiles
from undercroft.identity.principals import Principal

__all__ = ["Claims", "IssuedToken", "Tokens"]

_REMEMBERED = 4096
_SKEW = timedelta(minutes=1)
_LONGEST = 16 * 1024
_KEYS_KEPT = 4


@dataclass(frozen=True, slots=True)
class Claims:
    """What a verified token says."""

    object_id: str
    client_id: str
    audience: str
    tenant: str
    kind: str
    vault_key: str | None
    expires: datetime
    name: str = ""


@dataclass(frozen=True, slots=True)
class IssuedToken:
    token: str
    expires: datetime
    seconds: int


class _Payload(msgspec.Struct, frozen=True):
    """Unknown claims are allowed: a later version may add some."""

    aud: str
    tid: str
    oid: str
    appid: str
    exp: int
    nbf: int
    kind: str
    app_displayname: str = ""
    vault: str | None = None


class Tokens:
    """Pure computation on keys read once; safe to call from any coroutine of one loop."""

    def __init__(self, home: Home, tenant: str, clock: Clock, lifetime: timedelta = timedelta(minutes=60)) -> None:
        self.tenant = tenant
        self._clock = clock
        self._lifetime = lifetime
        self._path = home.keys / "token-keys.json"
        keyfiles.prepare(home.keys)
        self._keys = self._load()
        self._verified: dict[bytes, Claims] = {}

    def _load(self) -> list[RSAKey]:
        stored = keyfiles.read(self._path)
        if stored is None:
            keys = [_new_key()]
            self._save(keys)
            return keys
        try:
            return [
                RSAKey.import_key(key)
                for key in msgspec.json.decode(stored, type=dict[str, list[dict[str, Any]]])["keys"]
            ]
        except (msgspec.MsgspecError, JoseError, KeyError, ValueError) as error:
            raise LocalProblem(
                f"{self._path} holds no token keys ({type(error).__name__}). Restore it from a backup, or remove it: "
                "a new key is made at the next start, and clients log in again.",
                target=str(self._path),
            ) from error

    def _save(self, keys: list[RSAKey]) -> None:
        content = {"keys": [dict[str, Any](key.as_dict(private=True)) | {"kid": key.kid} for key in keys]}
        keyfiles.write(self._path, msgspec.json.encode(content))

    def rotate(self) -> None:
        """Sign with a new key from now on. Old keys verify on until they are the fifth."""
        keys = [_new_key(), *self._keys][:_KEYS_KEPT]
        self._save(keys)
        self._keys = keys

    def public_keys(self) -> dict[str, Any]:
        """The JWK set that verifies our tokens (RFC 7517)."""
        return {
            "keys": [
                dict[str, Any](key.as_dict(private=False)) | {"kid": key.kid, "use": "sig", "alg": "RS256"}
                for key in self._keys
            ]
        }

    def issue(self, principal: Principal, audience: str, issuer: str) -> IssuedToken:
        """A token of the usual lifetime, or shorter when the principal ends before."""
        now = self._clock.now()
        expires = now + self._lifetime
        if principal.not_after is not None:
            expires = min(expires, datetime.fromisoformat(principal.not_after))
        seconds = int((expires - now).total_seconds())
        payload: dict[str, Any] = {
            "aud": audience,
            "iss": issuer,
            "iat": int(now.timestamp()),
            "nbf": int(now.timestamp()),
            "exp": int(now.timestamp()) + seconds,
            "tid": self.tenant,
            "oid": principal.object_id,
            "sub": principal.object_id,
            "appid": principal.client_id,
            "azp": principal.client_id,
            "idtyp": "app",
            "kind": principal.kind,
            "app_displayname": principal.display_name,
            "uti": str(uuid.uuid4()),
            "ver": "1.0",
        }
        if principal.vault_key is not None:
            payload["vault"] = principal.vault_key
        key = self._keys[0]
        token = jwt.encode({"alg": "RS256", "kid": key.kid}, payload, key, algorithms=["RS256"])
        return IssuedToken(token, datetime.fromtimestamp(payload["exp"], UTC), seconds)

    def verify(self, token: str, audiences: Container[str]) -> Claims:
        """The claims of a token that we signed, that is in its time, and that is for one of ``audiences``.

        Otherwise ``NotAuthenticated``, whose code says which of the three it was.
        """
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        claims = self._verified.get(digest)
        if claims is None:
            claims = self._decode(token)
            if len(self._verified) >= _REMEMBERED:
                self._forget()
            self._verified[digest] = claims
        if claims.expires <= self._clock.now():
            self._verified.pop(digest, None)
            raise NotAuthenticated(
                f"The access token expired at {claims.expires:%Y-%m-%dT%H:%M:%SZ}. Log in again.",
                code="ExpiredAuthenticationToken",
            )
        if claims.audience not in audiences:
            raise NotAuthenticated(
                f"The access token is for the audience '{claims.audience}', which is not this service. "
                "Ask the login endpoint for a token of the right scope.",
                code="InvalidAuthenticationTokenAudience",
            )
        return claims

    def _forget(self) -> None:
        now = self._clock.now()
        alive = {digest: claims for digest, claims in self._verified.items() if claims.expires > now}
        self._verified = alive if len(alive) < _REMEMBERED else {}

    def _decode(self, token: str) -> Claims:
        if len(token) > _LONGEST:
            raise _invalid("it is larger than any that this service issues")
        try:
            decoded = jwt.decode(token, KeySet(list(self._keys)), algorithms=["RS256"])
            payload = msgspec.convert(decoded.claims, _Payload)
        except (JoseError, ValueError, TypeError, KeyError) as error:
            raise _invalid(_REASONS.get(type(error).__name__, "it is not a JWT that this service issued")) from error
        if payload.tid != self.tenant:
            raise _invalid(f"it was issued for the tenant '{payload.tid}'")
        if datetime.fromtimestamp(payload.nbf, UTC) > self._clock.now() + _SKEW:
            raise _invalid("it is not valid yet; compare the clocks")
        expires = datetime.fromtimestamp(payload.exp, UTC)
        return Claims(
            payload.oid,
            payload.appid,
            payload.aud,
            payload.tid,
            payload.kind,
            payload.vault,
            expires,
            payload.app_displayname,
        )


_REASONS = {
    "BadSignatureError": "its signature does not verify, so it was changed or was signed by someone else",
    "InvalidKeyIdError": "it was signed with a key that this service does not have",
    "UnsupportedAlgorithmError": "it is not signed with RS256",
}


def _invalid(reason: str) -> NotAuthenticated:
    return NotAuthenticated(
        f"The access token is not valid: {reason}. Log in again.", code="InvalidAuthenticationToken"
    )


def _new_key() -> RSAKey:
    return RSAKey.generate_key(2048, {"use": "sig", "alg": "RS256"}, private=True, auto_kid=True)
