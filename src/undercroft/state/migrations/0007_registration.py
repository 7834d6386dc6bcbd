"""Auto-registration: links that register their network's VMs, and the record sets that were registered so."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    # Added in place: a table that is made anew loses its triggers.
    for table, column in (("zone_links", "registers"), ("record_sets", "registered")):
        op.add_column(table, sa.Column(column, sa.Boolean(), nullable=False, server_default=sa.false()))
