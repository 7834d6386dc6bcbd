"""A node that starts with many networks: what it asks is counted, not how long it takes."""

from __future__ import annotations

from sqlalchemy import Connection, event

from tests.vnet import world as state_world
from tests.workers.node import Node
from undercroft.vnet import zones

NETWORKS = 24
ZONE = "privatelink.we.backup.windowsazure.com"


def many(connection: Connection) -> list[str]:
    """Networks with two endpoints each, of vaults of their own, all writing to one zone that all of them see."""
    keys = [state_world.network(connection, f"net{number}") for number in range(NETWORKS)]
    zone = state_world.zone(connection, ZONE, keys)
    for number, key in enumerate(keys):
        subnet = state_world.subnet(connection, key)
        for place in range(2):
            vault = state_world.vault(connection, f"vault-{number}-{place}")
            endpoint = state_world.endpoint(connection, subnet, vault, f"pe-{number}-{place}")
            state_world.zone_group(connection, endpoint, [zone])
    return keys


async def test_many_networks_start_with_few_questions_each(world: Node) -> None:
    keys = world.state(many)
    await world.provisioner.converge_all()
    assert await world.fabric.networks() == set(keys)
    key = f"{state_world.NETWORK}/privateDnsZones/{ZONE}".lower()
    sets = world.state(lambda connection: zones.list_record_sets(connection, key))
    assert len(sets) == NETWORKS * 2 * 8 + 1, "every member's record, and the SOA"
    await world.provisioner.converge_all()  # drops the notes of what is published

    asked: list[str] = []
    event.listen(world.database.engine, "before_cursor_execute", lambda _c, _k, statement, *_: asked.append(statement))
    record = zones.RecordSet("one", "A", 10, ("10.9.9.9",), (), "etag")
    world.state(lambda connection: zones.put_record_set(connection, key, record))  # so that every network is read again
    asked.clear()
    world.fabric.applied = 0
    assert await world.provisioner.converge_all() == ()
    statements = [statement for statement in asked if not statement.startswith(("BEGIN", "COMMIT"))]
    assert world.fabric.applied == NETWORKS
    assert len(statements) <= 20 * NETWORKS, "a network is read by a few statements, however many endpoints it has"
    reads = [one for one in statements if "FROM record_sets" in one]
    assert len(reads) == 1, "what changed is read once, and the zone not again for each network that sees it"
