"""*If you're using proxy servers, you can choose to bypass the proxy server or perform your backups through the proxy server*: the real squid,
with the configuration of docs/proxy.md, in a VM of the hub, which is peered with the spoke that has the host and the endpoint. It resolves the
names itself, so its own network needs the zones, whatever the host's network has."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deployment import GROUP, REPOSITORY, Deployment, drivers
from tests.peers import peer
from undercroft.cli.management import connect

pytestmark = [pytest.mark.rootless, pytest.mark.slow, pytest.mark.xdist_group("proxy")]

ZONES = (
    "privatelink.we.backup.windowsazure.com",
    "privatelink.blob.core.windows.net",
    "privatelink.queue.core.windows.net",
)
MORE = """
positive_dns_ttl 1 second
http_port 3129
http_port 3130
auth_param basic program {helper}
acl known proxy_auth REQUIRED
acl asking localport 3129
acl refusing localport 3130
http_access deny refusing
http_access deny asking !known
"""
HELPER = """#!/bin/sh
# As squid asks: a line with user and password, escaped; OK or ERR.
while read -r line; do
    if [ "$line" = "backup correct%20horse" ]; then echo OK; else echo ERR; fi
done
"""


class Proxied:
    """A deployment with a squid in a VM."""

    def __init__(self, site: Deployment) -> None:
        self.site = site
        self.folder = site.home.parent / "squid"
        self.files = site.home.parent / "files"
        self.address = ""

    def start(self) -> None:
        squid = peer("squid")
        self.site.network("hub", "proxy01", prefix="10.30.0.0/16", subnet="10.30.1.0/24")
        self.site.run(
            "peering", "create", "hub-spoke", "-g", GROUP, "--vnet-name", "hub", "--remote-vnet", "spoke", "--both"
        )
        self.site.run("dns", "link-create", *ZONES, "-g", GROUP, "--vnet-name", "hub")
        self.folder.mkdir()
        helper = self.folder / "helper"
        helper.write_text(HELPER)
        helper.chmod(0o755)
        sample = re.search(r"```conf\n(.*?)```", (REPOSITORY / "docs" / "proxy.md").read_text("utf-8"), re.DOTALL)
        assert sample is not None
        text = sample[1].replace("/srv/squid", str(self.folder))
        first, rest = text.split("http_port 3128\n")
        configuration = self.folder / "squid.conf"
        configuration.write_text(first + "http_port 3128\n" + MORE.format(helper=helper) + rest)
        # Root's squid becomes another user, who may not enter this folder: it is told that it is an ordinary one.
        plain = "unshare -U --map-user=1000 --map-group=1000 " if os.geteuid() == 0 else ""
        self.site.inside(
            "proxy01", "sh", "-c", f"{plain}{squid} -N -f {configuration} </dev/null >{self.folder}/said 2>&1 &"
        )
        self.address = self.site.inside("proxy01", "hostname", "-I").out.split()[0]
        deadline = time.monotonic() + 30
        while not (self.folder / "squid.pid").exists():
            assert time.monotonic() < deadline, (self.folder / "said").read_text()
            time.sleep(0.1)

    @property
    def tunnels(self) -> list[str]:
        """The hosts that were asked of squid so far."""
        text = (self.folder / "access.log").read_text() if (self.folder / "access.log").exists() else ""
        return re.findall(r" CONNECT ([^ :]+):443 ", text)

    def agent(self, *words: str | Path, expect: int = 0) -> str:
        return self.site.inside("web01", "agent", *words, expect=expect).said

    def back_up(self, *more: str, expect: int = 0) -> str:
        return self.site.backup(self.files, *more, expect=expect).said

    def use(self, user: str = "", port: int = 3128, *more: str | Path) -> str:
        return self.agent("proxy", f"http://{user}{self.address}:{port}", *more)

    def legs(self) -> dict[str, dict[str, Any]]:
        shown = json.loads(self.site.run("vault", "containers", "safe", "-g", GROUP, "--json").out)
        return {path["leg"]: path for path in shown[0]["properties"]["extendedInfo"]["paths"]}

    def unlink(self, zone: str) -> None:
        arm = connect(self.site.home)
        links = arm.list(arm.id(GROUP, "Microsoft.Network", "privateDnsZones", zone), "virtualNetworkLinks")
        (mine,) = [link for link in links if link["properties"]["virtualNetwork"]["id"].endswith("/hub")]
        arm.delete(mine["id"])

    def link(self, zone: str) -> None:
        self.site.run("dns", "link-create", zone, "-g", GROUP, "--vnet-name", "hub")
        time.sleep(1.2)  # squid's own cache


@pytest.fixture(scope="module", params=drivers())
def proxied(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxied]:
    site = Deployment(tmp_path_factory.mktemp("proxy") / "home", request.param)
    try:
        site.start()
        site.furnished(files=3)
        made = Proxied(site)
        made.start()
        yield made
    finally:
        site.stop()


def test_through_the_proxy_nothing_is_resolved_by_the_host_and_the_path_is_private(proxied: Proxied) -> None:
    proxied.site.inside(
        "web01",
        "sh",
        "-c",
        "cp /etc/resolv.conf $UNDERCROFT_AGENT_HOME/kept; echo 'nameserver 127.0.0.9' > /etc/resolv.conf",
    )
    assert "no answer to the DNS question" in proxied.agent("status", expect=1)
    proxied.use()
    said = proxied.back_up()
    assert "private path" in said and f"through the proxy http://{proxied.address}:3128" in said
    legs = proxied.legs()
    assert [legs[leg]["path"] for leg in ("backup", "blob")] == ["private", "private"]
    assert all(legs[leg]["proxy"] == f"http://{proxied.address}:3128" for leg in ("backup", "blob", "login"))
    asked = proxied.tunnels
    for part in (f".{ZONES[0]}", "prot01.blob.", "login."):
        assert any(part in name for name in asked), (part, asked)


def test_bypassed_only_the_login_goes_through_it(proxied: Proxied) -> None:
    proxied.site.inside("web01", "sh", "-c", "cat $UNDERCROFT_AGENT_HOME/kept > /etc/resolv.conf")
    before = len(proxied.tunnels)
    proxied.use("", 3128, "--bypass", "private-zones")
    assert "private path" in proxied.back_up()
    deadline = time.monotonic() + 5
    while len(proxied.tunnels) == before and time.monotonic() < deadline:
        time.sleep(0.1)  # squid writes a tunnel's line when it ends
    assert set(proxied.tunnels[before:]) == {"login.undercroft.internal"}
    legs = proxied.legs()
    assert (legs["backup"]["proxy"], legs["login"]["proxy"]) == (None, f"http://{proxied.address}:3128")


def test_zones_not_linked_to_the_proxys_network_lead_it_to_the_public_side_and_that_is_said(proxied: Proxied) -> None:
    proxied.use()
    proxied.site.run("vault", "update", "safe", "-g", GROUP, "--public-network-access", "Enable")
    proxied.unlink(ZONES[0])
    time.sleep(1.2)
    said = proxied.back_up()
    assert "resolved the name itself and found no address" in said
    backup = proxied.legs()["backup"]
    assert backup["path"] == "public" and "the proxy http://" in backup["lastFallbackReason"]
    assert "(!) web01" in proxied.site.run("vault", "containers", "safe", "-g", GROUP).out
    proxied.site.run("vault", "update", "safe", "-g", GROUP, "--public-network-access", "Disable")
    refused = proxied.back_up(expect=1)
    assert "UserErrorPublicNetworkAccessDenied" in refused and "resolved the name itself" in refused
    strict = proxied.back_up("--no-public-fallback", expect=1)
    assert "link the privatelink zones to the proxy's own network" in strict
    proxied.link(ZONES[0])
    assert "private path" in proxied.back_up()


def test_a_storage_zone_that_the_proxys_network_lacks_is_named_as_the_proxys(proxied: Proxied) -> None:
    proxied.unlink(ZONES[1])
    time.sleep(1.2)
    refused = proxied.back_up(expect=1)
    assert "prot01.blob." in refused and "UserErrorPublicNetworkAccessDenied" in refused
    proxied.link(ZONES[1])


def test_407_403_and_a_proxy_that_ended_are_named_with_what_to_do(proxied: Proxied) -> None:
    proxied.use("", 3129)
    said = proxied.agent("status", expect=1)
    assert "wants authentication (407" in said and "--password-file" in said
    secret = proxied.folder / "secret"
    secret.write_text("correct horse\n")
    secret.chmod(0o600)
    proxied.use("stranger@", 3129, "--password-file", secret)
    assert "does not accept the user 'stranger'" in proxied.agent("status", expect=1)
    proxied.use("backup@", 3129, "--password-file", secret)
    assert "backup: private" in proxied.agent("status")
    assert "correct" not in proxied.agent("proxy")
    proxied.use("", 3130)
    said = proxied.agent("status", expect=1)
    assert "refuses a tunnel to login." in said and "ERR_ACCESS_DENIED" in said
    proxied.site.inside("proxy01", "sh", "-c", f"kill $(cat {proxied.folder}/squid.pid)")
    deadline = time.monotonic() + 10
    while (proxied.folder / "squid.pid").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    said = proxied.agent("status", expect=1)
    assert "cannot be reached: connection to" in said and "refused" in said
