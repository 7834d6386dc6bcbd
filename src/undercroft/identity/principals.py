"""Principals: who may ask for tokens, and how they prove themselves.

A service principal has a secret, of which we keep an Argon2id hash. Vault credentials and containers have a key pair, of which
we keep the public half, and an ``audience``: the only one they may ask a token for. The functions take a connection, so that a
principal appears in the same transaction as what it belongs to.
"""

from __future__ import annotations

import secrets
import string
import uuid
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

import argon2
from sqlalchemy import Connection, Row, delete, insert, select

from undercroft.clock import timestamp
from undercroft.state.schema import principals, role_assignments

__all__ = [
    "SERVICE_PRINCIPAL",
    "Principal",
    "create",
    "find",
    "find_by_object_id",
    "hash_secret",
    "listing",
    "new_secret",
    "remove",
    "verify_secret",
]

_ALPHABET = string.ascii_letters + string.digits
SERVICE_PRINCIPAL = "ServicePrincipal"

# The secrets are 256 random bits, so the hash need not slow down guessing much; OWASP's smallest Argon2id profile
# (19 MiB, two passes) takes some tens of milliseconds and bounds what a flood of logins costs us.
_HASHER = argon2.PasswordHasher(time_cost=2, memory_cost=19456, parallelism=1)


@dataclass(frozen=True, slots=True)
class Principal:
    object_id: str
    client_id: str
    kind: str
    display_name: str
    secret_hash: str | None
    public_key: str | None
    audience: str | None
    vault_key: str | None
    not_after: str | None
    created: str


def new_secret() -> str:
    """256 random bits in letters and digits: nothing that a shell or an option parser would take for something else."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(43))


def hash_secret(secret: str) -> str:
    """Slow on purpose: call it in a thread, outside any transaction."""
    return _HASHER.hash(secret)


def verify_secret(secret_hash: str, secret: str) -> bool:
    """Slow on purpose: call it in a thread."""
    try:
        return _HASHER.verify(secret_hash, secret)
    except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
        return False


def create(
    connection: Connection,
    *,
    display_name: str,
    now: datetime,
    secret_hash: str | None = None,
    public_key: str | None = None,
    kind: str = SERVICE_PRINCIPAL,
    audience: str | None = None,
    vault_key: str | None = None,
    not_after: datetime | None = None,
    object_id: str | None = None,
    client_id: str | None = None,
) -> Principal:
    """A new principal, with a secret (its hash) or with a public key in PEM."""
    principal = Principal(
        object_id or str(uuid.uuid4()),
        client_id or str(uuid.uuid4()),
        kind,
        display_name,
        secret_hash,
        public_key,
        audience,
        vault_key,
        timestamp(not_after) if not_after else None,
        timestamp(now),
    )
    values = {column: getattr(principal, column) for column in Principal.__slots__}
    connection.execute(insert(principals).values(values))
    return principal


def find(connection: Connection, client_id: str) -> Principal | None:
    """By client id, as a login names it."""
    return _one(connection.execute(select(principals).where(principals.c.client_id == client_id.lower())).first())


def find_by_object_id(connection: Connection, object_id: str) -> Principal | None:
    """By object id, as a role assignment names it."""
    return _one(connection.execute(select(principals).where(principals.c.object_id == object_id.lower())).first())


def listing(connection: Connection, object_ids: Collection[str] | None = None) -> tuple[Principal, ...]:
    """Service principals by name; of these object ids, or all."""
    query = select(principals).where(principals.c.kind == SERVICE_PRINCIPAL)
    if object_ids is not None:
        query = query.where(principals.c.object_id.in_([text.lower() for text in object_ids]))
    rows = connection.execute(query.order_by(principals.c.display_name, principals.c.object_id))
    return tuple(_principal(row) for row in rows)


def remove(connection: Connection, object_id: str) -> bool:
    """With its role assignments. Tokens that it holds are refused by then, for want of any right."""
    connection.execute(delete(role_assignments).where(role_assignments.c.principal_id == object_id.lower()))
    return connection.execute(delete(principals).where(principals.c.object_id == object_id.lower())).rowcount > 0


def _one(row: Row[tuple[object, ...]] | None) -> Principal | None:
    return None if row is None else _principal(row)


def _principal(row: Row[tuple[object, ...]]) -> Principal:
    return Principal(**dict(row._mapping))
