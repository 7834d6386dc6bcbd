"""The article's steps and notes, in its order; each test is named after the one it holds for. One deployment per driver:
the steps follow each other, as in the article, so they run in order and the first that fails ends the file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.deployment import GROUP, Deployment, NearDeployment, drivers

pytestmark = [pytest.mark.rootless, pytest.mark.slow, pytest.mark.xdist_group("article")]

ZONES = (
    "privatelink.we.backup.windowsazure.com",
    "privatelink.blob.core.windows.net",
    "privatelink.queue.core.windows.net",
)


@pytest.fixture(scope="module", params=drivers())
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("article")
    deployment = NearDeployment(folder / "home", request.param)
    try:
        deployment.start()
        deployment.run("group", "create", GROUP, "-l", "westeurope")
        deployment.network("spoke", "web01")
        deployment.network("lonely", "web02")
        deployment.passphrase.write_text("correct horse battery staple\n", "ascii")
        deployment.files("files")
        yield deployment
    finally:
        deployment.stop()


def dns_configs(site: Deployment, endpoint: str = "door") -> dict[str, str]:
    shown = site.run("endpoint", "show", endpoint, "-g", GROUP, "--json").json
    return {entry["fqdn"]: entry["ipAddresses"][0] for entry in shown["properties"]["customDnsConfigs"]}


def host(site: Deployment, service: str) -> str:
    return next(fqdn for fqdn in dns_configs(site) if f"-{service}." in fqdn or f"{service}01.blob." in fqdn)


def looked_up(site: Deployment, vm: str, name: str) -> str:
    return site.inside(vm, "python3", "-m", "undercroft.cli", "dns", "lookup", name, expect=(0, 1)).out


def test_create_a_vault_one_that_had_a_registration_attempted_is_refused_an_endpoint(site: Deployment) -> None:
    site.vault("used", deny=False)
    site.inside("web02", "agent", "register", "--credentials", site.credentials("used"))
    assert "UsedVault" in site.endpoint("late", "used", "lonely", expect=1).err


def test_deny_public_network_access_the_vault_can_still_be_managed_but_takes_no_data(site: Deployment) -> None:
    site.vault("safe", deny=True)
    assert site.run("vault", "show", "safe", "-g", GROUP).json["properties"]["publicNetworkAccess"] == "Disabled"
    said = site.inside("web01", "agent", "register", "--credentials", site.credentials("safe"), expect=1).err
    assert "UserErrorPublicNetworkAccessDenied" in said


def test_create_private_endpoints_3a_region_must_be_the_vaults(site: Deployment) -> None:
    said = site.endpoint("abroad", "safe", "spoke", "--location", "northeurope", expect=1).err
    assert "westeurope" in said
    assert "northeurope" in said


def test_create_private_endpoints_3b_resource_3c_virtual_network_3d_custom_dns(site: Deployment) -> None:
    made = site.endpoint("door", "safe", "spoke").json
    link = made["properties"]["privateLinkServiceConnections"][0]["properties"]
    assert link["groupIds"] == ["AzureBackup"]
    configs = dns_configs(site)
    assert len(configs) == 8
    assert all(address.startswith("10.20.1.") for address in configs.values())
    assert looked_up(site, "web01", host(site, "id1")).count("NXDOMAIN") == 1, "no zone was asked for, none was made"


def test_approve_private_endpoints_the_owner_is_approved_automatically(site: Deployment) -> None:
    shown = site.run("endpoint", "show", "door", "-g", GROUP).out
    assert "connection Approved" in shown


def test_approve_private_endpoints_3_another_principal_waits_for_approval(site: Deployment) -> None:
    site.network("third", "web03")
    login = site.home.parent / "networker.login"
    scope = f"/subscriptions/{site.connection['subscriptionId']}/resourceGroups/{GROUP}"
    site.run("principal", "create", "networker", "--role", "Network Contributor", "--scope", scope, "--out", login)
    made = site.endpoint("guest", "safe", "third", "--login", str(login)).json
    state = made["properties"]["privateLinkServiceConnections"][0]["properties"]["privateLinkServiceConnectionState"]
    assert state["status"] == "Pending"
    said = site.run("connection", "approve", "guest", "--vault", "safe", "-g", GROUP, "--login", login, expect=1).err
    assert "AuthorizationFailed" in said, "who may create may not approve"
    assert not connects(site, "web03", "guest"), "a pending connection carries no traffic"
    site.run("connection", "approve", "guest", "--vault", "safe", "-g", GROUP)
    assert connects(site, "web03", "guest")


def test_approve_private_endpoints_reject_and_remove(site: Deployment) -> None:
    site.run("connection", "reject", "guest", "--vault", "safe", "-g", GROUP)
    assert not connects(site, "web03", "guest")
    assert "Rejected" in site.run("connection", "approve", "guest", "--vault", "safe", "-g", GROUP, expect=1).err
    site.run("connection", "remove", "guest", "--vault", "safe", "-g", GROUP)
    assert "connection Disconnected" in site.run("endpoint", "show", "guest", "-g", GROUP).out
    site.run("endpoint", "delete", "guest", "-g", GROUP)


def test_manage_dns_records_a_zone_group_writes_them_into_existing_zones(site: Deployment) -> None:
    said = site.run("dns", "zone-group-create", ZONES[0], "-g", GROUP, "--endpoint-name", "door", expect=(1, 3)).err
    assert ZONES[0] in said, "a zone group that names a missing zone fails"
    site.run("dns", "zone-create", *ZONES, "-g", GROUP)
    site.run("dns", "zone-group-create", *ZONES, "-g", GROUP, "--endpoint-name", "door")
    records = site.run("dns", "record-list", ZONES[0], "-g", GROUP).out
    for fqdn, address in dns_configs(site).items():
        assert fqdn.removesuffix(f".{ZONES[0]}") in records
        assert address in records


def test_validate_virtual_network_links_without_one_the_names_do_not_resolve(site: Deployment) -> None:
    name = host(site, "id1")
    assert "NXDOMAIN" in looked_up(site, "web01", name)
    site.run("dns", "link-create", *ZONES, "-g", GROUP, "--vnet-name", "spoke")
    assert dns_configs(site)[name] in looked_up(site, "web01", name)


def test_check_vm_connectivity_1_the_login_endpoint_2_nslookup_of_the_backup_url(site: Deployment) -> None:
    name = host(site, "prot1")
    assert dns_configs(site)[name] in looked_up(site, "web01", name)
    assert "NXDOMAIN" in looked_up(site, "web02", name)
    assert "203.0.113." in looked_up(site, "web01", "login.undercroft.internal")


def test_configure_backup_dns_records_for_blobs_and_queues_after_the_first_registration(site: Deployment) -> None:
    refused = site.inside("web02", "agent", "register", "--credentials", site.credentials("safe"), expect=1).err
    assert "UserErrorPublicNetworkAccessDenied" in refused
    site.inside("web01", "agent", "register", "--credentials", site.credentials("safe"))
    configs = dns_configs(site)
    assert len(configs) == 10
    account = host(site, "ecs").split(".")[0]
    for zone in ZONES[1:]:
        assert account in site.run("dns", "record-list", zone, "-g", GROUP).out
    answer = looked_up(site, "web01", f"{account}.blob.core.windows.net")
    assert configs[f"{account}.blob.core.windows.net"] in answer
    assert f"{account}.privatelink.blob.core.windows.net" in answer
    assert configs[f"{account}.blob.core.windows.net"] not in looked_up(
        site, "web02", f"{account}.blob.core.windows.net"
    )


def test_dns_records_for_blobs_after_the_first_backup(site: Deployment) -> None:
    site.backup(site.home.parent / "files")
    configs = dns_configs(site)
    assert len(configs) == 11
    name = host(site, "prot")
    assert configs[name] in looked_up(site, "web01", name)


def test_backup_and_restore_data_goes_through_the_endpoint(site: Deployment) -> None:
    rows = site.run("vault", "containers", "safe", "-g", GROUP, "--json").out
    assert "private:" in rows, "the path of the last call is recorded"
    restored = site.restore(site.points()[0]["id"], "restored")
    root = restored if (restored / "big").exists() else restored / "files"
    for path in (site.home.parent / "files").iterdir():
        assert (root / path.name).read_bytes() == path.read_bytes()


def test_removed_endpoints_need_registration_again_and_do_not_stop_protection(site: Deployment) -> None:
    points = [point["id"] for point in site.points()]
    site.run("endpoint", "delete", "door", "-g", GROUP)
    assert site.run("dns", "record-list", ZONES[0], "-g", GROUP).out.count("ab-pod01") == 0
    site.backup(site.home.parent / "files", expect=1)
    site.endpoint("door", "safe", "spoke")
    site.run("dns", "zone-group-create", *ZONES, "-g", GROUP, "--endpoint-name", "door")
    said = site.backup(site.home.parent / "files", expect=1).err
    assert "register" in said.lower()
    site.inside("web01", "agent", "register", "--credentials", site.credentials("safe"))
    assert [point["id"] for point in site.points()] == points
    site.backup(site.home.parent / "files")


def test_deleting_private_endpoints_closes_their_doors(site: Deployment) -> None:
    assert connects(site, "web01", "door")
    address = dns_configs(site)[host(site, "id1")]
    name = host(site, "id1")
    site.run("endpoint", "delete", "door", "-g", GROUP)
    assert not answers(site, "web01", address, name)


def connects(site: Deployment, vm: str, endpoint: str) -> bool:
    """Whether the vault answers TLS and HTTP at the endpoint's prot1 address, from this VM."""
    configs = dns_configs(site, endpoint)
    name = next((fqdn for fqdn in configs if "-prot1." in fqdn), None)
    return name is not None and answers(site, vm, configs[name], name)


def answers(site: Deployment, vm: str, address: str, name: str) -> bool:
    code = (
        "import http.client, socket, ssl, sys\n"
        "context = ssl.create_default_context(cafile=sys.argv[3])\n"
        "link = http.client.HTTPSConnection(sys.argv[2], context=context, timeout=4)\n"
        "link._create_connection = lambda *_: socket.create_connection((sys.argv[1], 443), 4)\n"
        "link.request('GET', '/CommonProtectionCatalogService.svc')\n"
        "print(link.getresponse().status)\n"
    )
    ca = site.connection["caBundle"]
    done = site.inside(
        vm, "python3", "-c", f"try:\n exec({code!r})\nexcept OSError as e: print('no', e)", address, name, ca
    )
    return done.out.strip() == "200"
