"""*Deny public network access to the vault*, and its note: what each network may do with a vault, by which door.

Three networks look at one vault: ``spoke`` has its private endpoint, ``lonely`` has none, ``stranger`` has an endpoint of another
vault. One deployment per driver; the tests follow each other.
"""

from __future__ import annotations

import json
import re
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deployment import GROUP, Answer, Deployment, NearDeployment, drivers
from undercroft.cli.management import connect
from undercroft.dataplane.paths import CHANGED_EVERY
from undercroft.errors import UndercroftError

pytestmark = [pytest.mark.rootless, pytest.mark.slow, pytest.mark.xdist_group("public-access")]

ZONE = "privatelink.we.backup.windowsazure.com"
DENIED = "UserErrorPublicNetworkAccessDenied"


@pytest.fixture(scope="module", params=drivers())
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    deployment = NearDeployment(tmp_path_factory.mktemp("doors") / "home", request.param)
    try:
        deployment.start()
        files = deployment.furnished(files=3)
        (files / "big").write_bytes(b"small after all")
        deployment.network("lonely", "web02", prefix="10.30.0.0/16", subnet="10.30.1.0/24")
        deployment.vault("other", deny=False)
        deployment.endpoint("elsewhere", "other", "lonely")
        deployment.backup(files)
        yield deployment
    finally:
        deployment.stop()


def members(site: Deployment, endpoint: str) -> dict[str, str]:
    """Name to address, of an endpoint."""
    shown = site.run("endpoint", "show", endpoint, "-g", GROUP, "--json").json
    return {entry["fqdn"]: entry["ipAddresses"][0] for entry in shown["properties"]["customDnsConfigs"]}


def allow(site: Deployment, access: str) -> None:
    site.run("vault", "update", "safe", "-g", GROUP, "--public-network-access", access)


ASK = textwrap.dedent("""
    # Each service of the vault by one door, as an admitted caller: the agent's own token, the SAS of a backup that it opens.
    import json, http.client, socket, sys
    from undercroft.agent.identity import AgentHome
    from undercroft.agent.registration import open_session
    from undercroft.agent.resolve import SystemResolver, trust_only
    from undercroft.clock import SystemClock

    wanted = json.load(sys.stdin)
    identity = AgentHome.find().load()
    context = trust_only(identity.ca_bundle)

    def ask(name, address, method, path, headers):
        link = http.client.HTTPSConnection(name, context=context, timeout=8)
        link._create_connection = lambda *_: socket.create_connection((address, 443), 8)
        try:
            link.request(method, path, headers=headers)
            answer = link.getresponse()
            body = answer.read().decode()
            for code in ("UserErrorPublicNetworkAccessDenied", "MisdirectedRequest", "AuthorizationFailed", "NotImplemented"):
                if code in body:
                    return [answer.status, code]
            return [answer.status, ""]
        except OSError as error:
            return [0, type(error).__name__]

    sas = wanted.pop("sas")
    token = wanted.pop("token")
    if token is None:
        session = open_session(identity, SystemResolver(), SystemClock())
        opened = session.call("prot1", "POST", "/v1/backups", dict,
                              body={"item": {"name": "/asked", "kind": "files"}, "formatVersion": 0})
        grants = {"blob": opened["grant"], "queue": opened["logGrant"]}
        sas = {kind: [grant["account"], grant["container"], grant["sas"]] for kind, grant in grants.items()}
        token = session._tokens.bearer()
        session.close()
    found = {}
    for label, (service, name, address) in wanted.items():
        path, headers = "/v1/container", {"Authorization": "Bearer " + token}
        if service != "backup":
            path, headers = "/" + sas[service][1] + "/packs/" + "0" * 32 + "?" + sas[service][2], {"x-ms-version": "2020-12-06"}
        found[label] = ask(name, address, "GET", path, headers)
    print(json.dumps({"found": found, "token": token, "sas": sas}))
""")

Known = dict[str, Any]


def ask(site: Deployment, vm: str, known: Known, doors: dict[str, tuple[str, str, str]]) -> dict[str, list[Any]]:
    """Label to (status, code) of one call per door: (service, name, address). ``known`` keeps token and SAS of web01's agent."""
    question = json.dumps({"token": known.get("token"), "sas": known.get("sas"), **doors})
    path = site.home.parent / "question"
    path.write_text(question, "ascii")
    home = site.inside("web01", "sh", "-c", "echo $UNDERCROFT_AGENT_HOME").out.strip()
    script = f'UNDERCROFT_AGENT_HOME={home} python3 -c "$1" < {path}'
    answer = site.inside(vm, "sh", "-c", script, "ask", ASK).json
    known |= {"token": answer["token"], "sas": answer["sas"]}
    found: dict[str, list[Any]] = answer["found"]
    return found


@pytest.fixture(scope="module")
def known(site: Deployment) -> Known:
    """What one deployment's tests found out: the module has one per driver."""
    return {}


@pytest.fixture(scope="module")
def doors(site: Deployment) -> dict[str, dict[str, tuple[str, str, str]]]:
    """By kind of door: label to (service, name, address)."""
    mine, others = members(site, "door"), members(site, "elsewhere")
    prot1 = next(name for name in mine if "-prot1." in name)
    blob = next(name for name in mine if "prot01.blob." in name)
    queue = next(name for name in mine if ".queue." in name)
    wrong = next(name for name in others if "-prot1." in name)
    names = {"backup": prot1, "blob": blob, "queue": queue}
    public = {"backup": "203.0.113.10", "blob": "203.0.113.11", "queue": "203.0.113.12"}
    return {
        "private": {kind: (kind, name, mine[name]) for kind, name in names.items()},
        "public": {
            kind: (kind, "pod01-prot1.we.backup.windowsazure.com" if kind == "backup" else name, public[kind])
            for kind, name in names.items()
        },
        "wrong name": {kind: (kind, name, others[wrong]) for kind, name in names.items()},
        "wrong vault": {"backup": ("backup", wrong, others[wrong])},
    }


def labelled(doors: dict[str, dict[str, tuple[str, str, str]]], *kinds: str) -> dict[str, tuple[str, str, str]]:
    return {f"{kind} {service}": door for kind in kinds for service, door in doors[kind].items()}


REACHED = {"backup": [200, ""], "blob": [403, ""], "queue": [501, "NotImplemented"]}
"""What an admitted call is answered: the grant of a backup may create and not read; the queue service knows no operation yet."""


@pytest.mark.parametrize("access", ["Enable", "Disable"])
def test_the_note_once_you_deny_access_data_moves_only_by_the_private_doors_of_this_vault(
    site: Deployment, known: Known, doors: dict[str, dict[str, tuple[str, str, str]]], access: str
) -> None:
    if not known:
        ask(site, "web01", known, {})  # token and SAS, while every door is open
    allow(site, access)
    inside = ask(site, "web01", known, labelled(doors, "private", "public"))
    outside = ask(site, "web02", known, labelled(doors, "public", "wrong name", "wrong vault"))
    for kind, (status, code) in REACHED.items():
        assert inside[f"private {kind}"][0] == status, "the private door is open whatever the setting"
        for public in (inside[f"public {kind}"], outside[f"public {kind}"]):
            if access == "Disable":
                assert public == [403, DENIED], (kind, public)
            else:
                assert public[0] == status and public[1] in ("", code), (kind, public)
        assert outside[f"wrong name {kind}"] == [421, "MisdirectedRequest"], "a name at another one's address"
    assert outside["wrong vault backup"] == [403, "AuthorizationFailed"], "an endpoint serves its own vault"
    assert site.run("vault", "show", "safe", "-g", GROUP).json["properties"]["publicNetworkAccess"] == f"{access}d", (
        "management stays open"
    )


def test_a_network_without_an_endpoint_resolves_the_public_names(
    site: Deployment, doors: dict[str, dict[str, tuple[str, str, str]]]
) -> None:
    code = "import socket, sys; print([socket.gethostbyname(name) for name in sys.argv[1:]])"
    names, addresses = zip(*[door[1:] for door in doors["public"].values()], strict=True)
    assert site.inside("web02", "python3", "-c", code, *names).out.strip() == str(list(addresses))


def test_a_host_of_such_a_network_is_served_or_refused_by_the_vaults_setting(site: Deployment) -> None:
    allow(site, "Enable")
    site.inside("web02", "agent", "register", "--credentials", site.credentials("safe"))
    site.inside("web02", "agent", "backup", site.home.parent / "files", "--passphrase-file", site.passphrase)
    allow(site, "Disable")
    said = site.inside(
        "web02", "agent", "backup", site.home.parent / "files", "--passphrase-file", site.passphrase, expect=1
    ).err
    assert DENIED in said and "The public name was used because the private one could not be" in said


def test_a_host_of_a_site_without_an_endpoint_uses_the_public_door(site: Deployment) -> None:
    """An on-premises network that is attached to nothing has the public side only."""
    site.run("site", "create", "office", "-g", GROUP, "--address-prefixes", "192.168.10.0/24")
    site.run("site", "host-create", "pc01", "-g", GROUP, "--site", "office", "--address", "192.168.10.20")
    allow(site, "Enable")
    said = site.inside("pc01", "agent", "register", "--credentials", site.credentials("safe")).out
    assert "public path" in said
    assert containers(site)[0]["pc01"]["backup"]["path"] == "public"
    allow(site, "Disable")
    assert DENIED in site.inside("pc01", "agent", "status", expect=1).out
    site.run("vault", "show", "safe", "-g", GROUP)


def containers(site: Deployment) -> tuple[dict[str, dict[str, Any]], str]:
    """By machine and leg, and what people see."""
    shown = json.loads(site.run("vault", "containers", "safe", "-g", GROUP, "--json").out)
    found = {
        one["properties"]["friendlyName"]: {path["leg"]: path for path in one["properties"]["extendedInfo"]["paths"]}
        for one in shown
    }
    return found, site.run("vault", "containers", "safe", "-g", GROUP).out


def wrong(table: str) -> set[str]:
    """The legs of ``web01`` that are said to be on the wrong path. Its agent uses no queues; what tests asked there is no matter."""
    found = re.search(r"\(!\) web01: The last calls of (.+?) came by the public side", table)
    return set(re.findall(r"\w+", found[1])) if found else set()


def noted_backup(site: Deployment, files: Path, *more: str) -> Answer:
    """A backup whose paths are noted: one that a call took within the last second is not noted again."""
    time.sleep(CHANGED_EVERY + 0.1)
    return site.backup(files, *more)


def test_a_lost_zone_link_is_hidden_by_allow_and_shown_as_the_wrong_path(site: Deployment) -> None:
    """Pains A7, AllowHidesBrokenPrivatePath: jobs stay green by the public side until the day of Deny."""
    files = site.home.parent / "files"
    allow(site, "Enable")
    noted_backup(site, files)
    found, table = containers(site)
    assert [found["web01"][leg]["path"] for leg in ("backup", "blob")] == ["private", "private"]
    assert found["web01"]["backup"]["endpoint"].endswith("/door")
    assert not {"backup", "blob"} & wrong(table)
    arm = connect(site.home)
    (link,) = arm.list(arm.id(GROUP, "Microsoft.Network", "privateDnsZones", ZONE), "virtualNetworkLinks")
    arm.delete(link["id"])
    report = noted_backup(site, files, "--json").json
    assert report["path"] in ("public", "private and public")
    found, table = containers(site)
    backup = found["web01"]["backup"]
    assert backup["path"] == "public" and backup["fallbacks"] == 1
    assert "privatelink" in backup["lastFallbackReason"] and "NXDOMAIN" in backup["lastFallbackReason"]
    assert found["web01"]["blob"]["path"] == "private"
    assert "backup" in wrong(table) and "'door'" in table and "public access is disabled" in table
    status = site.inside("web01", "agent", "status").out
    assert "backup: public" in status and "because" in status and "fell back 2 times" in status
    job = json.loads(site.run("vault", "jobs", "safe", "-g", GROUP, "--json").out)[0]
    bag = job["properties"]["extendedInfo"]["propertyBag"]
    assert bag["Path of backup"] == "public" and "NXDOMAIN" in bag["Fallback of backup"]
    refused = site.backup(files, "--no-public-fallback", expect=1).err
    assert "publicFallback is off" in refused and "privatelink zone is linked" in refused
    allow(site, "Disable")
    assert DENIED in site.backup(files, expect=1).err
    site.run("dns", "link-create", ZONE, "-g", GROUP, "--vnet-name", "spoke")
    noted_backup(site, files)
    found, table = containers(site)
    assert found["web01"]["backup"]["path"] == "private" and not {"backup", "blob"} & wrong(table)


@pytest.mark.parametrize("value", ["", "SecuredByPerimeter", "enabled please"])
def test_values_of_public_network_access_that_mean_nothing_here_are_refused(site: Deployment, value: str) -> None:
    """Pains A8: an empty setting is refused, with the code that people search for."""
    arm = connect(site.home)
    vault = arm.id(GROUP, "Microsoft.RecoveryServices", "vaults", "safe")
    with pytest.raises(UndercroftError) as caught:
        arm.patch(vault, {"properties": {"publicNetworkAccess": value}})
    assert caught.value.code == "InvalidRestApiParameter"
    assert "publicNetworkAccess" in caught.value.message
