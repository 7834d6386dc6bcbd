"""The article's management steps with the real, unmodified azure-cli (its own environment, ``.venv-az``)."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deployment import REPOSITORY, Deployment, drivers

NETWORKS = "providers/Microsoft.Network/virtualNetworks"
AZ = REPOSITORY / ".venv-az" / "bin" / "az"

pytestmark = [pytest.mark.az, pytest.mark.slow]


class Az:
    """``az`` with a configuration of its own, pointed at one deployment."""

    def __init__(self, deployment: Deployment, folder: Path) -> None:
        self.deployment = deployment
        self.connection = deployment.connection
        self.environment = {
            **os.environ,
            "AZURE_CONFIG_DIR": str(folder),
            "AZURE_CORE_COLLECT_TELEMETRY": "false",
            "AZURE_CORE_INSTANCE_DISCOVERY": "false",
            "AZURE_CORE_ONLY_SHOW_ERRORS": "true",
            "REQUESTS_CA_BUNDLE": self.connection["caBundle"],
            "SSL_CERT_FILE": self.connection["caBundle"],
            "CURL_CA_BUNDLE": self.connection["caBundle"],
        }
        self.environment.pop("PYTHONPATH", None)

    def __call__(self, command: str, expect: int = 0) -> Any:
        done = subprocess.run(
            [AZ, *command.split()], env=self.environment, capture_output=True, text=True, timeout=180, check=False
        )
        assert done.returncode == expect, f"az {command}\n{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        if expect:
            return done.stderr
        return json.loads(done.stdout) if done.stdout.strip() else None


@pytest.fixture
def az(tmp_path: Path) -> Iterator[Az]:
    if not AZ.exists():
        if os.environ.get("CI") == "true":
            pytest.fail("the real azure-cli is missing: scripts/setup --azure-cli")
        pytest.skip("azure-cli is not set up: scripts/setup --azure-cli")
    deployment = Deployment(tmp_path / "home", drivers()[0])
    try:
        deployment.start()
        found = Az(deployment, tmp_path / "az")
        arm = found.connection["resourceManager"]
        found(f"cloud register -n Undercroft --endpoint-resource-manager {arm}")
        found("cloud set -n Undercroft")
        yield found
    finally:
        deployment.stop()


def sign_in(az: Az) -> None:
    who = az.connection
    found = az(f"login --service-principal -u {who['clientId']} -p {who['clientSecret']} --tenant {who['tenantId']}")
    assert [account["id"] for account in found] == [who["subscriptionId"]]


def test_the_management_steps_of_the_article(az: Az) -> None:
    wrong = az(
        f"login --service-principal -u {az.connection['clientId']} -p wrong --tenant {az.connection['tenantId']}",
        expect=1,
    )
    assert "7000215" in wrong
    sign_in(az)

    # Create a Recovery Services vault
    az("group create -n rg -l westeurope")
    assert az("group exists -n rg") is True
    assert az("group exists -n nothing") is False
    az(
        "network vnet create -g rg -n spoke --address-prefixes 10.1.0.0/16 --subnet-name pe --subnet-prefixes 10.1.1.0/24"
    )
    vault = az("backup vault create -g rg -n safe -l westeurope")
    assert vault["properties"]["provisioningState"] == "Succeeded"
    assert [entry["name"] for entry in az("backup vault list -g rg")] == ["safe"]

    # Deny public network access to the vault
    denied = az("backup vault update -g rg -n safe --public-network-access Disable")
    assert denied["properties"]["publicNetworkAccess"] == "Disabled"

    # Create private endpoints for Azure Backup
    resources = az(f"network private-link-resource list --id {vault['id']}")
    assert "AzureBackup" in [entry["properties"]["groupId"] for entry in resources]
    endpoint = az(
        "network private-endpoint create -g rg -n door --vnet-name spoke --subnet pe --connection-name c1 "
        f"--group-id AzureBackup --private-connection-resource-id {vault['id']}"
    )
    assert endpoint["provisioningState"] == "Succeeded"
    link = endpoint["privateLinkServiceConnections"][0]
    assert link["privateLinkServiceConnectionState"]["status"] == "Approved"
    assert len(endpoint["customDnsConfigs"]) == 8

    # Approve private endpoints: a manual request waits for the owner
    az(
        "network private-endpoint create -g rg -n manual --vnet-name spoke --subnet pe --connection-name c2 --manual-request "
        f"--request-message please --group-id AzureBackup --private-connection-resource-id {vault['id']}"
    )
    connections = az(f"network private-endpoint-connection list --id {vault['id']}")
    by_state = {
        entry["properties"]["privateLinkServiceConnectionState"]["status"]: entry["id"] for entry in connections
    }
    assert sorted(by_state) == ["Approved", "Pending"]
    approved = az(f"network private-endpoint-connection approve --id {by_state['Pending']} --description ours")
    assert approved["properties"]["privateLinkServiceConnectionState"]["status"] == "Approved"
    az(f"network private-endpoint-connection reject --id {by_state['Pending']} --description no")
    assert az(f"network private-endpoint-connection show --id {by_state['Pending']}")["properties"][
        "privateLinkServiceConnectionState"]["status"] == "Rejected"  # fmt: skip
    az(f"network private-endpoint-connection delete --id {by_state['Pending']} -y")
    manual = az("network private-endpoint show -g rg -n manual")
    assert (
        manual["manualPrivateLinkServiceConnections"][0]["privateLinkServiceConnectionState"]["status"]
        == "Disconnected"
    )
    az("network private-endpoint delete -g rg -n manual")

    # Cross region restore, 2 to 5: a secondary endpoint in the paired region
    az(
        "network vnet create -g rg -n abroad -l northeurope --address-prefixes 10.1.0.0/16 --subnet-name pe "
        "--subnet-prefixes 10.1.1.0/24"
    )
    far = (
        f"network private-endpoint create -g rg -n far -l northeurope --vnet-name abroad --subnet pe --connection-name c3 "
        f"--private-connection-resource-id {vault['id']} --group-id"
    )
    assert "westeurope" in az(f"{far} AzureBackup", expect=1)
    names = [config["fqdn"] for config in az(f"{far} AzureBackup_secondary")["customDnsConfigs"]]
    assert len(names) == 8 and all(name.endswith(".privatelink.ne.backup.windowsazure.com") for name in names)
    az("network private-endpoint delete -g rg -n far")

    # Manage DNS records
    zones = ("privatelink.we.backup.windowsazure.com", "privatelink.blob.core.windows.net",
             "privatelink.queue.core.windows.net")  # fmt: skip
    for zone in zones:
        az(f"network private-dns zone create -g rg -n {zone}")
        az(f"network private-dns link vnet create -g rg -n spoke -z {zone} -v spoke -e false")
    az(
        f"network private-endpoint dns-zone-group create -g rg --endpoint-name door -n default --zone-name backup "
        f"--private-dns-zone {zones[0]}"
    )
    for name, zone in (("blob", zones[1]), ("queue", zones[2])):
        az(
            f"network private-endpoint dns-zone-group add -g rg --endpoint-name door -n default --zone-name {name} "
            f"--private-dns-zone {zone}"
        )
    groups = az("network private-endpoint dns-zone-group list -g rg --endpoint-name door")
    assert len(groups[0]["privateDnsZoneConfigs"]) == 3
    records = az(f"network private-dns record-set a list -g rg -z {zones[0]}")
    assert {record["ttl"] for record in records} == {10}
    fqdns = {f"{record['name']}.{zones[0]}": record["aRecords"][0]["ipv4Address"] for record in records}
    assert fqdns == {config["fqdn"]: config["ipAddresses"][0] for config in endpoint["customDnsConfigs"]}
    assert [link["name"] for link in az(f"network private-dns link vnet list -g rg -z {zones[0]}")] == ["spoke"]
    linked = az(
        f"network private-dns link vnet update -g rg -n spoke -z {zones[1]} --resolution-policy NxDomainRedirect"
    )
    assert (linked["resolutionPolicy"], linked["registrationEnabled"]) == ("NxDomainRedirect", False)
    az("network private-dns zone create -g rg -n corp.example")
    linked = az("network private-dns link vnet create -g rg -n auto -z corp.example -v spoke -e true")
    assert (linked["registrationEnabled"], linked["virtualNetworkLinkState"]) == (True, "Completed")
    mail = "-g rg -z corp.example -n @ -e mail.corp.example -p"
    az(f"network private-dns record-set mx add-record {mail} 10")
    az(f"network private-dns record-set mx add-record {mail} 20")
    left = az(f"network private-dns record-set mx remove-record {mail} 10")
    assert left["mxRecords"] == [{"exchange": "mail.corp.example", "preference": 20}]

    # Security groups: before the endpoint's subnet and one VM, whose effective rules are shown
    az("network nsg create -g rg -n guard -l westeurope")
    az(
        "network nsg rule create -g rg --nsg-name guard -n login --priority 100 --direction Outbound --protocol Tcp "
        "--destination-address-prefixes AzureActiveDirectory --destination-port-ranges 443 8443"
    )
    guarded = az(
        "network vnet subnet update -g rg --vnet-name spoke -n pe --network-security-group guard "
        "--private-endpoint-network-policies NetworkSecurityGroupEnabled"
    )
    assert guarded["networkSecurityGroup"]["id"].endswith("/guard")
    az.deployment.run("vm", "create", "web01", "-g", "rg", "--vnet-name", "spoke", "--subnet", "pe")
    updated = az("network nic update -g rg -n web01-nic --network-security-group guard")
    assert updated["networkSecurityGroup"]["id"].endswith("/guard")
    effective = az("network nic list-effective-nsg -g rg -n web01-nic")["value"]
    assert [one["effectiveSecurityRules"][0]["name"] for one in effective] == ["securityRules/login"] * 2
    assert "InUseNetworkSecurityGroupCannotBeDeleted" in az("network nsg delete -g rg -n guard", expect=1)

    # Access control: a role given to another principal, seen, and taken away
    other = az.deployment.run("principal", "create", "networker").json
    scope = f"/subscriptions/{az.connection['subscriptionId']}/resourceGroups/rg"
    az(
        f"role assignment create --assignee-object-id {other['objectId']} --assignee-principal-type ServicePrincipal "
        f"--role Reader --scope {scope}"
    )
    given = az(f"role assignment list --scope {scope} --assignee {other['clientId']}")
    assert [(one["roleDefinitionName"], one["principalId"]) for one in given] == [("Reader", other["objectId"])]
    az(f"role assignment delete --assignee {other['clientId']} --role Reader --scope {scope}")
    assert az(f"role assignment list --scope {scope} --assignee {other['clientId']}") == []

    # MARS: an on-premises network that is joined with the endpoint's, here by way of a peered hub
    run = az.deployment.run
    run("vnet", "create", "hub", "-g", "rg", "--address-prefixes", "10.2.0.0/16", "--subnet-name", "work")
    run("vm", "create", "hub01", "-g", "rg", "--vnet-name", "hub", "--subnet", "work")
    peering = "network vnet peering create -g rg --allow-vnet-access -n"
    assert "VnetAddressSpacesOverlap" in az(f"{peering} bad --vnet-name spoke --remote-vnet abroad", expect=1)
    assert az(f"{peering} up --vnet-name spoke --remote-vnet hub")["peeringState"] == "Initiated"
    assert az(f"{peering} down --vnet-name hub --remote-vnet spoke")["peeringState"] == "Connected"
    synchronised = az("network vnet peering sync -g rg -n up --vnet-name spoke")
    assert synchronised["peeringState"] == "Connected" and synchronised["peeringSyncLevel"] == "FullyInSync"
    line = json.dumps(
        {"addressPrefixes": ["192.168.0.0/24"], "virtualNetwork": {"id": f"{scope}/{NETWORKS}/hub"}},
        separators=(",", ":"),
    )
    office = az(f"resource create -g rg -n office --resource-type Undercroft.Fabric/sites --properties {line}")
    assert office["properties"]["virtualNetwork"]["id"].endswith("/hub")
    routes = az("network nic show-effective-route-table -g rg -n hub01-nic")["value"]
    hops = {(route["nextHopType"], *route["addressPrefix"]) for route in routes}
    assert {("VNetPeering", "10.1.0.0/16"), ("VirtualNetworkGateway", "192.168.0.0/24")} <= hops
    assert sum(route["nextHopType"] == "InterfaceEndpoint" for route in routes) == 8

    # Deleting private endpoints, and everything else
    az("network private-endpoint delete -g rg -n door")
    assert az(f"network private-dns record-set a list -g rg -z {zones[0]}") == []
    assert az(f"network private-endpoint-connection list --id {vault['id']}") == []
    az("backup vault delete -g rg -n safe -y")
    missing = az("backup vault show -g rg -n safe", expect=3)
    assert "ResourceNotFound" in missing or "not found" in missing
    az("group delete -n rg -y")
    assert az("group list") == []


def test_what_az_refuses_is_said_clearly(az: Az) -> None:
    sign_in(az)
    assert "not an Azure region" in az("group create -n rg -l atlantis", expect=1)
    az("group create -n rg -l westeurope")
    said = az("network vnet create -g rg -n v --address-prefixes 10.1.0.0/16 --subnet-name s --subnet-prefixes 10.9.0.0/24",
              expect=1)  # fmt: skip
    assert "10.9.0.0/24" in said
    az("network vnet create -g rg -n v --address-prefixes 10.1.0.0/16 --subnet-name s --subnet-prefixes 10.1.0.0/28")
    vault = az("backup vault create -g rg -n safe -l westeurope")["id"]
    create = f"network private-endpoint create -g rg -n pe --vnet-name v --subnet s --connection-name c --private-connection-resource-id {vault}"
    assert "AzureBackup" in az(f"{create} --group-id Backup", expect=1)
    assert "static" in az(
        f"{create} --group-id AzureBackup --ip-config name=a group-id=AzureBackup member-name=backup-id1 "
        "private-ip-address=10.1.0.9", expect=1).lower()  # fmt: skip
    az(f"{create} --group-id AzureBackup")
    second = az(f"{create.replace('-n pe', '-n pe2')} --group-id AzureBackup", expect=1)
    assert "address" in second and "/28" in second
