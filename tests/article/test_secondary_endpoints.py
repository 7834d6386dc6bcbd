"""Article, 'Cross region restore to a private endpoint enabled vault': its steps 1 to 6, as far as the network goes. The data is
not replicated yet: step 6 ends in the error that says so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.article.estate import PAIR, STORAGE_ZONES, Estate, estate
from tests.article.observer import Observer
from tests.deployment import GROUP, drivers
from undercroft.errors import UndercroftError
from undercroft.names import ResourceId

pytestmark = [pytest.mark.rootless, pytest.mark.slow, pytest.mark.xdist_group("article-secondary")]

HOME_ZONE = "privatelink.we.backup.windowsazure.com"
PAIR_ZONE = "privatelink.ne.backup.windowsazure.com"


class Regions:
    """The vault's region with ``web01`` in it, and the paired one with ``dr01``; equal address ranges."""

    def __init__(self, site: Estate) -> None:
        self.site = site
        self.vault = site.vault("safe")
        self.home = site.network("spoke", "web01")
        self.away = site.network("abroad", "dr01", PAIR)

    def far(self, name: str = "far") -> ResourceId:
        return self.site.endpoint(name, self.vault, self.away, "AzureBackup_Secondary")

    def edit(self, source: Path, target: Path) -> Path:
        """A copy of a file of the agent's in which the vault's names are the secondary's: somebody's wrong idea."""
        content = json.loads(source.read_text("utf-8"))
        content["privateHost"] = content["privateHost"].replace(HOME_ZONE, PAIR_ZONE)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(content), "utf-8")
        target.chmod(0o600)
        return target


@pytest.fixture(scope="module", params=drivers())
def regions(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Regions]:
    with estate(tmp_path_factory.mktemp("secondary"), request.param) as site:
        yield Regions(site)


def test_1_the_private_endpoint_is_created_before_items_are_protected(regions: Regions) -> None:
    site = regions.site
    door = site.endpoint("door", regions.vault, regions.home)
    site.integrate(door, regions.home, HOME_ZONE, *STORAGE_ZONES)
    site.deployment.inside("web01", "agent", "register", "--credentials", site.deployment.credentials("safe"))


def test_2_3_4_a_secondary_one_is_created_in_the_secondary_region_after_that(regions: Regions) -> None:
    site = regions.site
    with pytest.raises(UndercroftError) as caught:
        site.endpoint("wrong", regions.vault, regions.home, "AzureBackup_Secondary")
    assert caught.value.code == "InvalidPrivateEndpointRegion" and PAIR in caught.value.message
    said = site.deployment.run(
        "endpoint", "create", "far", "-g", GROUP, "--vault", "safe", "--vnet-name", "abroad", "--subnet", "work",
        "--group-id", "AzureBackup_Secondary", "--integrate-dns",
    ).json  # fmt: skip
    assert said["location"] == PAIR
    names = site.names(site.arm.id(GROUP, "Microsoft.Network", "privateEndpoints", "far"))
    assert len(names) == 8
    assert all(name.endswith(f".{PAIR_ZONE}") for name in names)


def test_5_the_target_vm_reaches_it_by_its_names(regions: Regions) -> None:
    site = regions.site
    names = site.names(site.arm.id(GROUP, "Microsoft.Network", "privateEndpoints", "far"))
    with Observer(site.deployment, "dr01") as there:
        for name, address in names.items():
            seen = there.look(name, address)
            assert (seen.rcode, seen.addresses, seen.status) == ("NOERROR", (address,), "200"), name
        name = next(iter(names))
        assert there.look(name.replace(PAIR_ZONE, HOME_ZONE)).rcode == "NXDOMAIN"
    with Observer(site.deployment, "web01") as here:
        seen = here.look(name, names[name])
        assert seen.rcode == "NXDOMAIN" and seen.status != "200", "another network sees neither name nor door"


def test_5_note_twelve_secondary_endpoints_are_the_most(regions: Regions) -> None:
    more = [regions.far(f"far{number}") for number in range(2, 13)]
    with pytest.raises(UndercroftError, match="12 is the limit") as caught:
        regions.far("far13")
    assert caught.value.code == "UserErrorPrivateEndpointLimitReached"
    regions.site.endpoint("door2", regions.vault, regions.home)  # the twelve of the other group are others
    for endpoint in more:
        regions.site.arm.delete(endpoint)


def test_6_a_restore_from_the_secondary_region_says_what_is_missing(regions: Regions, tmp_path: Path) -> None:
    deployment = regions.site.deployment
    home = deployment.inside("web01", "printenv", "UNDERCROFT_AGENT_HOME").out.strip()
    folder = regions.edit(Path(home) / "identity.json", tmp_path / "agent" / "identity.json").parent
    agent = ("env", f"UNDERCROFT_AGENT_HOME={folder}", "python3", "-m", "undercroft.cli", "agent")
    said = deployment.inside("dr01", *agent, "points", expect=1).err
    assert "NotImplemented" in said and "Cross-region restore" in said
    regions.site.deployment.passphrase.write_text("correct horse battery staple\n", "ascii")
    secret = ("--passphrase-file", str(deployment.passphrase))
    said = deployment.inside("dr01", *agent, "backup", str(tmp_path), *secret, expect=1).err
    assert "UserErrorAccessThroughSecondaryEndpoint" in said


def test_6_the_agent_in_the_secondary_region_is_not_confused(regions: Regions, tmp_path: Path) -> None:
    """With the vault's own credentials it looks for the vault's own region, which its network does not see; with edited
    ones it arrives, and is told where to register."""
    deployment = regions.site.deployment
    credentials = deployment.credentials("safe")
    said = deployment.inside("dr01", "agent", "register", "--credentials", credentials, expect=1).err
    assert "NXDOMAIN" in said and "UserErrorPublicNetworkAccessDenied" in said
    edited = regions.edit(credentials, tmp_path / "edited.credentials")
    said = deployment.inside("dr01", "agent", "register", "--credentials", edited, expect=1).err
    assert "UserErrorAccessThroughSecondaryEndpoint" in said
    assert "AzureBackup endpoint, in the vault's own region" in said


def test_an_unapproved_one_carries_nothing(regions: Regions) -> None:
    site = regions.site
    far = site.arm.id(GROUP, "Microsoft.Network", "privateEndpoints", "far")
    name, address = site.named(far, "-prot1.")
    with Observer(site.deployment, "dr01") as there:
        there.hold("idle", name, address)
        site.decide(far, regions.vault, "Rejected")
        end = there.ends("idle")["idle"]
        assert end is not None
        seen = there.look(name, address)
        assert seen.rcode == "NXDOMAIN" and seen.status != "200"
