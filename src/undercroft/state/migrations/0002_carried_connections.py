"""Whether a connection was ever approved. Of older ones all but the pending ones may have been."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("connections", sa.Column("carried", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.execute("UPDATE connections SET carried = 1 WHERE status <> 'Pending'")
