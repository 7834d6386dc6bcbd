"""Which security group a subnet or network interface has."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.create_table(
        "security_group_associations",
        sa.Column("member_key", sa.String(), nullable=False),
        sa.Column("group_key", sa.String(), nullable=False),
        sa.Column("network_key", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["group_key"], ["resources.key"]),
        sa.ForeignKeyConstraint(["member_key"], ["resources.key"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("member_key"),
    )
    for column in ("group", "network"):
        op.create_index(
            f"security_group_associations_by_{column}", "security_group_associations", [f"{column}_key"], unique=False
        )
