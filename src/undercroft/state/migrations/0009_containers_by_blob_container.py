"""A storage call names a blob container, and looks for its host; not through all the vault's hosts."""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.create_index("containers_by_blob_container", "containers", ["vault_key", "blob_container"], unique=False)
