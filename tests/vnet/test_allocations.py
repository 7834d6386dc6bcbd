"""Addresses: the lowest free one, unique in the subnet; checked against a small model."""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from sqlalchemy import Connection

from tests.vnet import world
from undercroft.errors import Conflict
from undercroft.vnet import allocations


def test_addresses_are_given_from_the_lowest(tmp_path: Path) -> None:
    def check(connection: Connection) -> None:
        subnet = world.subnet(connection, world.network(connection))
        given = allocations.allocate(connection, subnet, "/pe1", ["a", "b"])
        assert [str(one.address) for one in given] == ["10.0.0.4", "10.0.0.5"]
        allocations.allocate(connection, subnet, "/pe2", ["a"])
        allocations.release(connection, "/PE1")
        assert str(allocations.allocate(connection, subnet, "/nic", [None])[0].address) == "10.0.0.4"
        assert allocations.subnet_owners(connection, subnet.key) == ("/nic", "/pe2")

    with world.database(tmp_path) as state:
        state.transact(check)


def test_a_full_subnet_names_itself_and_both_counts(tmp_path: Path) -> None:
    def check(connection: Connection) -> None:
        subnet = world.subnet(connection, world.network(connection, subnets={"snet": "10.0.0.0/29"}))
        with pytest.raises(Conflict) as caught:
            allocations.allocate(connection, subnet, "/pe1", list("abcdefgh"))
        assert caught.value.code == "SubnetIsFull"
        assert (
            subnet.id in caught.value.message
            and "8 addresses" in caught.value.message
            and "3 are free" in caught.value.message
        )
        assert allocations.of_owner(connection, "/pe1") == ()
        given, missing = allocations.extend(connection, subnet, "/pe1", list("abcdefgh"))
        assert (len(given), missing) == (3, 5)
        assert allocations.extend(connection, subnet, "/pe1", ["x"]) == ((), 1)

    with world.database(tmp_path) as state:
        state.transact(check)


def test_an_account_is_ready_when_every_name_of_it_is(tmp_path: Path) -> None:
    def check(connection: Connection) -> None:
        subnet = world.subnet(connection, world.network(connection))
        given = allocations.allocate(connection, subnet, "/pe1", ["blob", "queue"])
        assert not allocations.account_ready(connection, "/pe1", ["blob", "queue"])
        allocations.set_ready(connection, [given[0].id], True)
        assert not allocations.account_ready(connection, "/pe1", ["blob", "queue"])
        assert allocations.account_ready(connection, "/PE1", ["blob"])
        allocations.set_ready(connection, [given[1].id], True)
        assert allocations.account_ready(connection, "/pe1", ["blob", "queue"])
        assert not allocations.account_ready(connection, "/pe2", ["blob"])
        allocations.set_ready(connection, [], False)

    with world.database(tmp_path) as state:
        state.transact(check)


class Addresses(RuleBasedStateMachine):
    """Any order of giving and taking back in a /28 (eleven addresses): what the model says, is."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.context = world.database(Path(self.folder.name))
        self.state = self.context.__enter__()
        self.subnet = self.state.transact(
            lambda connection: world.subnet(connection, world.network(connection, subnets={"snet": "10.0.0.16/28"}))
        )
        self.model: dict[IPv4Address, str] = {}
        self.names = 0

    def teardown(self) -> None:
        self.context.__exit__(None, None, None)
        self.folder.cleanup()

    def _free(self) -> list[IPv4Address]:
        every = [IPv4Address("10.0.0.16") + offset for offset in range(4, 15)]
        return [address for address in every if address not in self.model]

    def _members(self, count: int) -> list[str]:
        self.names += count
        return [f"m{self.names - number}" for number in range(count)]

    @rule(owner=st.sampled_from(["/a", "/b", "/c"]), count=st.integers(0, 6))
    def allocate(self, owner: str, count: int) -> None:
        free, members = self._free(), self._members(count)

        def give(connection: Connection) -> list[IPv4Address]:
            return [one.address for one in allocations.allocate(connection, self.subnet, owner, members)]

        if count > len(free):
            with pytest.raises(Conflict, match="full"):
                self.state.transact(give)
        else:
            assert self.state.transact(give) == free[:count]
            self.model.update(dict.fromkeys(free[:count], owner))

    @rule(owner=st.sampled_from(["/a", "/b", "/c"]), count=st.integers(1, 6))
    def extend(self, owner: str, count: int) -> None:
        free, members = self._free(), self._members(count)
        given, missing = self.state.transact(
            lambda connection: allocations.extend(connection, self.subnet, owner, members)
        )
        assert [one.address for one in given] == free[:count] and missing == max(0, count - len(free))
        self.model.update({one.address: owner for one in given})

    @rule(owner=st.sampled_from(["/a", "/b", "/c"]))
    def release(self, owner: str) -> None:
        self.state.transact(lambda connection: allocations.release(connection, owner))
        self.model = {address: holder for address, holder in self.model.items() if holder != owner}

    @invariant()
    def the_table_is_the_model(self) -> None:
        def read(connection: Connection) -> tuple[dict[IPv4Address, str], int]:
            owned = allocations.of_network(connection, self.subnet.network_key)
            return {one.address: one.owner_key for one in owned}, allocations.free_count(connection, self.subnet)

        found, free = self.state.transact(read)
        assert found == self.model and free == len(self._free())


Addresses.TestCase.settings = settings(max_examples=15, stateful_step_count=20, deadline=None)
TestAddresses = Addresses.TestCase
