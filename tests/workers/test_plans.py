"""Reading one network costs what is in it, not what is in the deployment (DESIGN section 12)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event

from tests.vnet import world
from undercroft.config import Settings
from undercroft.state.database import Database
from undercroft.vnet import zones
from undercroft.workers import plans

ZONE = f"{world.NETWORK}/privateDnsZones/privatelink.we.backup.windowsazure.com".lower()


def others(connection: Connection) -> None:
    """Twenty networks with an endpoint and a linked zone each."""
    for number in range(20):
        network = world.network(connection, f"other{number}")
        subnet = world.subnet(connection, network)
        world.machine(connection, subnet, f"vm-other{number}")
        endpoint = world.endpoint(connection, subnet, world.vault(connection, f"vault-{number}"), f"pe-{number}")
        zone = world.zone(connection, f"privatelink.z{number}.example", [network])
        world.zone_group(connection, endpoint, [zone])


def cost(state: Database, network: str) -> tuple[int, int]:
    """Statements sent and what came of them, for the plan of a network and a change of a record that it sees."""
    statements = 0

    def count(*_: Any) -> None:
        nonlocal statements
        statements += 1

    last = state.transact(zones.last_change)
    state.transact(lambda connection: zones.put_record_set(connection, ZONE, record(str(last))))
    event.listen(state.engine, "before_cursor_execute", count)
    plan = state.transact(lambda connection: plans.read(connection, network))
    _, changes = state.transact(lambda connection: plans.zone_changes(connection, last))
    event.remove(state.engine, "before_cursor_execute", count)
    assert plan is not None
    return statements, len(changes) + len(plan.links) + len(plan.endpoints) + len(plan.hosts)


def record(name: str) -> zones.RecordSet:
    return zones.RecordSet(name, "A", 10, ("10.9.9.9",), (), "etag")


def test_other_networks_cost_nothing(tmp_path: Path) -> None:
    with world.database(tmp_path) as state:

        def lay_out(connection: Connection) -> str:
            network = world.network(connection)
            subnet = world.subnet(connection, network)
            world.machine(connection, subnet)
            world.endpoint(connection, subnet, world.vault(connection))
            world.zone(connection, "privatelink.we.backup.windowsazure.com", [network])
            return network

        network = state.transact(lay_out)
        alone = cost(state, network)
        state.transact(others)
        assert cost(state, network) == alone


@pytest.mark.parametrize(
    "table", ["allocations", "resources", "record_sets", "members", "connections", "zone_links", "record_changes"]
)
def test_no_table_is_read_from_end_to_end(tmp_path: Path, table: str) -> None:
    """SQLite says how it would run each statement: SCAN is reading everything, SEARCH is using an index."""
    with world.database(tmp_path) as state:
        state.transact(others)
        network = f"{world.NETWORK}/virtualNetworks/other3".lower()
        sent: list[tuple[str, Any]] = []

        def keep(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
            sent.append((statement, parameters))

        event.listen(state.engine, "before_cursor_execute", keep)
        state.transact(lambda connection: (plans.read(connection, network), plans.zone_changes(connection, 5)))
        event.remove(state.engine, "before_cursor_execute", keep)

        def explain(connection: Connection) -> list[str]:
            found = []
            for statement, parameters in sent:
                if statement.startswith("SELECT"):
                    rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
                    found += [f"{row[-1]} in {statement}" for row in rows]
            return found

        assert [step for step in state.transact(explain) if step.startswith(f"SCAN {table}")] == []


def test_the_public_names_cover_every_region() -> None:
    names = plans.public_names(Settings())
    assert [str(one) for one in names.addresses["pod01-id1.eus.backup.windowsazure.com"]] == ["203.0.113.10"]
    assert names.suffixes == ("undercroft.internal",)


def test_more_endpoints_in_a_network_are_read_by_the_same_statements(tmp_path: Path) -> None:
    """Their rows cost, but no visit of its own for each endpoint and its vault."""
    with world.database(tmp_path) as state:

        def lay_out(connection: Connection) -> str:
            network = world.network(connection)
            world.endpoint(connection, world.subnet(connection, network), world.vault(connection), "pe1")
            return network

        network = state.transact(lay_out)
        few, _ = cost(state, network)

        def more(connection: Connection) -> None:
            for number in range(12):
                vault = world.vault(connection, f"more{number}")
                world.endpoint(connection, world.subnet(connection, network), vault, f"more{number}")

        state.transact(more)
        plan = state.transact(lambda connection: plans.read(connection, network))
        assert plan is not None and len(plan.endpoints) == 13
        assert [len(one.members) for one in plan.endpoints] == [8] * 13
        assert cost(state, network)[0] == few
