"""What a request for a private endpoint may say."""

from __future__ import annotations

import pytest

from undercroft.errors import CapabilityMissing, InvalidParameter
from undercroft.vnet import endpoints
from undercroft.vnet.endpoints import Group


@pytest.mark.parametrize("text", ["AzureBackup", "azurebackup", "AZUREBACKUP"])
def test_group_ids_are_compared_without_case(text: str) -> None:
    assert endpoints.parse_group([text]) is Group.BACKUP


def test_the_secondary_group_is_known() -> None:
    assert endpoints.parse_group(["azurebackup_SECONDARY"]) is Group.BACKUP_SECONDARY


@pytest.mark.parametrize("texts", [[], ["AzureBackup", "AzureBackup_secondary"], ["file"], ["Backup"], ["blobs"]])
def test_a_wrong_group_id_lists_what_is_allowed(texts: list[str]) -> None:
    with pytest.raises(InvalidParameter, match="Allowed: AzureBackup, AzureBackup_secondary") as caught:
        endpoints.parse_group(texts)
    assert caught.value.code == "InvalidGroupId"


def test_site_recovery_is_refused_with_the_reason() -> None:
    with pytest.raises(CapabilityMissing, match="Site Recovery"):
        endpoints.parse_group(["AzureSiteRecovery"])


CLASSIC_GROUPS = ["blob", "Queue", "ecs01", "prot", "backup-prot1_blob", "ecs114-queue"]


@pytest.mark.parametrize("text", CLASSIC_GROUPS)
def test_the_groups_of_a_v1_layout_are_refused_as_such(text: str) -> None:
    with pytest.raises(CapabilityMissing, match=r"classic experience \(v1\)") as caught:
        endpoints.parse_group([text])
    assert caught.value.code == "UserErrorClassicPrivateEndpointNotSupported"
    assert text in caught.value.message


def test_a_separate_endpoint_for_an_account_of_the_vault_is_a_v1_layout() -> None:
    account = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Storage/storageAccounts/abcdeypod01ecs114"
    with pytest.raises(CapabilityMissing, match="one endpoint for AzureBackup has the addresses") as caught:
        endpoints.parse_target(account)
    assert caught.value.code == "UserErrorClassicPrivateEndpointNotSupported"


def test_only_vaults_have_endpoints() -> None:
    vault = "/subscriptions/s/resourceGroups/g/providers/microsoft.recoveryservices/Vaults/v"
    assert endpoints.parse_target(vault).name == "v"
    with pytest.raises(CapabilityMissing, match="registries"):
        endpoints.parse_target("/subscriptions/s/resourceGroups/g/providers/Microsoft.ContainerRegistry/registries/a")
    with pytest.raises(InvalidParameter):
        endpoints.parse_target("/subscriptions/s/nonsense")


def test_static_addresses_are_refused() -> None:
    endpoints.check_static_addresses([])
    with pytest.raises(InvalidParameter, match="backup-fc1") as caught:
        endpoints.check_static_addresses(["backup-fc1"])
    assert caught.value.code == "PrivateEndpointStaticIpNotSupported"


def test_endpoint_network_and_vault_share_a_region() -> None:
    endpoints.check_regions(Group.BACKUP, "westeurope", "westeurope", "westeurope")
    endpoints.check_regions(Group.BACKUP_SECONDARY, "northeurope", "northeurope", "westeurope")
    for group, endpoint, network, vault in (
        (Group.BACKUP, "westeurope", "northeurope", "westeurope"),
        (Group.BACKUP, "northeurope", "northeurope", "westeurope"),
        (Group.BACKUP_SECONDARY, "westeurope", "westeurope", "westeurope"),
    ):
        with pytest.raises(InvalidParameter) as caught:
            endpoints.check_regions(group, endpoint, network, vault)
        assert caught.value.code == "InvalidPrivateEndpointRegion"
