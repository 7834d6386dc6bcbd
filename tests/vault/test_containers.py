"""Containers: how a storage call's host is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import Connection, event

from tests.vnet import world
from undercroft.vault import containers


def test_a_host_is_found_by_its_blob_container_without_looking_at_the_others(tmp_path: Path) -> None:
    """Every storage call asks, on the event loop: a vault of thousands of hosts must cost it nothing."""
    with world.database(tmp_path) as state:
        sent: list[tuple[str, Any]] = []

        def keep(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
            sent.append((statement, parameters))

        event.listen(state.engine, "before_cursor_execute", keep)
        state.transact(lambda connection: containers.find_by_blob_container(connection, "vault", "blobs"))
        event.remove(state.engine, "before_cursor_execute", keep)

        def explain(connection: Connection) -> list[str]:
            asked = [
                (statement, parameters) for statement, parameters in sent if statement.startswith("SELECT containers")
            ]
            return [
                row[-1]
                for statement, parameters in asked
                for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            ]

        [plan] = state.transact(explain)
        assert "(vault_key=? AND blob_container=?)" in plan
