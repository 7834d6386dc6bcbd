"""The first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "allocations",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("subnet_key", sa.String(), nullable=False),
        sa.Column("network_key", sa.String(), nullable=False),
        sa.Column("address", sa.String(), nullable=False),
        sa.Column("owner_key", sa.String(), nullable=False),
        sa.Column("member_fqdn", sa.String(), nullable=True),
        sa.Column("state", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("owner_key", "member_fqdn", name="one_address_per_member"),
        sa.UniqueConstraint("subnet_key", "address", name="one_owner_per_address"),
    )
    op.create_index("allocations_by_network", "allocations", ["network_key"], unique=False)
    op.create_index("allocations_by_owner", "allocations", ["owner_key"], unique=False)
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("vault_key", sa.String(), nullable=False),
        sa.Column("container_id", sa.String(), nullable=True),
        sa.Column("item_id", sa.String(), nullable=True),
        sa.Column("operation", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("started", sa.String(), nullable=False),
        sa.Column("ended", sa.String(), nullable=True),
        sa.Column("error_code", sa.String(), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("door", sa.String(), nullable=True),
        sa.Column("details", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("jobs_by_vault", "jobs", ["vault_key", "started"], unique=False)
    op.create_table(
        "operations",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("resource_key", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("error_code", sa.String(), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("started", sa.String(), nullable=False),
        sa.Column("ended", sa.String(), nullable=True),
        sa.Column("result", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "principals",
        sa.Column("object_id", sa.String(), nullable=False),
        sa.Column("client_id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("display_name", sa.String(), nullable=False),
        sa.Column("secret_hash", sa.String(), nullable=True),
        sa.Column("public_key", sa.Text(), nullable=True),
        sa.Column("audience", sa.String(), nullable=True),
        sa.Column("vault_key", sa.String(), nullable=True),
        sa.Column("not_after", sa.String(), nullable=True),
        sa.Column("created", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("object_id"),
        sa.UniqueConstraint("client_id"),
    )
    op.create_index("principals_by_vault", "principals", ["vault_key", "kind"], unique=False)
    op.create_table(
        "record_sets",
        sa.Column("zone_key", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("type", sa.String(), nullable=False),
        sa.Column("ttl", sa.Integer(), nullable=False),
        sa.Column("metadata", sa.Text(), nullable=False),
        sa.Column("values", sa.Text(), nullable=False),
        sa.Column("endpoint_key", sa.String(), nullable=True),
        sa.Column("etag", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("zone_key", "name", "type"),
    )
    op.create_index("record_sets_by_endpoint", "record_sets", ["endpoint_key"], unique=False)
    op.create_table(
        "recovery_points",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("vault_key", sa.String(), nullable=False),
        sa.Column("container_id", sa.String(), nullable=False),
        sa.Column("item_id", sa.String(), nullable=False),
        sa.Column("time", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("account", sa.String(), nullable=False),
        sa.Column("commit_object", sa.String(), nullable=False),
        sa.Column("details", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("recovery_points_by_container", "recovery_points", ["container_id", "time"], unique=False)
    op.create_index("recovery_points_by_item", "recovery_points", ["item_id", "time"], unique=False)
    op.create_table(
        "resources",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("type", sa.String(), nullable=False),
        sa.Column("subscription", sa.String(), nullable=False),
        sa.Column("group_key", sa.String(), nullable=True),
        sa.Column("parent_key", sa.String(), nullable=True),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("location", sa.String(), nullable=True),
        sa.Column("tags", sa.Text(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("etag", sa.String(), nullable=False),
        sa.Column("provisioning_state", sa.String(), nullable=False),
        sa.Column("created", sa.String(), nullable=False),
        sa.Column("changed", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("key"),
    )
    op.create_index("resources_by_group", "resources", ["group_key"], unique=False)
    op.create_index("resources_by_parent", "resources", ["parent_key", "type", "key"], unique=False)
    op.create_index("resources_by_type", "resources", ["type", "subscription", "key"], unique=False)
    op.create_table(
        "role_assignments",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("scope_key", sa.String(), nullable=False),
        sa.Column("role_definition_id", sa.String(), nullable=False),
        sa.Column("principal_id", sa.String(), nullable=False),
        sa.Column("principal_type", sa.String(), nullable=False),
        sa.Column("created", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("key"),
    )
    op.create_index("role_assignments_by_principal", "role_assignments", ["principal_id"], unique=False)
    op.create_table(
        "subscriptions",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("display_name", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "tasks",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("operation_id", sa.String(), nullable=True),
        sa.Column("run_after", sa.String(), nullable=False),
        sa.Column("lease_owner", sa.String(), nullable=True),
        sa.Column("lease_until", sa.String(), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("tasks_by_subject", "tasks", ["kind", "key"], unique=False)
    op.create_index("tasks_ready", "tasks", ["run_after"], unique=False)
    op.create_table(
        "vaults",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("vault_id", sa.BigInteger(), nullable=False),
        sa.Column("region", sa.String(), nullable=False),
        sa.Column("tainted_at", sa.String(), nullable=True),
        sa.Column("taint_reason", sa.String(), nullable=True),
        sa.Column("had_endpoint", sa.Boolean(), nullable=False),
        sa.Column("created", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("key"),
        sa.UniqueConstraint("vault_id"),
    )
    op.create_table(
        "zone_links",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("zone_key", sa.String(), nullable=False),
        sa.Column("zone_name", sa.String(), nullable=False),
        sa.Column("network_key", sa.String(), nullable=False),
        sa.Column("nxdomain_redirect", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("key"),
        sa.UniqueConstraint("network_key", "zone_name", name="one_zone_of_a_name_per_network"),
    )
    op.create_index("zone_links_by_zone", "zone_links", ["zone_key"], unique=False)
    op.create_table(
        "accounts",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("vault_key", sa.String(), nullable=False),
        sa.Column("purpose", sa.String(), nullable=False),
        sa.Column("signing_key", sa.LargeBinary(), nullable=False),
        sa.Column("created", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["vault_key"],
            ["vaults.key"],
        ),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_index("accounts_by_vault", "accounts", ["vault_key", "purpose"], unique=False)
    op.create_table(
        "connections",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("vault_key", sa.String(), nullable=False),
        sa.Column("endpoint_key", sa.String(), nullable=False),
        sa.Column("endpoint_id", sa.String(), nullable=False),
        sa.Column("group_id", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("description", sa.String(), nullable=False),
        sa.Column("created", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["vault_key"],
            ["vaults.key"],
        ),
        sa.PrimaryKeyConstraint("key"),
        sa.UniqueConstraint("endpoint_key"),
    )
    op.create_index("connections_by_vault", "connections", ["vault_key"], unique=False)
    op.create_table(
        "containers",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("vault_key", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("friendly_name", sa.String(), nullable=False),
        sa.Column("registration", sa.String(), nullable=False),
        sa.Column("public_key", sa.Text(), nullable=False),
        sa.Column("blob_container", sa.String(), nullable=False),
        sa.Column("protection_account", sa.String(), nullable=True),
        sa.Column("agent", sa.Text(), nullable=False),
        sa.Column("registered", sa.String(), nullable=False),
        sa.Column("last_seen", sa.String(), nullable=True),
        sa.Column("last_door", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(
            ["vault_key"],
            ["vaults.key"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("vault_key", "name", name="one_container_per_machine"),
    )
    op.create_table(
        "members",
        sa.Column("fqdn", sa.String(), nullable=False),
        sa.Column("vault_key", sa.String(), nullable=False),
        sa.Column("group_id", sa.String(), nullable=False),
        sa.Column("service", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("account", sa.String(), nullable=True),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["vault_key"],
            ["vaults.key"],
        ),
        sa.PrimaryKeyConstraint("fqdn"),
    )
    op.create_index("members_by_vault", "members", ["vault_key", "group_id", "ordinal"], unique=False)
    op.create_table(
        "vault_credentials",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("vault_key", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("certificate", sa.Text(), nullable=False),
        sa.Column("principal_id", sa.String(), nullable=False),
        sa.Column("issued", sa.String(), nullable=False),
        sa.Column("not_after", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["vault_key"],
            ["vaults.key"],
        ),
        sa.PrimaryKeyConstraint("key"),
    )
    op.create_index("vault_credentials_by_vault", "vault_credentials", ["vault_key"], unique=False)
    op.create_table(
        "protected_items",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("vault_key", sa.String(), nullable=False),
        sa.Column("container_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("created", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["container_id"],
            ["containers.id"],
        ),
        sa.ForeignKeyConstraint(
            ["vault_key"],
            ["vaults.key"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("container_id", "name", name="one_item_per_name"),
    )
    op.create_table(
        "backups",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("vault_key", sa.String(), nullable=False),
        sa.Column("container_id", sa.String(), nullable=False),
        sa.Column("item_id", sa.String(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("lease_until", sa.String(), nullable=False),
        sa.Column("started", sa.String(), nullable=False),
        sa.Column("point_id", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(
            ["container_id"],
            ["containers.id"],
        ),
        sa.ForeignKeyConstraint(
            ["item_id"],
            ["protected_items.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("backups_by_container", "backups", ["container_id", "status"], unique=False)
