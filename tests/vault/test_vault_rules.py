"""Vaults: eligibility, taint, limits, members, connections, deletion."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, insert, select, update

from tests.vnet import world
from undercroft.clock import timestamp
from undercroft.errors import Conflict, InvalidParameter, NotFound
from undercroft.names import BACKUP_SERVICES, FIRST_SERVICES, NameSuffixes, regions
from undercroft.state import schema, tasks
from undercroft.state.database import Database
from undercroft.vault import connections, demand, eligibility, members, vaults
from undercroft.vault.connections import ALLOWED, Status
from undercroft.vault.vaults import VaultRecord


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Database]:
    with world.database(tmp_path) as opened:
        yield opened


def container(connection: Connection, vault: VaultRecord, name: str = "web01") -> str:
    connection.execute(
        insert(schema.containers).values(
            id=f"id-{name}",
            vault_key=vault.key,
            name=f"Windows;{name}",
            friendly_name=name,
            registration="Registered",
            public_key="",
            blob_container="c",
            agent="{}",
            registered=timestamp(world.NOW),
        )
    )
    return f"id-{name}"


def registration(connection: Connection, name: str = "web01") -> str:
    query = select(schema.containers.c.registration).where(schema.containers.c.id == f"id-{name}")
    return str(connection.execute(query).scalar_one())


def open_one(
    connection: Connection,
    vault: VaultRecord,
    number: int | str = 1,
    approved: bool = True,
    group: str = "AzureBackup",
    scope: str = world.GROUP,
) -> str:
    return connections.open_connection(
        connection,
        vault,
        endpoint_id=f"{scope}/providers/Microsoft.Network/privateEndpoints/pe{number}",
        endpoint_name=f"pe{number}",
        group=group,
        approved=approved,
        description="None",
        now=world.NOW,
    ).key


# --- vaults ----------------------------------------------------------------------------------------------------------


def test_a_new_vault_has_an_id_of_64_bits_and_eight_members(state: Database) -> None:
    def check(connection: Connection) -> None:
        vault = world.vault(connection)
        assert 10**15 <= vault.vault_id < 2**63
        found = members.of_vault(connection, vault.key)
        assert [one.service for one in found] == ["fc1", "fab1", "prot1", "rec2", "ecs1", "id1", "tel1", "wbcm1"]
        assert found[0].fqdn == f"{vault.vault_id}-ab-pod01-fc1.privatelink.we.backup.windowsazure.com"
        assert {one.door_service for one in found} == {"backup"} and found[0].name == "backup-fc1"
        assert vaults.by_vault_id(connection, vault.vault_id) == vault
        assert vaults.get(connection, vault.key.upper()) == vault
        assert tasks.waiting(connection, "manifest") == 1

    state.transact(check)


def test_a_missing_vault_is_named_in_azures_words(state: Database) -> None:
    key = f"{world.GROUP}/providers/Microsoft.RecoveryServices/vaults/nope"
    with pytest.raises(NotFound, match=r"Microsoft\.RecoveryServices/vaults/nope") as caught:
        state.transact(lambda connection: vaults.require(connection, key))
    assert caught.value.code == "ResourceNotFound"


@pytest.mark.parametrize("name", ["v", "1vault", "-vault", "va_ult", "v" * 51])
def test_wrong_vault_names(name: str) -> None:
    with pytest.raises(InvalidParameter):
        vaults.check_name(name)


def test_public_access_is_enabled_or_disabled_and_nothing_else() -> None:
    assert vaults.check_public_access("enabled") and not vaults.check_public_access("Disabled")
    with pytest.raises(InvalidParameter, match="NetworkSettings parameter is invalid") as caught:
        vaults.check_public_access("")
    assert caught.value.code == "InvalidRestApiParameter"


def test_a_vault_with_containers_or_endpoints_is_not_deleted(state: Database) -> None:
    def check(connection: Connection) -> None:
        vault = world.vault(connection)
        key = open_one(connection, vault)
        with pytest.raises(Conflict, match="privateEndpoints/pe1"):
            vaults.remove(connection, vault, world.NOW)
        found = connections.get(connection, key)
        assert found is not None
        connections.remove(connection, found)
        id = container(connection, vault)
        with pytest.raises(Conflict, match="web01"):
            vaults.remove(connection, vault, world.NOW)
        connection.execute(schema.containers.delete().where(schema.containers.c.id == id))
        vaults.remove(connection, vault, world.NOW)
        assert vaults.get(connection, vault.key) is None
        assert members.of_vault(connection, vault.key) == ()

    state.transact(check)


# --- eligibility -----------------------------------------------------------------------------------------------------


def decide(connection: Connection, key: str, status: Status) -> None:
    found = connections.get(connection, key)
    assert found is not None
    connections.transition(connection, found, status)


def drop(connection: Connection, *keys: str) -> None:
    for key in keys:
        found = connections.get(connection, key)
        assert found is not None
        connections.remove(connection, found)


@pytest.mark.parametrize("group", ["AzureBackup", "AzureBackup_secondary"])
@pytest.mark.parametrize("approved", [True, False])
def test_a_tainted_vault_refuses_its_first_endpoint_for_life(state: Database, group: str, approved: bool) -> None:
    def check(connection: Connection) -> None:
        vault = world.vault(connection)
        eligibility.taint(connection, vault.key, "web01 was registered", world.NOW)
        eligibility.taint(connection, vault.key, "again", world.NOW)
        tainted = vaults.require(connection, vault.key)
        assert tainted.tainted and tainted.taint_reason == "web01 was registered"
        with pytest.raises(Conflict, match="new vault") as caught:
            open_one(connection, tainted, approved=approved, group=group)
        assert caught.value.code == "UserErrorPrivateEndpointNotAllowedOnUsedVault"
        assert "web01 was registered" in caught.value.message

    state.transact(check)


def test_a_vault_that_had_an_endpoint_may_always_have_more(state: Database) -> None:
    def check(connection: Connection) -> None:
        vault = world.vault(connection)
        first = open_one(connection, vault)
        vaults.taint(connection, vault.key, "registered", world.NOW)
        drop(connection, first, open_one(connection, vault, 2))
        drop(connection, open_one(connection, vault, 3))
        open_one(connection, vault, 4, group="AzureBackup_secondary")

    state.transact(check)


def test_that_a_vault_had_an_endpoint_is_written_to_its_copy_in_the_store(state: Database) -> None:
    def check(connection: Connection) -> None:
        vault = world.vault(connection)
        connection.execute(schema.tasks.delete())
        key = open_one(connection, vault, approved=False)
        assert tasks.waiting(connection, "manifest") == 0
        decide(connection, key, Status.APPROVED)
        assert tasks.waiting(connection, "manifest") == 1
        assert vaults.require(connection, vault.key).had_endpoint

    state.transact(check)


def test_a_request_that_nobody_approved_exempts_nothing(state: Database) -> None:
    """Anybody may ask for a connection: a stranger's must not free the vault from the rule, nor is it approved after use."""

    def check(connection: Connection) -> None:
        vault = world.vault(connection)
        waiting = open_one(connection, vault, 1, approved=False)
        assert not vaults.require(connection, vault.key).had_endpoint
        vaults.taint(connection, vault.key, "registered", world.NOW)
        with pytest.raises(Conflict) as caught:
            open_one(connection, vault, 2)
        assert caught.value.code == "UserErrorPrivateEndpointNotAllowedOnUsedVault"
        with pytest.raises(Conflict) as caught:
            decide(connection, waiting, Status.APPROVED)
        assert caught.value.code == "UserErrorPrivateEndpointNotAllowedOnUsedVault"
        decide(connection, waiting, Status.REJECTED)

    state.transact(check)


def test_a_secondary_endpoint_does_not_exempt_the_vault(state: Database) -> None:
    """Article, 'Cross region restore …', 1: the vault's own region is enabled before anything is protected."""

    def check(connection: Connection) -> None:
        vault = world.vault(connection)
        open_one(connection, vault, group="AzureBackup_secondary")
        vaults.taint(connection, vault.key, "registered", world.NOW)
        with pytest.raises(Conflict):
            open_one(connection, vault, 2)

    state.transact(check)


def test_twelve_endpoints_of_each_group_are_the_limit(state: Database) -> None:
    def check(connection: Connection) -> None:
        vault = world.vault(connection)
        for group in ("AzureBackup", "AzureBackup_secondary"):
            keys = [open_one(connection, vault, f"{group}{number}", group=group) for number in range(12)]
            with pytest.raises(Conflict, match="12 is the limit") as caught:
                open_one(connection, vault, f"{group}12", group=group.upper())
            assert caught.value.code == "UserErrorPrivateEndpointLimitReached"
            waiting = open_one(connection, vault, f"{group}12", group=group, approved=False)
            with pytest.raises(Conflict, match="12 is the limit"):
                decide(connection, waiting, Status.APPROVED)
            decide(connection, keys[0], Status.APPROVED)  # which it is already
            drop(connection, keys[0])
            decide(connection, waiting, Status.APPROVED)

    state.transact(check)


def test_requests_of_strangers_are_limited_by_themselves(state: Database) -> None:
    """Neither can they use up the twelve, nor one subscription keep all others from asking."""

    def check(connection: Connection) -> None:
        vault = world.vault(connection)
        stranger = "/subscriptions/aaaaaaaa-0000-0000-0000-000000000000/resourceGroups/x"
        keys = [open_one(connection, vault, number, approved=False, scope=stranger) for number in range(12)]
        with pytest.raises(Conflict, match="not approved") as caught:
            open_one(connection, vault, 12, approved=False, scope=stranger.upper())
        assert caught.value.code == "UserErrorPrivateEndpointRequestLimitReached"
        decide(connection, keys[0], Status.REJECTED)
        with pytest.raises(Conflict):  # rejected ones are there until they are removed
            open_one(connection, vault, 12, approved=False, scope=stranger)
        open_one(connection, vault, 12, approved=False)
        for number in range(20, 32):
            open_one(connection, vault, number)
        drop(connection, keys[0])
        open_one(connection, vault, 12, approved=False, scope=stranger)

    state.transact(check)


# --- members ---------------------------------------------------------------------------------------------------------


def test_secondary_members_carry_the_paired_regions_geo_code(state: Database) -> None:
    def check(connection: Connection) -> None:
        vault = world.vault(connection)
        for _ in range(2):
            members.add_secondary_services(connection, vault.key, vault.vault_id, vault.region, world.SUFFIXES)
        found = members.of_vault(connection, vault.key, members.SECONDARY)
        assert len(found) == 8
        assert found[0].fqdn == f"{vault.vault_id}-ab-pod01-fc1.privatelink.ne.backup.windowsazure.com"
        assert found[0].name == "backup-fc1" and found[0].group == "AzureBackup_secondary"
        members.add_account(connection, vault.key, "abcd1234ecs01", now=world.NOW)
        assert len(members.of_vault(connection, vault.key, members.SECONDARY)) == 8
        assert len(members.of_vault(connection, vault.key)) == 10
        lonely = world.vault(connection, "lonely", next(one.name for one in regions().values() if one.pair is None))
        with pytest.raises(InvalidParameter, match="no paired region") as caught:
            members.add_secondary_services(connection, lonely.key, lonely.vault_id, lonely.region, world.SUFFIXES)
        assert caught.value.code == "UserErrorRegionHasNoPair"

    state.transact(check)


def test_an_account_brings_two_members_and_one_task(state: Database) -> None:
    def check(connection: Connection) -> None:
        vault = world.vault(connection)
        for _ in range(2):
            members.add_account(connection, vault.key, "abcd1234ecs01", now=world.NOW)
        members.add_account(connection, vault.key, "abcd1234prot01", ("blob",), now=world.NOW)
        found = members.of_vault(connection, vault.key)[8:]
        assert [(one.fqdn, one.name, one.door_service) for one in found] == [
            ("abcd1234ecs01.blob.core.windows.net", "abcd1234ecs01-blob", "blob"),
            ("abcd1234ecs01.queue.core.windows.net", "abcd1234ecs01-queue", "queue"),
            ("abcd1234prot01.blob.core.windows.net", "abcd1234prot01-blob", "blob"),
        ]
        assert tasks.waiting(connection, "vault") == 1

    state.transact(check)


def test_a_vault_may_begin_with_two_services_and_gets_the_others_once(state: Database) -> None:
    def check(connection: Connection) -> None:
        id = f"{world.GROUP}/providers/Microsoft.RecoveryServices/vaults/small"
        key = world.put(connection, id, vaults.Vault())
        vault_id = vaults.create(connection, key, "westeurope", world.SUFFIXES, world.NOW, FIRST_SERVICES)
        assert [one.service for one in members.of_vault(connection, key)] == ["rec2", "id1"]
        wanted = demand.of_vault(connection, key, "AzureBackup")
        assert (wanted.creation, wanted.registration, wanted.total) == (2, 8, 11)
        connection.execute(schema.tasks.delete())
        new = members.complete_services(connection, key, vault_id, "westeurope", world.SUFFIXES)
        assert len(new) == 6 and tasks.waiting(connection, "vault") == 1
        assert members.complete_services(connection, key, vault_id, "westeurope", world.SUFFIXES) == ()
        assert sorted(one.service for one in members.of_vault(connection, key)) == sorted(BACKUP_SERVICES)
        assert demand.of_vault(connection, key, "AzureBackup").total == 11

    state.transact(check)


def test_later_protection_accounts_are_in_a_partition_of_the_names(state: Database) -> None:
    """Article, table of zones: ``*.storage.azure.net``; the first account, and the communication account, are not."""

    def check(connection: Connection) -> None:
        vault = world.vault(connection)
        for account in ("abcd1234prot01", "abcd1234prot02", "abcd1234prot117"):
            members.add_account(connection, vault.key, account, ("blob",), now=world.NOW)
        found = [one.fqdn for one in members.of_vault(connection, vault.key)[8:]]
        assert found == [
            "abcd1234prot01.blob.core.windows.net",
            "abcd1234prot02.z78.blob.storage.azure.net",
            "abcd1234prot117.z93.blob.storage.azure.net",
        ]
        off = NameSuffixes(partitioned="")
        assert off.storage_member("abcd1234prot02", "blob") == "abcd1234prot02.blob.core.windows.net"
        assert off.storage_zones == ("privatelink.queue.core.windows.net", "privatelink.blob.core.windows.net")

    state.transact(check)


# --- connections -----------------------------------------------------------------------------------------------------


def test_a_connection_is_named_after_endpoint_and_vault(state: Database) -> None:
    def check(connection: Connection) -> None:
        vault = world.vault(connection)
        open_one(connection, vault)
        (found,) = connections.of_vault(connection, vault.key)
        assert found.name.startswith(f"pe1.{vault.vault_id}.backup.") and found.status is Status.APPROVED
        assert connections.of_endpoint(connection, found.endpoint_key.upper()) == found

    state.transact(check)


def test_statuses_are_read_without_case() -> None:
    assert connections.parse_status("approved") is Status.APPROVED
    with pytest.raises(InvalidParameter, match="Pending, Approved, Rejected, Disconnected"):
        connections.parse_status("Granted")


def test_the_table_says_that_a_rejection_is_final() -> None:
    assert Status.APPROVED not in ALLOWED[Status.REJECTED]
    assert ALLOWED[Status.DISCONNECTED] == {Status.DISCONNECTED}
    assert all(status in ALLOWED for targets in ALLOWED.values() for status in targets)
    assert all(Status.PENDING not in targets for targets in ALLOWED.values())


@settings(deadline=None, max_examples=30)
@given(walk=st.lists(st.sampled_from(list(Status)), max_size=8), approved=st.booleans())
def test_any_walk_stays_inside_the_table(
    tmp_path_factory: pytest.TempPathFactory, walk: list[Status], approved: bool
) -> None:
    """Random wishes: those the table allows happen, all others are refused and change nothing."""
    with world.database(tmp_path_factory.mktemp("walk")) as opened:

        def check(connection: Connection) -> None:
            vault = world.vault(connection)
            key = open_one(connection, vault, approved=approved)
            rejected = False
            for wanted in walk:
                before = connections.get(connection, key)
                assert before is not None
                if wanted in ALLOWED[before.status]:
                    connections.transition(connection, before, wanted, "text")
                else:
                    with pytest.raises(Conflict, match=f"is {before.status} and cannot become {wanted}"):
                        connections.transition(connection, before, wanted)
                after = connections.get(connection, key)
                assert after is not None and after.status in (
                    {wanted} if wanted in ALLOWED[before.status] else {before.status}
                )
                assert not (rejected and after.status is Status.APPROVED)
                rejected = rejected or after.status is Status.REJECTED

        opened.transact(check)


def test_removing_the_last_connection_asks_for_registration_again(state: Database) -> None:
    def check(connection: Connection) -> None:
        vault = world.vault(connection)
        keys = [open_one(connection, vault, number) for number in (1, 2)]
        container(connection, vault)
        left = []
        for key in keys:
            found = connections.get(connection, key)
            assert found is not None
            left.append((connections.remove(connection, found), registration(connection)))
        assert left == [(0, "Registered"), (1, "NotRegistered")]
        connection.execute(update(schema.containers).values(registration="Registered"))
        assert connections.get(connection, keys[0]) is None

    state.transact(check)


def test_a_secondary_connection_unregisters_nobody(state: Database) -> None:
    """Hosts register in the vault's own region: only the last endpoint there, coming or going, is of concern to them."""

    def check(connection: Connection) -> None:
        vault = world.vault(connection)
        own = open_one(connection, vault)
        secondary = [open_one(connection, vault, number, group=members.SECONDARY) for number in (2, 3)]
        container(connection, vault)
        drop(connection, secondary[0])
        assert registration(connection) == "Registered"
        drop(connection, own)
        assert registration(connection) == "NotRegistered"

    state.transact(check)


def test_a_connection_that_was_never_approved_unregisters_nobody(state: Database) -> None:
    """Anybody may ask for a connection, and take it back: that must not stop the vault's backups, nor hide a real removal."""

    def check(connection: Connection) -> None:
        vault = world.vault(connection)
        container(connection, vault)
        stranger = connections.get(connection, open_one(connection, vault, 1, approved=False))
        assert stranger is not None
        assert (connections.remove(connection, stranger), registration(connection)) == (0, "Registered")
        rejected = connections.get(connection, open_one(connection, vault, 2, approved=False))
        assert rejected is not None
        rejected = connections.transition(connection, rejected, Status.REJECTED)
        assert (connections.remove(connection, rejected), registration(connection)) == (0, "Registered")
        open_one(connection, vault, 3, approved=False)
        own = connections.get(connection, open_one(connection, vault, 4, approved=False))
        assert own is not None
        connections.transition(connection, own, Status.APPROVED)
        own = connections.transition(connection, own, Status.REJECTED)
        assert (connections.remove(connection, own), registration(connection)) == (1, "NotRegistered")

    state.transact(check)
