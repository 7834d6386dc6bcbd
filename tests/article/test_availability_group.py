"""The article's *When using SQL Availability Groups*: the group's DNS server, a domain controller, forwards all three zones to
168.63.129.16, or to a DNS server of one's own. BIND plays the domain controller; its configuration is written by hand, as a person would."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import pytest

from tests.deployment import GROUP, REGION, Deployment, NearDeployment, drivers
from tests.nameservers import NameServer
from tests.peers import peer

pytestmark = [pytest.mark.rootless, pytest.mark.slow, pytest.mark.xdist_group("availability-group")]

CONTROLLER, OWN_DNS = "10.40.1.4", "10.40.1.6"
ZONES = {
    "backup": "privatelink.we.backup.windowsazure.com",
    "blob": "blob.core.windows.net",
    "queue": "queue.core.windows.net",
}
LOGIN = "undercroft.internal"
DOMAIN = 'zone "contoso.local" { type primary; file "contoso.local"; };\n'
RECORDS = (
    "$TTL 60\n@ IN SOA dc01 admin 1 3600 300 86400 60\n@ IN NS dc01\ndc01 IN A 10.40.1.4\nlistener IN A 10.40.1.5\n"
)
CLOSED = "dnssec-validation no; forwarders { 127.0.0.2; }; forward only;"
"""Names that no zone here covers are asked of nobody who answers: the network is locked down."""


def forwarding(*zones: str, to: str = "168.63.129.16") -> str:
    """The domain, and conditional forwarders."""
    return DOMAIN + "".join(
        f'zone "{zone}" {{ type forward; forward only; forwarders {{ {to}; }}; }};\n' for zone in (*zones, LOGIN)
    )


@pytest.fixture(scope="module", params=drivers())
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("availability-group")
    deployment = NearDeployment(folder / "home", request.param)
    try:
        deployment.start()
        deployment.run("group", "create", GROUP, "-l", REGION)
        deployment.run("vnet", "create", "sql", "-g", GROUP, "--address-prefixes", "10.40.0.0/16", "--subnet-name",
                       "work", "--subnet-prefix", "10.40.1.0/24", "--dns-servers", CONTROLLER)  # fmt: skip
        for vm in ("dc01", "sql01", "dns01"):
            deployment.run("vm", "create", vm, "-g", GROUP, "--vnet-name", "sql", "--subnet", "work")
        deployment.vault("safe")
        deployment.endpoint("door", "safe", "sql", "--integrate-dns")
        deployment.passphrase.write_text("correct horse battery staple\n", "ascii")
        (folder / "files").mkdir()
        (folder / "files" / "database").write_bytes(os.urandom(100_000))
        deployment.credentials("safe")
        yield deployment
    finally:
        deployment.stop()


def controller(site: Deployment, configuration: str) -> NameServer:
    server = NameServer(site, "dc01", "bind", CLOSED, extra=configuration)
    (server.folder / "contoso.local").write_text(RECORDS, "ascii")
    return server


def register(site: Deployment, expect: int) -> str:
    credentials = site.home.parent / "safe.credentials"
    return site.inside("sql01", "agent", "register", "--credentials", credentials, expect=expect).said


def backup(site: Deployment, expect: int) -> str:
    return site.inside("sql01", "agent", "backup", site.home.parent / "files", "--passphrase-file", site.passphrase,
                       expect=expect).said  # fmt: skip


def diff(site: Deployment, expect: int) -> str:
    return site.run("dns", "diff", "--endpoint", "door", "-g", GROUP, "--from", "sql01", expect=expect).out


def test_without_the_backup_zone_the_group_cannot_register(site: Deployment) -> None:
    with controller(site, forwarding(ZONES["blob"], ZONES["queue"])):
        assert re.search(rf"-id1\.{ZONES['backup']}: no answer to the DNS question from resolver {CONTROLLER}",
                         register(site, expect=1))  # fmt: skip


def test_without_the_queue_zone_registration_says_which_name_is_missing(site: Deployment) -> None:
    with controller(site, forwarding(ZONES["backup"], ZONES["blob"])):
        said = register(site, expect=0)
        assert re.search(r"ecs01\.queue\.core\.windows\.net", said)
        assert not re.search(r"ecs01\.blob\.core\.windows\.net: ", said)
        assert re.search(r"(failed|unreachable) +\w+ecs01\.queue", diff(site, expect=1))


def test_without_the_blob_zone_backups_fail_by_the_name_that_is_missing(site: Deployment) -> None:
    with controller(site, forwarding(ZONES["backup"], ZONES["queue"])):
        assert re.search(r"prot01\.blob\.core\.windows\.net: no answer", backup(site, expect=1))


def test_conditional_forwarders_for_all_three_zones_to_azure_dns(site: Deployment) -> None:
    with controller(site, forwarding(*ZONES.values())):
        diff(site, expect=0)
        backup(site, expect=0)
        listener = site.inside("sql01", peer("nslookup"), "listener.contoso.local").out
        assert "10.40.1.5" in listener, "the group's own names go on as before"


def test_conditional_forwarders_to_the_custom_dns_server_as_necessary(site: Deployment) -> None:
    """Both configurations as ``dns export`` writes them: the controller's leads to unbound in ``dns01``, unbound's to Azure DNS."""
    folder = site.home.parent
    out = {kind: folder / f"exported-{kind}" for kind in ("bind", "unbound")}
    for kind, to in (("bind", OWN_DNS), ("unbound", "168.63.129.16")):
        out[kind].mkdir()
        site.run(
            "dns", "export", "--vault", "safe", "-g", GROUP, "--format", kind, "--forward-to", to, "--out", out[kind]
        )
    own = NameServer(site, "dns01", "unbound", "", tuple(out["unbound"].iterdir()))
    dc01 = controller(site, DOMAIN)
    dc01.included = tuple(out["bind"].iterdir())
    with own, dc01:
        diff(site, expect=0)
