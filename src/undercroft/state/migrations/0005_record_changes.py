"""Every change of a record set is noted, so that publishing it costs what changed and not what there is."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "record_changes",
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("zone_key", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("type", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("number"),
        sqlite_autoincrement=True,
    )
    for event, row in (("INSERT", "NEW"), ("UPDATE", "NEW"), ("DELETE", "OLD")):
        op.execute(
            f"CREATE TRIGGER record_sets_{event.lower()} AFTER {event} ON record_sets BEGIN "
            f"INSERT INTO record_changes (zone_key, name, type) VALUES ({row}.zone_key, {row}.name, {row}.type); END"
        )
