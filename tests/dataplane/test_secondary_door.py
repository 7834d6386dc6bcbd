"""The door of a secondary endpoint: it answers, and serves nothing that writes; what reads waits for replication."""

from __future__ import annotations

import pytest

from tests.dataplane.plane import SUFFIXES, Agent, Plane, registration
from undercroft.names import BACKUP_SERVICES

UNKNOWN = "12345678-1234-1234-1234-123456789012"


def open_secondary(plane: Plane, geo: str = "wus") -> None:
    """Doors of a secondary endpoint of the first vault, whose region is eastus; the pair of that is westus."""
    for offset, service in enumerate(BACKUP_SERVICES):
        fqdn = SUFFIXES.backup_member(plane.vault.vault_id, service, geo)
        plane.add_member(plane.vault, fqdn, "backup", f"127.0.3.{10 + offset}", secondary=True)


def far(plane: Plane, service: str) -> str:
    return SUFFIXES.backup_member(plane.vault.vault_id, service, "wus")


async def test_the_probe_of_a_connection_is_answered(plane: Plane) -> None:
    open_secondary(plane)
    answer = await plane.ask("GET", far(plane, "prot1"), "/CommonProtectionCatalogService.svc")
    assert answer.status == 200


async def test_registration_is_refused_and_is_no_attempt(plane: Plane) -> None:
    open_secondary(plane)
    stranger = Agent(plane, plane.vault, plane.vault_token(plane.vault))
    answer = await stranger.call("POST", "id1", "/v1/register", registration(), host=far(plane, "id1"))
    assert (answer.status, answer.code) == (403, "UserErrorAccessThroughSecondaryEndpoint")
    assert plane.taint_of(plane.vault) is None
    assert (await stranger.call("POST", "id1", "/v1/register", registration())).status == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/container", 403, "UserErrorAccessThroughSecondaryEndpoint"),
        ("GET", "/v1/objects?kind=keys", 403, "UserErrorAccessThroughSecondaryEndpoint"),
        ("POST", "/v1/backups", 403, "UserErrorAccessThroughSecondaryEndpoint"),
        ("POST", f"/v1/backups/{UNKNOWN}/commit", 403, "UserErrorAccessThroughSecondaryEndpoint"),
        ("GET", "/v1/points", 501, "NotImplemented"),
        ("POST", "/v1/restores", 501, "NotImplemented"),
        ("GET", "/v1/nothing", 404, "NotFound"),
    ],
)
async def test_what_the_paired_region_does_not_serve_is_said(
    plane: Plane, method: str, path: str, status: int, code: str
) -> None:
    agent = await plane.registered()
    open_secondary(plane)
    seen = plane.last_door(agent.container_id)
    answer = await agent.call(method, "fc1", path, {} if method == "POST" else None, host=far(plane, "fc1"))
    assert (answer.status, answer.code) == (status, code)
    if status == 501:
        assert b"Cross-region restore" in answer.body
    assert plane.last_door(agent.container_id) == seen, "it is not where the host works"
    assert (await agent.call("GET", "fc1", "/v1/container")).status == 200


async def test_another_vaults_host_is_refused_before_that(plane: Plane) -> None:
    open_secondary(plane)
    agent = await plane.registered(plane.other)
    answer = await agent.call("GET", "fc1", "/v1/points", host=far(plane, "fc1"))
    assert (answer.status, answer.code) == (403, "AuthorizationFailed")


async def test_a_door_with_the_name_of_a_third_region_is_refused(plane: Plane) -> None:
    agent = await plane.registered()
    open_secondary(plane, "ne")
    answer = await agent.call(
        "GET", "fc1", "/v1/points", host=SUFFIXES.backup_member(plane.vault.vault_id, "fc1", "ne")
    )
    assert (answer.status, answer.code) == (403, "AuthorizationFailed")
