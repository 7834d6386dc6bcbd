"""Schema versions, by Alembic. ``migrate`` brings a database to the newest; a new one starts there as well."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Engine, inspect, text

from undercroft.errors import Conflict

__all__ = ["HEAD", "migrate"]

HEAD = "0009"


def migrate(engine: Engine) -> None:
    """Run the missing migrations. A database of a newer Undercroft is refused, not touched.

    Alembic is imported only when there is something to do: it is a twentieth of a second at every start otherwise.
    """
    with engine.connect() as connection:
        current = None
        if inspect(connection).has_table("alembic_version"):
            current = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        connection.rollback()
    if current == HEAD:
        return

    from alembic.runtime.environment import EnvironmentContext
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory(str(Path(__file__).parent), version_locations=[str(Path(__file__).parent)])
    known = {revision.revision for revision in scripts.walk_revisions()}
    if current is not None and current not in known:
        raise Conflict(
            f"The state database has schema '{current}', which this Undercroft (schema '{HEAD}') does not know: "
            "it was written by a newer release. Start it with that release.",
            code="NewerSchema",
        )

    from collections.abc import Iterable

    from alembic.config import Config
    from alembic.runtime.migration import MigrationContext, RevisionStep

    def upgrade(revision: tuple[str, ...], _context: MigrationContext) -> Iterable[RevisionStep]:
        return scripts._upgrade_revs("head", revision)  # type: ignore[arg-type]

    with EnvironmentContext(Config(), scripts, fn=upgrade) as environment, engine.begin() as connection:
        environment.configure(connection=connection)
        environment.run_migrations()
