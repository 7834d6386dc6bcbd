"""The deployment: one tenant with one subscription and the principal that owns it.

``DIR/keys/deployment.json`` is made at the first start and never changes. It is what a new, empty state database is filled from,
so that a deployment whose database was lost is the same tenant to its clients.
"""

from __future__ import annotations

import uuid
from pathlib import Path

import msgspec
from sqlalchemy import Connection, insert, select

from undercroft.clock import Clock
from undercroft.config import Home
from undercroft.errors import LocalProblem
from undercroft.identity import assignments, keyfiles, principals, roles
from undercroft.state.database import Database
from undercroft.state.schema import subscriptions

__all__ = ["Deployment", "ensure"]

_NAME = "Undercroft"


class Deployment(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    tenant_id: str
    subscription_id: str
    client_id: str
    client_secret: str
    object_id: str


def ensure(database: Database, home: Home, clock: Clock) -> Deployment:
    """The deployment of this folder, made at the first start; its principal, subscription and Owner role are in the database."""
    keyfiles.prepare(home.keys)
    path = home.keys / "deployment.json"
    deployment = _read(path)
    if deployment is None:
        if database.transact(lambda connection: connection.execute(select(subscriptions.c.id)).first()) is not None:
            raise LocalProblem(
                f"{path} is missing, but the state database {home.state} holds a deployment's records. Restore the file from a "
                "backup; or move the state folder away to begin a new deployment.",
                target=str(path),
            )
        deployment = Deployment(
            tenant_id=str(uuid.uuid4()),
            subscription_id=str(uuid.uuid4()),
            client_id=str(uuid.uuid4()),
            client_secret=principals.new_secret(),
            object_id=str(uuid.uuid4()),
        )
        keyfiles.write(path, msgspec.json.format(msgspec.json.encode(deployment), indent=2) + b"\n")
    chosen = deployment
    database.transact(lambda connection: _fill(connection, chosen, clock))
    return deployment


def _read(path: Path) -> Deployment | None:
    content = keyfiles.read(path)
    if content is None:
        return None
    try:
        return msgspec.json.decode(content, type=Deployment)
    except msgspec.MsgspecError as error:
        raise LocalProblem(
            f"{path} is damaged: {error}. Restore it from a backup; without it the deployment's clients cannot log in.",
            target=str(path),
        ) from error


def _fill(connection: Connection, deployment: Deployment, clock: Clock) -> None:
    now = clock.now()
    scope = f"/subscriptions/{deployment.subscription_id}"
    if (
        connection.execute(select(subscriptions).where(subscriptions.c.id == deployment.subscription_id)).first()
        is None
    ):
        connection.execute(insert(subscriptions).values(id=deployment.subscription_id, display_name=_NAME))
    if principals.find(connection, deployment.client_id) is None:
        principals.create(
            connection,
            display_name="undercroft-owner",
            now=now,
            secret_hash=principals.hash_secret(deployment.client_secret),
            object_id=deployment.object_id,
            client_id=deployment.client_id,
        )
    if assignments.same(connection, scope, roles.OWNER, deployment.object_id) is None:
        assignments.assign(
            connection,
            scope=scope,
            name=str(uuid.uuid5(uuid.UUID(deployment.object_id), scope)),
            role_definition_id=f"{scope}/providers/Microsoft.Authorization/roleDefinitions/{roles.OWNER}",
            principal_id=deployment.object_id,
            now=now,
        )
