"""The article's "access to Microsoft Entra ID", which a private endpoint does not cover: with security groups the way to the login endpoint
is allowed or blocked by itself, apart from the backup service. One deployment per driver; the tests follow each other."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.deployment import GROUP, Deployment, NearDeployment, drivers
from undercroft.cli.management import connect

pytestmark = [pytest.mark.rootless, pytest.mark.slow, pytest.mark.xdist_group("egress")]

LOGIN = "login.undercroft.internal"
BACKUP, BLOB, QUEUE, LOGIN_ADDRESS = "203.0.113.10", "203.0.113.11", "203.0.113.12", "203.0.113.20"


@pytest.fixture(scope="module", params=drivers())
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("egress")
    deployment = NearDeployment(folder / "home", request.param)
    try:
        deployment.start()
        deployment.run("group", "create", GROUP, "-l", "westeurope")
        deployment.network("spoke", "web01")
        deployment.vault("safe")
        deployment.endpoint("door", "safe", "spoke", "--integrate-dns")
        deployment.passphrase.write_text("correct horse battery staple\n", "ascii")
        deployment.passphrase.chmod(0o600)
        deployment.files("files", 4)
        deployment.run("nsg", "create", "work", "-g", GROUP)
        deployment.run("nsg", "attach", "work", "-g", GROUP, "--vnet-name", "spoke", "--subnet", "work")
        yield deployment
    finally:
        deployment.stop()


def rule(
    site: Deployment, name: str, priority: int, access: str, destination: str, direction: str = "Outbound"
) -> None:
    """By ARM in this process, which is quicker than a command for each."""
    arm = connect(site.home)
    properties = {
        "priority": priority,
        "direction": direction,
        "access": access,
        "protocol": "*",
        "sourceAddressPrefix": "*",
        "sourcePortRange": "*",
        "destinationAddressPrefix": destination,
        "destinationPortRange": "*",
    }
    arm.put(
        arm.id(GROUP, "Microsoft.Network", "networkSecurityGroups", "work", "securityRules", name),
        {"properties": properties},
    )


def forget(site: Deployment, name: str) -> None:
    arm = connect(site.home)
    arm.delete(arm.id(GROUP, "Microsoft.Network", "networkSecurityGroups", "work", "securityRules", name))


def reached(site: Deployment, *addresses: str) -> list[str]:
    """Those of the addresses to which the VM can open a connection on port 443; all are tried at once."""
    code = (
        "import select, socket, sys\nlinks = {}\npoll = select.poll()\n"
        "for address in sys.argv[1:]:\n"
        " link = socket.socket(); link.setblocking(False); link.connect_ex((address, 443))\n"
        " links[link.fileno()] = address, link; poll.register(link, select.POLLOUT)\n"
        "import time; end = time.monotonic() + 0.6\n"
        "while (left := end - time.monotonic()) > 0:\n"
        " for descriptor, _ in poll.poll(left * 1000):\n"
        "  poll.unregister(descriptor); print(links[descriptor][0])\n"
    )
    return sorted(site.inside("web01", sys.executable, "-c", code, *addresses).out.split())


def test_azure_backup_needs_no_internet_but_the_login_endpoint(site: Deployment) -> None:
    """Internet denied, AzureActiveDirectory allowed: registers and backs up through the endpoint."""
    site.run("nsg", "rule", "create", "login", "-g", GROUP, "--nsg-name", "work", "--direction", "Outbound", "--priority", "100",
             "--protocol", "Tcp", "--destination", "AzureActiveDirectory", "--destination-ports", "443")  # fmt: skip
    rule(site, "internet", 200, "Deny", "Internet")
    assert reached(site, BACKUP, BLOB, QUEUE, LOGIN_ADDRESS) == [LOGIN_ADDRESS]
    site.inside("web01", "agent", "register", "--credentials", site.credentials("safe"))
    site.backup(site.home.parent / "files")
    assert "private:" in site.run("vault", "containers", "safe", "-g", GROUP, "--json").out
    shown = site.run("nsg", "effective", "web01", "-g", GROUP).out
    assert "AllowVnetOutBound" in shown and f"{LOGIN_ADDRESS}/32" in shown


def test_without_access_to_entra_id_the_agent_names_the_login_endpoint(site: Deployment) -> None:
    """Names and endpoint are right, and all the same nothing works: the message must say which leg it is."""
    rule(site, "login", 100, "Deny", "AzureActiveDirectory")
    forget(site, "internet")
    with ThreadPoolExecutor(1) as aside:  # it waits for its time-out meanwhile
        failing = aside.submit(site.backup, site.home.parent / "files", expect=1)
        name, address = _endpoint(site, "prot1")
        assert address in _looked_up(site, name)
        assert LOGIN_ADDRESS in _looked_up(site, LOGIN)
        assert reached(site, address, BACKUP, BLOB, QUEUE, LOGIN_ADDRESS) == sorted([address, BACKUP, BLOB, QUEUE])
        denied = site.run("nsg", "test", "web01", "-g", GROUP, "--address", LOGIN_ADDRESS, expect=1).out
        assert "work at spoke/work: Deny by login, priority 100" in denied
        said = failing.result().err
    assert "UserErrorCannotConnectToAzureActiveDirectoryService" in said
    assert f"{LOGIN}: connection to {LOGIN_ADDRESS}:443 timed out" in said
    assert "private endpoint does not cover" in said and "tag AzureActiveDirectory" in said
    forget(site, "login")


def test_each_public_service_can_be_denied_by_itself(site: Deployment) -> None:
    rule(site, "storage", 110, "Deny", "Storage.WestEurope")
    assert reached(site, BACKUP, BLOB, QUEUE, LOGIN_ADDRESS) == [BACKUP, LOGIN_ADDRESS]
    rule(site, "storage", 110, "Deny", "AzureBackup")
    assert reached(site, BACKUP, BLOB, QUEUE, LOGIN_ADDRESS) == [BLOB, QUEUE, LOGIN_ADDRESS]


def test_network_policies_of_the_subnet_put_its_group_before_the_endpoint(site: Deployment) -> None:
    """Without them an inbound rule says nothing about endpoints, as Azure has it by default."""
    _, address = _endpoint(site, "id1")
    rule(site, "door", 100, "Deny", address, "Inbound")
    assert reached(site, address) == [address]
    where = "--vnet-name", "spoke", "--subnet", "work"
    site.run("nsg", "attach", "work", "-g", GROUP, *where, "--endpoints")
    assert reached(site, address) == []
    site.run("nsg", "detach", "-g", GROUP, *where)
    assert "every packet passes" in site.run("nsg", "effective", "web01", "-g", GROUP).out
    assert reached(site, address, BACKUP) == [address, BACKUP]


def _looked_up(site: Deployment, name: str) -> str:
    return site.inside("web01", sys.executable, "-m", "undercroft.cli", "dns", "lookup", name).out


def _endpoint(site: Deployment, service: str) -> tuple[str, str]:
    """A name of the endpoint, and its address."""
    arm = connect(site.home)
    shown = arm.get(arm.id(GROUP, "Microsoft.Network", "privateEndpoints", "door"))["properties"]["customDnsConfigs"]
    names = {str(one["fqdn"]): str(one["ipAddresses"][0]) for one in shown}
    return next((name, address) for name, address in names.items() if f"-{service}." in name)
