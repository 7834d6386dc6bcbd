"""Microsoft.RecoveryServices/vaults.

A property that a PUT or PATCH leaves out keeps its value: leaving out ``publicNetworkAccess`` never opens a closed vault.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection

from undercroft.arm import etags, resources
from undercroft.arm.call import Call, Reply, Route, parse
from undercroft.arm.envelope import tracked
from undercroft.arm.resources import Resource
from undercroft.errors import CapabilityMissing, InvalidParameter
from undercroft.names import BACKUP_SERVICES, FIRST_SERVICES, ResourceId, region
from undercroft.providers.collaborators import Collaborators, Echo, listing, refuse_if_given
from undercroft.providers.recovery_services import private_endpoint_connections
from undercroft.vault import connections, vaults
from undercroft.vault.connections import Status
from undercroft.vault.vaults import VAULT_TYPE, Vault

__all__ = ["remove", "routes", "show"]

_SKUS = ("Standard", "RS0")
_RETENTION = range(14, 181)


class Sku(Echo, frozen=True):
    tier: Any = None
    capacity: Any = None
    family: Any = None
    size: Any = None


class SoftDeleteSettings(Echo, frozen=True):
    enhanced_security_state: str | None = None
    soft_delete_state: str | None = None
    soft_delete_retention_period_in_days: int | None = None


class SecuritySettings(Echo, frozen=True):
    soft_delete_settings: SoftDeleteSettings | None = None
    immutability_settings: dict[str, Any] | None = None
    multi_user_authorization: str | None = None
    source_scan_configuration: dict[str, Any] | None = None


class AzureMonitorAlertSettings(Echo, frozen=True):
    alerts_for_all_job_failures: str | None = None
    alerts_for_all_replication_issues: str | None = None
    alerts_for_all_failover_issues: str | None = None


class ClassicAlertSettings(Echo, frozen=True):
    alerts_for_critical_operations: str | None = None
    email_notifications_for_site_recovery: str | None = None


class MonitoringSettings(Echo, frozen=True):
    azure_monitor_alert_settings: AzureMonitorAlertSettings | None = None
    classic_alert_settings: ClassicAlertSettings | None = None


class CostManagementSettings(Echo, frozen=True):
    granularity_level: str | None = None


class RedundancySettings(Echo, frozen=True):
    standard_tier_storage_redundancy: str | None = None
    cross_region_restore: str | None = None


class CrossSubscriptionRestoreSettings(Echo, frozen=True):
    cross_subscription_restore_state: str | None = None


class RestoreSettings(Echo, frozen=True):
    cross_subscription_restore_settings: CrossSubscriptionRestoreSettings | None = None


class VaultProperties(Echo, frozen=True):
    public_network_access: str | None = None
    security_settings: SecuritySettings | None = None
    monitoring_settings: MonitoringSettings | None = None
    cost_management_settings: CostManagementSettings | None = None
    redundancy_settings: RedundancySettings | None = None
    restore_settings: RestoreSettings | None = None
    region_of_choice_settings: dict[str, Any] | None = None
    encryption: Any = None
    move_details: Any = None
    upgrade_details: Any = None
    resource_guard_operation_requests: Any = None
    # What we say and a client may send back:
    provisioning_state: Any = None
    private_endpoint_connections: Any = None
    private_endpoint_state_for_backup: Any = None
    private_endpoint_state_for_site_recovery: Any = None
    move_state: Any = None
    backup_storage_version: Any = None
    secure_score: Any = None
    bcdr_security_level: Any = None


class Identity(Echo, frozen=True):
    principal_id: Any = None
    tenant_id: Any = None
    user_assigned_identities: dict[str, Any] | None = None


class VaultBody(Echo, frozen=True):
    location: str
    sku: Sku | None = None
    properties: VaultProperties | None = None
    tags: dict[str, str] | None = None
    identity: Identity | None = None
    system_data: Any = None


class VaultPatch(Echo, frozen=True):
    location: str | None = None
    sku: Sku | None = None
    properties: VaultProperties | None = None
    tags: dict[str, str] | None = None
    identity: Identity | None = None
    system_data: Any = None


# --- what may be asked for -------------------------------------------------------------------------------------------


def _refuse(body: VaultBody | VaultPatch) -> None:
    """What promises a behaviour that is not there, by name."""
    identity = body.identity
    if identity is not None and (str(identity.type or "None").lower() != "none" or identity.user_assigned_identities):
        raise CapabilityMissing(
            f"'identity' of type '{identity.type}' of a vault is not implemented: private endpoints of the v2 experience need no "
            "managed identity, and nothing else here uses one. Leave it out.",
            target="identity",
        )
    properties = body.properties or VaultProperties()
    refuse_if_given(
        "a vault",
        "leave it out.",
        encryption=properties.encryption,
        move_details=properties.move_details,
        upgrade_details=properties.upgrade_details,
        resource_guard_operation_requests=properties.resource_guard_operation_requests,
    )
    security = properties.security_settings or SecuritySettings()
    soft = security.soft_delete_settings or SoftDeleteSettings()
    redundancy = properties.redundancy_settings or RedundancySettings()
    immutability = str((security.immutability_settings or {}).get("state") or "Disabled")
    scan = str((security.source_scan_configuration or {}).get("state") or "Disabled")
    choice = str((properties.region_of_choice_settings or {}).get("status") or "Disabled")
    place = "properties.securitySettings"
    kept = "recovery points cannot be deleted yet, so they are always kept."
    for name, given, possible, reason in (
        (f"{place}.immutabilitySettings.state", immutability, ("disabled",), "recovery points are not locked yet."),
        (
            f"{place}.multiUserAuthorization",
            security.multi_user_authorization,
            ("invalid", "disabled"),
            "no guard yet.",
        ),
        (f"{place}.sourceScanConfiguration.state", scan, ("disabled",), "sources are not scanned."),
        (f"{place}.softDeleteSettings.softDeleteState", soft.soft_delete_state, ("alwayson",), kept),
        (f"{place}.softDeleteSettings.enhancedSecurityState", soft.enhanced_security_state, ("alwayson",), kept),
        (
            "properties.redundancySettings.standardTierStorageRedundancy",
            redundancy.standard_tier_storage_redundancy,
            ("locallyredundant",),
            "a vault's data is in the store of its own region; use a redundant disk or store below it.",
        ),
        (
            "properties.redundancySettings.crossRegionRestore",
            redundancy.cross_region_restore,
            ("disabled",),
            "data is not replicated to the paired region yet.",
        ),
        ("properties.regionOfChoiceSettings.status", choice, ("disabled",), "data stays in its region."),
    ):
        if given is not None and given.lower() not in possible:
            raise CapabilityMissing(f"'{name}' = '{given}' of a vault is not implemented: {reason}", target=name)


def _choice(given: str | None, before: str, name: str, *possible: str) -> str:
    """An enumeration's value in Azure's spelling; what is not said stays."""
    if given is None:
        return before
    for one in possible:
        if one.lower() == given.lower():
            return one
    raise InvalidParameter(
        f"'{given}' is not possible for '{name}': {', '.join(possible)}.", code="InvalidRestApiParameter", target=name
    )


def _changed(before: Vault, body: VaultBody | VaultPatch) -> Vault:
    properties = body.properties or VaultProperties()
    monitoring = properties.monitoring_settings or MonitoringSettings()
    alerts = monitoring.azure_monitor_alert_settings or AzureMonitorAlertSettings()
    classic = monitoring.classic_alert_settings or ClassicAlertSettings()
    soft = (properties.security_settings or SecuritySettings()).soft_delete_settings or SoftDeleteSettings()
    restore = (properties.restore_settings or RestoreSettings()).cross_subscription_restore_settings
    days = soft.soft_delete_retention_period_in_days
    if days is not None and days not in _RETENTION:
        raise InvalidParameter(
            f"The soft delete retention of {days} days is not possible: 14 to 180.",
            code="InvalidRestApiParameter",
            target="properties.securitySettings.softDeleteSettings.softDeleteRetentionPeriodInDays",
        )
    access = properties.public_network_access

    def switch(given: str | None, old: str, name: str) -> str:
        return _choice(given, old, f"properties.monitoringSettings.{name}", "Enabled", "Disabled")

    return Vault(
        public_access=before.public_access if access is None else vaults.check_public_access(access),
        redundancy=before.redundancy,
        retention_days=before.retention_days if days is None else days,
        cross_subscription_restore=_choice(
            None if restore is None else restore.cross_subscription_restore_state,
            before.cross_subscription_restore,
            "properties.restoreSettings.crossSubscriptionRestoreSettings.crossSubscriptionRestoreState",
            "Enabled",
            "Disabled",
            "PermanentlyDisabled",
        ),
        alerts_for_job_failures=switch(
            alerts.alerts_for_all_job_failures, before.alerts_for_job_failures, "alertsForAllJobFailures"
        ),
        alerts_for_replication_issues=switch(
            alerts.alerts_for_all_replication_issues,
            before.alerts_for_replication_issues,
            "alertsForAllReplicationIssues",
        ),
        alerts_for_failover_issues=switch(
            alerts.alerts_for_all_failover_issues, before.alerts_for_failover_issues, "alertsForAllFailoverIssues"
        ),
        alerts_for_critical_operations=switch(
            classic.alerts_for_critical_operations,
            before.alerts_for_critical_operations,
            "alertsForCriticalOperations",
        ),
        email_notifications=switch(
            classic.email_notifications_for_site_recovery,
            before.email_notifications,
            "emailNotificationsForSiteRecovery",
        ),
        cost_granularity=_choice(
            (properties.cost_management_settings or CostManagementSettings()).granularity_level,
            before.cost_granularity,
            "properties.costManagementSettings.granularityLevel",
            "VaultLevel",
            "ProtectedItemLevel",
        ),
        sku=_choice(None if body.sku is None else str(body.sku.name), before.sku, "sku.name", *_SKUS),
    )


# --- what is shown ---------------------------------------------------------------------------------------------------


def show(connection: Connection, vault: Resource[Vault]) -> dict[str, Any]:
    body = vault.body
    links = connections.of_vault(connection, vault.key)
    approved = any(one.status is Status.APPROVED for one in links)
    properties: dict[str, Any] = {
        "provisioningState": vault.provisioning_state,
        "privateEndpointConnections": [
            private_endpoint_connections.show(connection, vault.id, vault.location, one) for one in links
        ],
        "privateEndpointStateForBackup": "Enabled" if approved else "None",
        "privateEndpointStateForSiteRecovery": "None",
        "publicNetworkAccess": "Enabled" if body.public_access else "Disabled",
        "monitoringSettings": {
            "azureMonitorAlertSettings": {
                "alertsForAllJobFailures": body.alerts_for_job_failures,
                "alertsForAllReplicationIssues": body.alerts_for_replication_issues,
                "alertsForAllFailoverIssues": body.alerts_for_failover_issues,
            },
            "classicAlertSettings": {
                "alertsForCriticalOperations": body.alerts_for_critical_operations,
                "emailNotificationsForSiteRecovery": body.email_notifications,
            },
        },
        "costManagementSettings": {"granularityLevel": body.cost_granularity},
        "securitySettings": {
            "softDeleteSettings": {
                "softDeleteRetentionPeriodInDays": body.retention_days,
                "softDeleteState": "AlwaysON",
                "enhancedSecurityState": "AlwaysON",
            },
            "immutabilitySettings": {"state": "Disabled"},
            "multiUserAuthorization": "Disabled",
        },
        "redundancySettings": {
            "standardTierStorageRedundancy": body.redundancy,
            "crossRegionRestore": "Disabled",
        },
        "restoreSettings": {
            "crossSubscriptionRestoreSettings": {"crossSubscriptionRestoreState": body.cross_subscription_restore}
        },
    }
    return tracked(
        vault,
        properties,
        type="Microsoft.RecoveryServices/vaults",
        extra={"sku": {"name": body.sku, "tier": "Standard"}},
    )


# --- handlers --------------------------------------------------------------------------------------------------------


def remove(
    connection: Connection, parts: Collaborators, vault_id: ResourceId, if_match: str | None
) -> tuple[str, ...] | None:
    """No network changes: what leads to the vault must be gone before."""
    found = resources.get(connection, vault_id, Vault)
    if found is None:
        return None
    etags.check(found.etag, if_match, None)
    vaults.remove(connection, vaults.require(connection, vault_id.key), parts.clock.now())
    resources.delete(connection, vault_id, with_children=True)
    return ()


def routes(parts: Collaborators) -> tuple[Route, ...]:
    def save(
        connection: Connection, call: Call, value: Vault, location: str | None, tags: dict[str, str] | None
    ) -> bool:
        return resources.put(
            connection,
            call.id,
            value,
            now=parts.clock.now(),
            location=location,
            tags=tags,
            if_match=call.if_match,
            if_none_match=call.if_none_match,
        )

    async def shown(call: Call, write: Callable[[Connection], bool]) -> Reply:
        def work(connection: Connection) -> Reply:
            created = write(connection)
            return Reply(201 if created else 200, show(connection, _one(connection, call)))

        return await parts.database.write(work)

    async def put(call: Call) -> Reply:
        vaults.check_name(call.id.name)
        body = parse(call.body, VaultBody)
        _refuse(body)
        location = region(body.location).name

        def write(connection: Connection) -> bool:
            before = resources.get(connection, call.id, Vault)
            value = _changed(Vault() if before is None else before.body, body)
            created = save(connection, call, value, location, body.tags)
            if created:
                services = FIRST_SERVICES if parts.settings.start_with_two_members else BACKUP_SERVICES
                suffixes = parts.settings.suffixes
                vaults.create(connection, call.id.key, location, suffixes, parts.clock.now(), services)
            else:
                vaults.changed(connection, call.id.key, parts.clock.now())
            return created

        return await shown(call, write)

    async def patch(call: Call) -> Reply:
        body = parse(call.body, VaultPatch)
        _refuse(body)
        location = None if body.location is None else region(body.location).name

        def write(connection: Connection) -> bool:
            before = _one(connection, call)
            save(connection, call, _changed(before.body, body), location, body.tags)
            vaults.changed(connection, call.id.key, parts.clock.now())
            return False

        return await shown(call, write)

    async def get(call: Call) -> Reply:
        return Reply(200, parts.database.look(lambda connection: show(connection, _one(connection, call))))

    async def delete(call: Call) -> Reply:
        """204 when it is done: the SDK takes 202 and 204 of a vault, and calls 200 an error."""
        await parts.database.write(lambda connection: remove(connection, parts, call.id, call.if_match))
        return Reply(204)

    async def every(call: Call) -> Reply:
        return await listing(parts, call, VAULT_TYPE, Vault, show)

    scope = "/subscriptions/{subscription}"
    base = f"{scope}/resourceGroups/{{group}}/providers/Microsoft.RecoveryServices/vaults"
    action = "Microsoft.RecoveryServices/Vaults"
    return (
        Route("PUT", f"{base}/{{vault}}", f"{action}/write", put),
        Route("PATCH", f"{base}/{{vault}}", f"{action}/write", patch),
        Route("GET", f"{base}/{{vault}}", f"{action}/read", get),
        Route("DELETE", f"{base}/{{vault}}", f"{action}/delete", delete),
        Route("GET", base, f"{action}/read", every),
        Route("GET", f"{scope}/providers/Microsoft.RecoveryServices/vaults", f"{action}/read", every),
    )


def _one(connection: Connection, call: Call) -> Resource[Vault]:
    return resources.require(connection, call.id, Vault)
