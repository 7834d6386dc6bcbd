"""The migrations lead to the schema: what ``schema.py`` says is what a migrated database has, and the other way round."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from undercroft.state import migrations, schema
from undercroft.state.database import Database


def test_a_migrated_database_has_the_schema(tmp_path: Path) -> None:
    database = Database.open(tmp_path / "state.db")
    try:
        with database.engine.connect() as connection:
            context = MigrationContext.configure(
                connection, opts={"compare_type": True, "compare_server_default": True}
            )
            assert compare_metadata(context, schema.metadata) == []
            assert (
                connection.execute(sqlalchemy.text("SELECT version_num FROM alembic_version")).scalar()
                == migrations.HEAD
            )
    finally:
        database.close()


def test_head_is_the_newest_migration() -> None:
    folder = str(Path(migrations.__file__).parent)
    assert ScriptDirectory(folder, version_locations=[folder]).get_heads() == [migrations.HEAD]
