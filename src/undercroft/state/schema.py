"""The tables. One place, because rules of several packages meet in one transaction.

Vocabulary: a *key* is an ARM id in lower case; *body* is the msgspec JSON of the typed value of the package that owns the row.
Times are ISO 8601 text in UTC (they sort as they compare). Every change of this file needs a migration beside it
(``state/migrations``); a test compares the two.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
)

__all__ = [
    "accounts",
    "allocations",
    "backups",
    "connections",
    "container_paths",
    "containers",
    "jobs",
    "members",
    "metadata",
    "operations",
    "principals",
    "protected_items",
    "record_changes",
    "record_sets",
    "recovery_points",
    "resources",
    "role_assignments",
    "security_group_associations",
    "subscriptions",
    "tasks",
    "vault_credentials",
    "vaults",
    "zone_links",
]

metadata = MetaData()

# --- the control plane's records -------------------------------------------------------------------------------------

subscriptions = Table(
    "subscriptions",
    metadata,
    Column("id", String, primary_key=True),
    Column("display_name", String, nullable=False),
)

resources = Table(
    "resources",
    metadata,
    Column("key", String, primary_key=True),
    Column("id", String, nullable=False, doc="as its creator spelled it"),
    Column("type", String, nullable=False, doc="lower case: microsoft.network/virtualnetworks/subnets"),
    Column("subscription", String, nullable=False),
    Column("group_key", String, doc="key of the resource group; NULL for the group itself"),
    Column("parent_key", String, doc="key of the enclosing resource or group"),
    Column("name", String, nullable=False),
    Column("location", String),
    Column("tags", Text, nullable=False, default="{}"),
    Column("body", LargeBinary, nullable=False, doc="msgspec JSON of the provider's typed properties"),
    Column("etag", String, nullable=False),
    Column("provisioning_state", String, nullable=False),
    Column("created", String, nullable=False),
    Column("changed", String, nullable=False),
    Index("resources_by_type", "type", "subscription", "key"),
    Index("resources_by_parent", "parent_key", "type", "key"),
    Index("resources_by_group", "group_key"),
)

operations = Table(
    "operations",
    metadata,
    Column("id", String, primary_key=True),
    Column("resource_key", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("status", String, nullable=False, doc="InProgress, Succeeded, Failed, Canceled"),
    Column("error_code", String),
    Column("error_message", Text),
    Column("started", String, nullable=False),
    Column("ended", String),
    Column("result", LargeBinary, doc="JSON the resource-specific poll answers on success"),
)

tasks = Table(
    "tasks",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("kind", String, nullable=False),
    Column("key", String, nullable=False, doc="what the task is about; one waiting task per (kind, key)"),
    Column("operation_id", String, doc="the long-running operation that this task completes, if any"),
    Column("run_after", String, nullable=False),
    Column("lease_owner", String),
    Column("lease_until", String),
    Column("attempts", Integer, nullable=False, default=0),
    Column("last_error", Text),
    Index("tasks_ready", "run_after"),
    Index("tasks_by_subject", "kind", "key"),
)

# --- identity --------------------------------------------------------------------------------------------------------

principals = Table(
    "principals",
    metadata,
    Column("object_id", String, primary_key=True),
    Column("client_id", String, nullable=False, unique=True),
    Column("kind", String, nullable=False, doc="ServicePrincipal, VaultCredential, Container"),
    Column("display_name", String, nullable=False),
    Column("secret_hash", String, doc="Argon2id; NULL when it signs assertions"),
    Column("public_key", Text, doc="PEM; NULL when it has a secret"),
    Column("audience", String, doc="the only audience it may ask tokens for; NULL: management and Graph"),
    Column("vault_key", String, doc="for vault credentials and containers"),
    Column("not_after", String),
    Column("created", String, nullable=False),
    Index("principals_by_vault", "vault_key", "kind"),
)

role_assignments = Table(
    "role_assignments",
    metadata,
    Column("key", String, primary_key=True),
    Column("id", String, nullable=False),
    Column("scope_key", String, nullable=False),
    Column("role_definition_id", String, nullable=False),
    Column("principal_id", String, nullable=False),
    Column("principal_type", String, nullable=False),
    Column("created", String, nullable=False),
    Index("role_assignments_by_principal", "principal_id"),
)

# --- vnet ------------------------------------------------------------------------------------------------------------

allocations = Table(
    "allocations",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("subnet_key", String, nullable=False),
    Column("network_key", String, nullable=False),
    Column("address", String, nullable=False),
    Column("owner_key", String, nullable=False, doc="key of the private endpoint or network interface"),
    Column("member_fqdn", String, doc="endpoints only: the member this address answers for"),
    Column("state", String, nullable=False, doc="Reserved until address, door and record are made; then Ready"),
    UniqueConstraint("subnet_key", "address", name="one_owner_per_address"),
    UniqueConstraint("owner_key", "member_fqdn", name="one_address_per_member"),
    Index("allocations_by_owner", "owner_key"),
    Index("allocations_by_network", "network_key"),
)

security_group_associations = Table(
    "security_group_associations",
    metadata,
    Column(
        "member_key",
        String,
        ForeignKey("resources.key", ondelete="CASCADE"),
        primary_key=True,
        doc="key of the subnet or network interface; it has one group",
    ),
    Column("group_key", String, ForeignKey("resources.key"), nullable=False),
    Column("network_key", String, nullable=False),
    Index("security_group_associations_by_group", "group_key"),
    Index("security_group_associations_by_network", "network_key"),
)

record_sets = Table(
    "record_sets",
    metadata,
    Column("zone_key", String, primary_key=True),
    Column("name", String, primary_key=True, doc="relative, lower case; @ for the apex"),
    Column("type", String, primary_key=True),
    Column("ttl", Integer, nullable=False),
    Column("metadata", Text, nullable=False, default="{}"),
    Column("values", Text, nullable=False, doc="JSON list of strings in zone-file form"),
    Column("endpoint_key", String, doc="the private endpoint whose zone group wrote it"),
    Column("etag", String, nullable=False),
    Column(
        "registered",
        Boolean,
        nullable=False,
        default=False,
        server_default=false(),
        doc="written by auto-registration, for VMs of this name",
    ),
    Index("record_sets_by_endpoint", "endpoint_key"),
)

record_changes = Table(
    "record_changes",
    metadata,
    Column("number", Integer, primary_key=True, doc="rises with every change, and is never used again"),
    Column("zone_key", String, nullable=False),
    Column("name", String, nullable=False),
    Column("type", String, nullable=False),
    sqlite_autoincrement=True,
)
"""Written by triggers on ``record_sets``, whoever changes it; read by who publishes names, and emptied behind it."""

zone_links = Table(
    "zone_links",
    metadata,
    Column("key", String, primary_key=True, doc="key of the virtualNetworkLinks resource"),
    Column("zone_key", String, nullable=False),
    Column("zone_name", String, nullable=False),
    Column("network_key", String, nullable=False),
    Column("nxdomain_redirect", Boolean, nullable=False, default=False),
    Column(
        "registers",
        Boolean,
        nullable=False,
        default=False,
        server_default=false(),
        doc="the network's VMs get records in the zone",
    ),
    UniqueConstraint("network_key", "zone_name", name="one_zone_of_a_name_per_network"),
    Index("zone_links_by_zone", "zone_key"),
)

# --- vault -----------------------------------------------------------------------------------------------------------

vaults = Table(
    "vaults",
    metadata,
    Column("key", String, primary_key=True),
    Column("vault_id", BigInteger, nullable=False, unique=True),
    Column("region", String, nullable=False),
    Column("tainted_at", String, doc="first time anything was protected, registered or attempted (article, note 1)"),
    Column("taint_reason", String),
    Column("had_endpoint", Boolean, nullable=False, default=False),
    Column("created", String, nullable=False),
)

connections = Table(
    "connections",
    metadata,
    Column("key", String, primary_key=True),
    Column("name", String, nullable=False, doc="{peName}.{vaultId}.backup.{guid}"),
    Column("vault_key", String, ForeignKey("vaults.key"), nullable=False),
    Column("endpoint_key", String, nullable=False, unique=True),
    Column("endpoint_id", String, nullable=False),
    Column("group_id", String, nullable=False),
    Column("status", String, nullable=False, doc="Pending, Approved, Rejected, Disconnected"),
    Column("description", String, nullable=False),
    Column("created", String, nullable=False),
    Column(
        "carried",
        Boolean,
        nullable=False,
        default=False,
        server_default=false(),
        doc="was Approved, ever: only then its removal concerns the vault's hosts",
    ),
    Index("connections_by_vault", "vault_key"),
)

members = Table(
    "members",
    metadata,
    Column("fqdn", String, primary_key=True),
    Column("vault_key", String, ForeignKey("vaults.key"), nullable=False),
    Column("group_id", String, nullable=False),
    Column("service", String, nullable=False, doc="fc1 … wbcm1, or blob, queue"),
    Column("name", String, nullable=False, doc="requiredMemberName on the NIC: backup-fc1, {account}-blob"),
    Column("account", String, doc="storage members: the account"),
    Column("ordinal", Integer, nullable=False, doc="order in which members appeared"),
    Index("members_by_vault", "vault_key", "group_id", "ordinal"),
)

accounts = Table(
    "accounts",
    metadata,
    Column("name", String, primary_key=True),
    Column("vault_key", String, ForeignKey("vaults.key"), nullable=False),
    Column("purpose", String, nullable=False, doc="ecs: communication; prot: protection"),
    Column("signing_key", LargeBinary, nullable=False, doc="HMAC key of its SAS"),
    Column("created", String, nullable=False),
    Index("accounts_by_vault", "vault_key", "purpose"),
)

vault_credentials = Table(
    "vault_credentials",
    metadata,
    Column("key", String, primary_key=True),
    Column("vault_key", String, ForeignKey("vaults.key"), nullable=False),
    Column("name", String, nullable=False),
    Column("certificate", Text, nullable=False, doc="PEM, public half only"),
    Column("principal_id", String, nullable=False),
    Column("issued", String, nullable=False),
    Column("not_after", String, nullable=False),
    Index("vault_credentials_by_vault", "vault_key"),
)

containers = Table(
    "containers",
    metadata,
    Column("id", String, primary_key=True, doc="GUID; also the client id of its principal"),
    Column("vault_key", String, ForeignKey("vaults.key"), nullable=False),
    Column("name", String, nullable=False, doc="ARM name: Windows;{machine} for MARS-style hosts"),
    Column("friendly_name", String, nullable=False, doc="the machine's name"),
    Column("registration", String, nullable=False, doc="Registered, NotRegistered (its last endpoint was removed)"),
    Column("public_key", Text, nullable=False),
    Column("blob_container", String, nullable=False),
    Column("protection_account", String),
    Column("agent", Text, nullable=False, doc="JSON: version, operating system"),
    Column("registered", String, nullable=False),
    Column("last_seen", String),
    Column("last_door", String, doc="private:{endpoint key} or public: the path of its last call"),
    UniqueConstraint("vault_key", "name", name="one_container_per_machine"),
    Index("containers_by_blob_container", "vault_key", "blob_container"),
)

container_paths = Table(
    "container_paths",
    metadata,
    Column("container_id", String, ForeignKey("containers.id"), primary_key=True),
    Column("leg", String, primary_key=True, doc="backup, blob, queue, login"),
    Column("door", String, nullable=False, doc="of the last call: private:{endpoint key} or public"),
    Column("time", String, nullable=False),
    Column("private_time", String),
    Column("public_time", String),
    Column(
        "fallbacks", Integer, nullable=False, doc="runs of the agent that took the public name for want of the private"
    ),
    Column("fallback_time", String),
    Column("reason", Text),
    Column("proxy", String),
)

protected_items = Table(
    "protected_items",
    metadata,
    Column("id", String, primary_key=True),
    Column("vault_key", String, ForeignKey("vaults.key"), nullable=False),
    Column("container_id", String, ForeignKey("containers.id"), nullable=False),
    Column("name", String, nullable=False),
    Column("kind", String, nullable=False, doc="files"),
    Column("created", String, nullable=False),
    UniqueConstraint("container_id", "name", name="one_item_per_name"),
    Index("protected_items_by_vault", "vault_key"),
)

backups = Table(
    "backups",
    metadata,
    Column("id", String, primary_key=True),
    Column("vault_key", String, nullable=False),
    Column("container_id", String, ForeignKey("containers.id"), nullable=False),
    Column("item_id", String, ForeignKey("protected_items.id"), nullable=False),
    Column("job_id", String, nullable=False),
    Column("status", String, nullable=False, doc="Open, Committed, Failed, Expired"),
    Column("lease_until", String, nullable=False),
    Column("started", String, nullable=False),
    Column("point_id", String, doc="of a committed one: committing twice answers the same point"),
    Index("backups_by_container", "container_id", "status"),
    Index("backups_by_vault", "vault_key"),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", String, primary_key=True),
    Column("vault_key", String, nullable=False),
    Column("container_id", String),
    Column("item_id", String),
    Column("operation", String, nullable=False, doc="Register, Backup, Restore"),
    Column("status", String, nullable=False, doc="InProgress, Completed, CompletedWithWarnings, Failed, Cancelled"),
    Column("started", String, nullable=False),
    Column("ended", String),
    Column("error_code", String),
    Column("error_message", Text),
    Column("door", String),
    Column("details", Text, nullable=False, default="{}", doc="JSON: bytes read, sent, stored; files"),
    Index("jobs_by_vault", "vault_key", "started"),
    Index("jobs_by_container", "container_id", "status"),
)

recovery_points = Table(
    "recovery_points",
    metadata,
    Column("id", String, primary_key=True),
    Column("vault_key", String, nullable=False),
    Column("container_id", String, nullable=False),
    Column("item_id", String, nullable=False),
    Column("time", String, nullable=False, doc="the server's clock at commit"),
    Column("kind", String, nullable=False, doc="Full"),
    Column("account", String, nullable=False),
    Column("commit_object", String, nullable=False, doc="name in the store: the truth this row indexes"),
    Column("details", Text, nullable=False, default="{}"),
    Index("recovery_points_by_item", "item_id", "time"),
    Index("recovery_points_by_container", "container_id", "time"),
)
