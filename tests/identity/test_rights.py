"""Roles, assignments and tokens: the rules, without the wire."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from undercroft.arm.call import Rights
from undercroft.clock import ManualClock
from undercroft.config import Home
from undercroft.errors import LocalProblem, NotAuthenticated, NotAuthorized
from undercroft.identity import assignments, deployment, principals, roles
from undercroft.identity.authorization import Authorization, CallerRights
from undercroft.identity.deployment import Deployment
from undercroft.identity.principals import Principal
from undercroft.identity.tokens import Tokens
from undercroft.names import ResourceId
from undercroft.state.database import Database

APPROVE = "Microsoft.RecoveryServices/vaults/privateEndpointConnectionsApproval/action"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@pytest.fixture
def database(home: Home) -> Iterator[Database]:
    opened = Database.open(home.state)
    yield opened
    opened.close()


def role(name: str) -> roles.RoleDefinition:
    found = roles.by_name(name)
    assert found is not None
    return found


@pytest.mark.parametrize("name", ["Owner", "Contributor"])
def test_who_may_approve(name: str) -> None:
    assert role(name).allows(APPROVE)
    assert role(name).allows(APPROVE.upper())


@pytest.mark.parametrize(
    "name", ["Reader", "Backup Contributor", "Backup Operator", "Network Contributor", "Private DNS Zone Contributor"]
)
def test_who_may_not_approve(name: str) -> None:
    assert not role(name).allows(APPROVE)


def test_actions_and_not_actions() -> None:
    assert role("Owner").allows("Microsoft.Authorization/roleAssignments/write")
    assert not role("Contributor").allows("Microsoft.Authorization/roleAssignments/write")
    assert role("Contributor").allows("Microsoft.Authorization/roleAssignments/read")
    assert role("Reader").allows("Microsoft.Network/virtualNetworks/subnets/read")
    assert not role("Reader").allows("Microsoft.Network/virtualNetworks/write")
    assert role("Network Contributor").allows("Microsoft.Network/privateEndpoints/write")
    assert not role("Network Contributor").allows("Microsoft.RecoveryServices/vaults/write")
    assert not role("Owner").allows_data("Microsoft.Storage/storageAccounts/blobServices/containers/blobs/read")
    assert role("Storage Blob Data Reader").allows_data(
        "Microsoft.Storage/storageAccounts/blobServices/containers/blobs/read"
    )
    assert roles.by_id(
        f"/subscriptions/x/providers/Microsoft.Authorization/roleDefinitions/{roles.OWNER.upper()}"
    ) == role("Owner")
    assert len(roles.built_in()) == len({one.name for one in roles.built_in()}) > 20


async def test_rights_come_from_assignments_at_the_scope_or_above(home: Home, database: Database) -> None:
    clock = ManualClock()
    made = deployment.ensure(database, home, clock)
    tokens, authorization = Tokens(home, made.tenant_id, clock), Authorization(database, clock)
    group = ResourceId(made.subscription_id, "rg", None, (), ())
    vault = ResourceId(made.subscription_id, "RG", "Microsoft.RecoveryServices", ("vaults",), ("v",))
    near = ResourceId(made.subscription_id, "rg2", None, (), ())

    def caller(principal: Principal) -> CallerRights:
        return authorization.rights(tokens.verify(tokens.issue(principal, "a", "i").token, {"a"}))

    def enroll(scope: str | None) -> Principal:
        def write(connection: object) -> Principal:
            one = principals.create(connection, display_name="p", now=clock.now())  # type: ignore[arg-type]
            if scope is not None:
                assignments.assign(
                    connection,  # type: ignore[arg-type]
                    scope=scope,
                    name=one.object_id,
                    role_definition_id=role("Contributor").name,
                    principal_id=one.object_id,
                    now=clock.now(),
                )
            return one

        return database.transact(write)

    owner = database.transact(lambda c: principals.find(c, made.client_id))
    assert owner is not None
    rights: Rights = caller(owner)  # satisfies the wire's protocol
    assert await rights.may(APPROVE, vault) and await rights.may("Microsoft.Authorization/roleAssignments/write", group)
    assert not await rights.may("Microsoft.Resources/subscriptions/read", ResourceId("other", None, None, (), ()))

    somebody = caller(enroll(str(group)))
    assert await somebody.may(APPROVE, vault)
    assert not await somebody.may(APPROVE, near), "rg is not above rg2"
    assert not await somebody.may(APPROVE, ResourceId(made.subscription_id, None, None, (), ()))

    nobody = caller(enroll(None))
    with pytest.raises(NotAuthorized, match=rf"'p'.*{nobody.object_id}.*{APPROVE}.*vaults/v"):
        await nobody.require(APPROVE, vault)
    database.transact(
        lambda c: assignments.assign(
            c,
            scope=str(vault),
            name="n",
            role_definition_id=roles.OWNER,
            principal_id=nobody.object_id,
            now=clock.now(),
        )
    )
    assert not await nobody.may(APPROVE, vault), "still remembered"
    authorization.changed()
    assert await nobody.may(APPROVE, vault)
    database.transact(lambda c: assignments.remove_within(c, group.key))
    clock.advance(timedelta(seconds=16))
    assert not await nobody.may(APPROVE, vault), "another process's change is seen in time"
    assert not await somebody.may(APPROVE, vault)


def test_the_deployment_outlives_its_database(home: Home, database: Database) -> None:
    clock = ManualClock()
    made = deployment.ensure(database, home, clock)
    assert deployment.ensure(database, home, clock) == made
    file = home.keys / "deployment.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    empty = Database.open(home.root / "second" / "state.db")
    try:
        assert deployment.ensure(empty, home, clock) == made
        owner = empty.transact(lambda c: principals.find(c, made.client_id))
        assert owner is not None and owner.secret_hash is not None
        assert principals.verify_secret(owner.secret_hash, made.client_secret)
        granted = empty.transact(lambda c: assignments.of_principal(c, owner.object_id))
        assert [one.scope_key for one in granted] == [f"/subscriptions/{made.subscription_id}"]
    finally:
        empty.close()


def test_a_lost_deployment_file_is_not_papered_over(home: Home, database: Database) -> None:
    deployment.ensure(database, home, ManualClock())
    (home.keys / "deployment.json").unlink()
    with pytest.raises(LocalProblem, match="Restore the file"):
        deployment.ensure(database, home, ManualClock())
    (home.keys / "deployment.json").write_text('{"tenantId": 5}')
    with pytest.raises(LocalProblem, match="damaged"):
        deployment.ensure(database, home, ManualClock())


def test_tokens_survive_rotation_and_restart(home: Home, database: Database) -> None:
    clock = ManualClock()
    made: Deployment = deployment.ensure(database, home, clock)
    principal = database.transact(lambda c: principals.find(c, made.client_id))
    assert principal is not None
    tokens = Tokens(home, made.tenant_id, clock)
    before = tokens.issue(principal, "a", "i").token
    tokens.rotate()
    after = tokens.issue(principal, "a", "i").token
    assert before.split(".")[0] != after.split(".")[0]
    restarted = Tokens(home, made.tenant_id, clock)
    assert restarted.public_keys() == tokens.public_keys()
    for token in (before, after):
        assert restarted.verify(token, {"a"}).client_id == made.client_id
    for _ in range(4):
        tokens.rotate()
    with pytest.raises(NotAuthenticated, match="key that this service does not have"):
        Tokens(home, made.tenant_id, clock).verify(before, {"a"})
    with pytest.raises(NotAuthenticated, match="issued for the tenant"):
        Tokens(home, "another", clock).verify(tokens.issue(principal, "a", "i").token, {"a"})
    (home.keys / "token-keys.json").write_text("{}")
    with pytest.raises(LocalProblem, match="remove it"):
        Tokens(home, made.tenant_id, clock)


def test_a_token_is_refused_for_the_right_reason(home: Home, database: Database) -> None:
    clock = ManualClock()
    made = deployment.ensure(database, home, clock)
    principal = database.transact(lambda c: principals.find(c, made.client_id))
    assert principal is not None
    tokens = Tokens(home, made.tenant_id, clock)
    token = tokens.issue(principal, "a", "i").token
    for _ in range(2):  # the second time from memory
        with pytest.raises(NotAuthenticated) as wrong:
            tokens.verify(token, {"b"})
        assert wrong.value.code == "InvalidAuthenticationTokenAudience"
        tokens.verify(token, {"a"})
    clock.advance(timedelta(minutes=60))
    for verifier in (tokens, Tokens(home, made.tenant_id, clock)):
        with pytest.raises(NotAuthenticated, match="expired at 2026-01-01T01:00:00Z") as late:
            verifier.verify(token, {"a"})
        assert late.value.code == "ExpiredAuthenticationToken"
    head, payload, _ = token.split(".")
    for forged in (f"{head}.{payload}.", f"eyJhbGciOiJub25lIn0.{payload}.", f"eyJhbGciOiJIUzI1NiJ9.{payload}.AAAA"):
        with pytest.raises(NotAuthenticated) as bad:
            tokens.verify(forged, {"a"})
        assert bad.value.code == "InvalidAuthenticationToken"


def test_secrets_are_hashed(home: Home) -> None:
    secret = principals.new_secret()
    hashed = principals.hash_secret(secret)
    assert hashed.startswith("$argon2id$") and secret not in hashed
    assert principals.verify_secret(hashed, secret)
    assert not principals.verify_secret(hashed, secret + "x")
    assert not principals.verify_secret("not a hash", secret)
    assert secret.isalnum() and len(secret) == 43
