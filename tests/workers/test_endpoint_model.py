"""Random lives of a vault's endpoints against a small model: who may have one, who is approved, who has which addresses.

Everything happens in one transaction that is never kept, so that an example costs its steps and no database of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy import Connection, delete, insert, update

from tests.vnet import world
from undercroft.clock import timestamp
from undercroft.config import Settings
from undercroft.errors import Conflict
from undercroft.state import schema
from undercroft.state.database import Database
from undercroft.vault import accounts, connections, members, vaults
from undercroft.vault.connections import ALLOWED, Status
from undercroft.vnet import allocations, endpoints
from undercroft.vnet.endpoints import Group, PrivateEndpoint
from undercroft.workers import plans

PREFIX = "10.0.0.0/26"
CAPACITY = 59
SETTINGS = Settings()


@dataclass
class Modelled:
    group: Group
    status: Status | None
    """None: its connection was removed."""
    carried: bool
    addresses: int
    missing: int = 0

    @property
    def alive(self) -> bool:
        return self.status in (Status.PENDING, Status.APPROVED)


class EndpointLives(RuleBasedStateMachine):
    state: Database

    def __init__(self) -> None:
        super().__init__()
        self.connection = self.state.engine.execution_options(writes=True).connect()
        self.transaction = self.connection.begin()
        self.network = world.network(self.connection, subnets={"snet": PREFIX})
        self.subnet = world.subnet(self.connection, self.network)
        self.vault = world.vault(self.connection)
        members.add_secondary_services(
            self.connection, self.vault.key, self.vault.vault_id, self.vault.region, world.SUFFIXES
        )
        self.endpoints: dict[str, Modelled] = {}
        self.fillers: list[str] = []
        self.accounts = 0
        self.number = 0
        self.tainted = self.had = False
        self.registered = True
        self.connection.execute(
            insert(schema.containers).values(
                id="web01",
                vault_key=self.vault.key,
                name="Windows;web01",
                friendly_name="web01",
                registration="Registered",
                public_key="",
                blob_container="c",
                agent="{}",
                registered=timestamp(world.NOW),
            )
        )

    def teardown(self) -> None:
        self.transaction.rollback()
        self.connection.close()

    # --- the model ---------------------------------------------------------------------------------------------------

    def members(self, group: Group) -> int:
        return 8 if group is Group.BACKUP_SECONDARY else 8 + (0 if not self.accounts else self.accounts + 1)

    @property
    def free(self) -> int:
        return CAPACITY - len(self.fillers) - sum(one.addresses for one in self.endpoints.values())

    def attempt(self, work: Callable[[Connection], None]) -> str:
        """The code of the refusal, which leaves nothing behind; empty when it was done."""
        inner = self.connection.begin_nested()
        try:
            work(self.connection)
        except Conflict as error:
            inner.rollback()
            return error.code
        inner.commit()
        return ""

    def pick(self, number: int) -> tuple[str, Modelled]:
        keys = sorted(self.endpoints)
        key = keys[number % len(keys)]
        return key, self.endpoints[key]

    # --- what may happen ---------------------------------------------------------------------------------------------

    @rule(group=st.sampled_from(list(Group)), approved=st.booleans())
    def create(self, group: Group, approved: bool) -> None:
        self.number += 1
        endpoint_id = f"{world.NETWORK}/privateEndpoints/pe{self.number}"

        def work(connection: Connection) -> None:
            connections.open_connection(
                connection,
                self.vault,
                endpoint_id=endpoint_id,
                endpoint_name=f"pe{self.number}",
                group=group,
                approved=approved,
                description="",
                now=world.NOW,
            )
            value = PrivateEndpoint(
                self.subnet.id, self.vault.id, group, not approved, "c", "guid", f"nic{self.number}"
            )
            world.put(connection, endpoint_id, value)
            names = [one.fqdn for one in members.of_vault(connection, self.vault.key, group)]
            allocations.allocate(connection, self.subnet, endpoint_id.lower(), names)

        expected = ""
        if self.tainted and not self.had:
            expected = "UserErrorPrivateEndpointNotAllowedOnUsedVault"
        elif self.free < self.members(group):
            expected = "SubnetIsFull"
        assert self.attempt(work) == expected
        if not expected:
            status = Status.APPROVED if approved else Status.PENDING
            self.endpoints[endpoint_id.lower()] = Modelled(group, status, approved, self.members(group))
            self.had |= approved and group is Group.BACKUP

    @precondition(lambda self: self.endpoints)
    @rule(number=st.integers(0, 50), wanted=st.sampled_from(list(Status)))
    def decide(self, number: int, wanted: Status) -> None:
        key, one = self.pick(number)
        record = connections.of_endpoint(self.connection, key)
        assert (None if record is None else record.status) == one.status
        if record is None or one.status is None:
            return
        code = self.attempt(lambda connection: void(connections.transition(connection, record, wanted)))
        if wanted not in ALLOWED[one.status]:
            assert code == "UserErrorPrivateEndpointConnectionStateTransitionNotAllowed"
        elif wanted is Status.APPROVED and one.status is Status.PENDING and self.tainted and not self.had:
            assert code == "UserErrorPrivateEndpointNotAllowedOnUsedVault"
        else:
            assert code == ""
            one.status = wanted
            if wanted is Status.APPROVED:
                one.carried = True
                self.had |= one.group is Group.BACKUP

    @precondition(lambda self: self.endpoints)
    @rule(number=st.integers(0, 50), whole=st.booleans())
    def remove(self, number: int, whole: bool) -> None:
        """The connection, by the vault's owner; or the endpoint with it, by its own."""
        key, one = self.pick(number)
        record = connections.of_endpoint(self.connection, key)
        if record is not None:
            connections.remove(self.connection, record)
            others = [
                other
                for name, other in self.endpoints.items()
                if name != key and other.status is not None and other.carried and other.group is Group.BACKUP
            ]
            if one.carried and one.group is Group.BACKUP and not others:
                self.registered = False
            one.status = None
        if whole:
            allocations.release(self.connection, key)
            self.connection.execute(delete(schema.resources).where(schema.resources.c.key == key))
            del self.endpoints[key]

    @rule()
    def use(self) -> None:
        vaults.taint(self.connection, self.vault.key, "registered", world.NOW)
        self.tainted = True
        self.connection.execute(update(schema.containers).values(registration="Registered"))
        self.registered = True

    @rule()
    def grow(self) -> None:
        """The communication account first (two names), then protection accounts (one name each)."""
        name = f"abcd1234prot{self.accounts:02}" if self.accounts else "abcd1234ecs01"
        accounts.restore(self.connection, self.vault.key, name, world.SUFFIXES, world.NOW)
        self.accounts += 1

    @precondition(lambda self: self.free)
    @rule()
    def another_takes_an_address(self) -> None:
        key = f"nic-{self.number}-{len(self.fillers)}"
        self.number += 1
        allocations.allocate(self.connection, self.subnet, key, [None])
        self.fillers.append(key)

    @precondition(lambda self: self.fillers)
    @rule()
    def another_goes(self) -> None:
        allocations.release(self.connection, self.fillers.pop())

    @rule()
    def converge(self) -> None:
        """What provisioning does; then everything is as it should be."""
        plan = plans.read(self.connection, self.network)
        assert plan is not None
        plan, _ = plans.retreat_and_grow(self.connection, plan)
        plans.announce(self.connection, plan, 10)
        plans.advance(self.connection, plan, 10)
        for key, one in self.endpoints.items():
            owned = allocations.of_owner(self.connection, key)
            if one.alive:
                given = len(owned) - one.addresses
                assert 0 <= given <= self.free
                one.addresses += given
        for key, one in self.endpoints.items():
            owned = allocations.of_owner(self.connection, key)
            assert [own.ready for own in owned] == [one.status is Status.APPROVED] * len(owned)
            found = endpoints.get(self.connection, key)
            assert found is not None
            if one.alive:
                one.missing = self.members(one.group) - len(owned)
                assert one.missing == 0 or self.free == 0, "addresses are free, and a member has none"
                assert found.value.missing_addresses == one.missing
        doors = {door.endpoint for door in plan.doors(SETTINGS).values() if door.endpoint}
        assert doors == {key for key, one in self.endpoints.items() if one.status is Status.APPROVED}

    # --- what always holds -------------------------------------------------------------------------------------------

    @invariant()
    def addresses_have_one_owner(self) -> None:
        every = allocations.of_network(self.connection, self.network)
        assert len({one.address for one in every}) == len(every) <= CAPACITY
        shown = [one for one in every if one.ready]
        assert all(self.endpoints[one.owner_key].carried for one in shown)

    @invariant()
    def the_vault_remembers(self) -> None:
        vault = vaults.require(self.connection, self.vault.key)
        assert (vault.tainted, vault.had_endpoint) == (self.tainted, self.had)
        registration = self.connection.execute(schema.containers.select()).one().registration
        assert (registration == "Registered") == self.registered


def void(_: object) -> None:
    return None


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Database]:
    with world.database(tmp_path) as opened:
        yield opened


def test_any_life_of_a_vaults_endpoints_is_the_models(state: Database) -> None:
    machine = type("OnThisDatabase", (EndpointLives,), {"state": state})
    run_state_machine_as_test(
        machine,
        settings=settings(
            deadline=None, max_examples=20, stateful_step_count=30, suppress_health_check=list(HealthCheck)
        ),
    )
