"""What a container has open is asked with each restore that begins."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_index("jobs_by_container", "jobs", ["container_id", "status"], unique=False)
