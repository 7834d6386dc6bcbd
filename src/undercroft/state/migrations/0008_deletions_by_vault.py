"""Deleting a vault looks for what is in it, and not through what is in all the others."""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    for table in ("protected_items", "backups"):
        op.create_index(f"{table}_by_vault", table, ["vault_key"], unique=False)
