"""By which door each leg of a registered host came, and how often its agent fell back to the public one."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "container_paths",
        sa.Column("container_id", sa.String(), sa.ForeignKey("containers.id"), primary_key=True),
        sa.Column("leg", sa.String(), primary_key=True),
        sa.Column("door", sa.String(), nullable=False),
        sa.Column("time", sa.String(), nullable=False),
        sa.Column("private_time", sa.String(), nullable=True),
        sa.Column("public_time", sa.String(), nullable=True),
        sa.Column("fallbacks", sa.Integer(), nullable=False),
        sa.Column("fallback_time", sa.String(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("proxy", sa.String(), nullable=True),
    )
