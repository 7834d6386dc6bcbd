"""Every line of bad input, as a user meets it: a clear error that says what to do, and nothing acknowledged is lost."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from tests.deployment import Deployment, drivers
from undercroft.cli.management import connect
from undercroft.clock import ManualClock, SystemClock
from undercroft.config import Home
from undercroft.errors import NotAuthorized, NotFound, UndercroftError
from undercroft.identity.principals import Principal
from undercroft.identity.tokens import Tokens

pytestmark = [pytest.mark.rootless, pytest.mark.slow]


@pytest.fixture(scope="module", params=drivers())
def furnished(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Deployment, Path]]:
    """One deployment for the tests of this file that only read or add; its files are backed up once."""
    folder = tmp_path_factory.mktemp("bad-input")
    deployment = Deployment(folder / "home", request.param)
    try:
        deployment.start()
        files = deployment.furnished()
        deployment.backup(files)
        yield deployment, files
    finally:
        deployment.stop()


def test_unknown_region(furnished: tuple[Deployment, Path]) -> None:
    said = furnished[0].run("group", "create", "nowhere", "-l", "westeurop", expect=1).err
    assert "'westeurop' is not an Azure region" in said
    assert "westeurope" in said
    assert (
        "the region is called 'westeurope'" in furnished[0].run("group", "create", "nowhere", "-l", "we", expect=1).err
    )


def test_overlapping_subnet(furnished: tuple[Deployment, Path]) -> None:
    said = furnished[0].run(
        "vnet", "create", "bad", "-g", "rg", "--address-prefixes", "10.7.0.0/16", "--subnet-name", "s",
        "--subnet-prefix", "10.8.0.0/24", expect=1).err  # fmt: skip
    assert "10.8.0.0/24" in said
    assert "10.7.0.0/16" in said


def test_overlapping_subnets_of_one_network(furnished: tuple[Deployment, Path]) -> None:
    arm = connect(furnished[0].home)
    subnet = arm.id("rg", "Microsoft.Network", "virtualNetworks", "spoke", "subnets", "work2")
    with pytest.raises(UndercroftError, match=r"10\.20\.1\.128/25") as caught:
        arm.put(subnet, {"properties": {"addressPrefix": "10.20.1.128/25"}})
    assert caught.value.code == "NetcfgSubnetRangesOverlap"
    assert "10.20.1.0/24" in caught.value.message


def test_a_static_address(furnished: tuple[Deployment, Path]) -> None:
    deployment = furnished[0]
    arm = connect(deployment.home)
    vault = arm.id("rg", "Microsoft.RecoveryServices", "vaults", "safe")
    subnet = f"{arm.id('rg', 'Microsoft.Network', 'virtualNetworks', 'spoke')}/subnets/work"
    link = {"privateLinkServiceId": str(vault), "groupIds": ["AzureBackup"]}
    chosen = {"groupId": "AzureBackup", "memberName": "backup-id1", "privateIPAddress": "10.20.1.77"}
    body = {
        "location": "westeurope",
        "properties": {
            "subnet": {"id": subnet},
            "privateLinkServiceConnections": [{"name": "c", "properties": link}],
            "ipConfigurations": [{"name": "ip", "properties": chosen}],
        },
    }
    with pytest.raises(UndercroftError, match=r"(?i)static"):
        arm.put(arm.id("rg", "Microsoft.Network", "privateEndpoints", "static"), body)
    assert "static" not in deployment.run("endpoint", "list").out


def test_full_subnet(furnished: tuple[Deployment, Path]) -> None:
    deployment = furnished[0]
    deployment.network("narrow", prefix="10.9.0.0/16", subnet="10.9.0.0/28")
    deployment.endpoint("first", "safe", "narrow")
    said = deployment.endpoint("second", "safe", "narrow", expect=1).err
    assert "SubnetIsFull" in said
    assert "10.9.0.0/28" in said
    deployment.run("endpoint", "delete", "first", "-g", "rg")


def test_wrong_group_id(furnished: tuple[Deployment, Path]) -> None:
    said = furnished[0].endpoint("pe", "safe", "spoke", "--group-id", "backup", expect=1).err
    assert "AzureBackup" in said
    assert "AzureBackup_secondary" in said
    said = furnished[0].endpoint("pe", "safe", "spoke", "--group-id", "AzureSiteRecovery", expect=1).err
    assert "Site Recovery" in said


def test_wrong_secret_and_tampered_token(furnished: tuple[Deployment, Path], tmp_path: Path) -> None:
    deployment = furnished[0]
    login = tmp_path / "login"
    login.write_text(json.dumps({"clientId": deployment.connection["clientId"], "clientSecret": "wrong"}))
    said = deployment.run("endpoint", "delete", "door", "-g", "rg", "--login", login, expect=1).err
    assert "AADSTS7000215" in said
    connection = deployment.connection
    request = urllib.request.Request(
        f"{connection['resourceManager']}/subscriptions?api-version=2022-12-01",
        headers={"Authorization": "Bearer a.b.c"},
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, context=ssl.create_default_context(cafile=connection["caBundle"]))
    with caught.value as refused:
        assert refused.code == 401
        assert json.load(refused)["error"]["code"].startswith(("InvalidAuthenticationToken", "AuthenticationFailed"))


def test_a_subnet_that_is_full_when_the_vault_grows(furnished: tuple[Deployment, Path], tmp_path: Path) -> None:
    """Eight names fit, the communication account's two do not: the endpoint is Degraded with the count, the agent is told, no
    other endpoint is disturbed, and freed addresses mend it."""
    deployment, files = furnished
    deployment.network("tight", "web09", prefix="10.11.0.0/16", subnet="10.11.0.0/28")
    deployment.run("vm", "create", "filler1", "-g", "rg", "--vnet-name", "tight", "--subnet", "work")
    deployment.run("vm", "create", "filler2", "-g", "rg", "--vnet-name", "tight", "--subnet", "work")
    deployment.vault("growing")
    deployment.endpoint("tight-door", "growing", "tight", "--integrate-dns")
    deployment.inside("web09", "agent", "register", "--credentials", deployment.credentials("growing"))
    assert "Degraded: 2 more" in deployment.run("endpoint", "show", "tight-door", "-g", "rg").out
    health = deployment.run("endpoint", "show", "tight-door", "-g", "rg", "--json").json["properties"]["health"]
    assert (health["state"], health["missingAddresses"]) == ("Degraded", 2)
    backup = ("agent", "backup", files / "big", "--passphrase-file", deployment.passphrase)
    said = deployment.inside("web09", *backup, expect=1).err
    assert "UserErrorEndpointSubnetFull" in said
    assert "3 more addresses" in said, "the protection account's is missing as well"
    listed = deployment.run("endpoint", "list").out
    assert next(line for line in listed.splitlines() if line.startswith("door ")).split()[-2:] == ["Healthy", "0"]
    deployment.run("vm", "delete", "filler1", "-g", "rg")
    deployment.run("vm", "delete", "filler2", "-g", "rg")
    assert "Degraded: 1 more" in deployment.run("endpoint", "show", "tight-door", "-g", "rg").out


def test_an_expired_token(furnished: tuple[Deployment, Path]) -> None:
    """Signed with the deployment's own key, as its login endpoint would have an hour and a half ago."""
    deployment = furnished[0]
    connection = deployment.connection
    earlier = ManualClock(SystemClock().now() - timedelta(minutes=90))
    owner = Principal(
        object_id="0", client_id=connection["clientId"], kind="application", display_name="owner", secret_hash=None,
        public_key=None, audience=None, vault_key=None, not_after=None, created="",
    )  # fmt: skip
    tokens = Tokens(Home(deployment.home), connection["tenantId"], earlier)
    token = tokens.issue(owner, connection["resourceManager"], connection["loginEndpoint"]).token
    request = urllib.request.Request(
        f"{connection['resourceManager']}/subscriptions?api-version=2022-12-01",
        headers={"Authorization": f"Bearer {token}"},
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, context=ssl.create_default_context(cafile=connection["caBundle"]))
    with caught.value as refused:
        assert refused.code == 401
        error = json.load(refused)["error"]
    assert error["code"] == "ExpiredAuthenticationToken"
    assert "expired at" in error["message"]


def test_owners_are_kept_or_said_to_be_unknown(furnished: tuple[Deployment, Path], tmp_path: Path) -> None:
    """netns keeps foreign owners. Rootless sees them as the kernel's 65534 for everybody unmapped: it records unknown, says so,
    and gives the files to who restores them."""
    deployment = furnished[0]
    if os.geteuid() == 0:
        folder = deployment.files("owned", 3)
        os.chown(folder / "file-0001", 12345, 23456)
    else:
        folder = Path("/usr/share/base-files")  # root's, in every Debian
    deployment.backup(folder)
    point = next(one for one in deployment.points() if one["item"]["name"] == str(folder))["id"]
    target = deployment.home.parent / "owned-again"
    said = deployment.inside(
        "web01", "agent", "restore", point, "--to", target, "--passphrase-file", deployment.passphrase).said  # fmt: skip
    owners = {(path.lstat().st_uid, path.lstat().st_gid) for path in target.rglob("*")}
    if deployment.driver == "netns":
        assert (12345, 23456) in owners
        assert "unknown" not in said
    else:
        assert "unknown" in said
        assert owners == {(os.geteuid(), os.getegid())}


def test_role_assignments_can_be_read_and_taken_away(furnished: tuple[Deployment, Path], tmp_path: Path) -> None:
    deployment = furnished[0]
    arm = connect(deployment.home)
    group = arm.id("rg")
    made = deployment.run("principal", "create", "reader", "--role", "Reader", "--scope", str(group)).json
    assert made["clientSecret"] not in deployment.run("principal", "list").out, "shown once"
    login = tmp_path / "login"
    login.write_text(json.dumps(made))
    as_reader = connect(deployment.home, login)
    assert as_reader.get(group)["name"] == "rg"
    with pytest.raises(NotAuthorized, match="does not have authorization"):
        as_reader.put(arm.id("rg", "Microsoft.RecoveryServices", "vaults", "theirs"), {"location": "westeurope"})
    assignments = arm.list(group, "providers/Microsoft.Authorization/roleAssignments")
    assignment = next(one for one in assignments if one["properties"]["principalId"] == made["objectId"])
    assert arm.get(assignment["id"])["properties"]["scope"].lower() == str(group).lower()
    arm.delete(assignment["id"])
    with pytest.raises(NotFound):
        arm.get(assignment["id"])
    with pytest.raises(NotAuthorized):
        as_reader.get(group)


def test_port_in_use(furnished: tuple[Deployment, Path], tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        other = Deployment(tmp_path / "home", furnished[0].driver)
        said = other.run("up", "--port", str(port), "--detach", "--driver", other.driver, expect=1).said
    assert str(port) in said
    assert "--port" in said
    other.run("status", expect=3)


def test_a_second_up_for_the_same_home(furnished: tuple[Deployment, Path]) -> None:
    said = furnished[0].run("up", "--port", "0", "--detach", expect=1).said
    assert "already runs" in said


def test_unreadable_files_are_backed_up_around(furnished: tuple[Deployment, Path], tmp_path: Path) -> None:
    deployment = furnished[0]
    folder = deployment.files("partly-readable", 5)
    secret = folder / "file-0003"
    secret.chmod(0)
    if os.geteuid() == 0:
        os.chown(secret, 12345, 12345)
    # In netns root reads every file, so this agent is a root without that right.
    less = ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if deployment.driver == "netns" else ()
    backup = ("agent", "backup", folder, "--passphrase-file", deployment.passphrase)
    answer = deployment.inside("web01", *less, sys.executable, "-m", "undercroft.cli", *backup, expect=3)
    assert "file-0003" in answer.said
    point = next(point for point in deployment.points() if point["item"]["name"].endswith("partly-readable"))
    restored = deployment.restore(point["id"], "restored-partly")
    names = {path.name for path in restored.rglob("file-*")}
    assert names == {"file-0000", "file-0001", "file-0002", "file-0004"}


def test_wrong_passphrase(furnished: tuple[Deployment, Path], tmp_path: Path) -> None:
    deployment, files = furnished
    wrong = tmp_path / "wrong"
    wrong.write_text("not the passphrase\n")
    count = len(deployment.points())
    said = deployment.inside("web01", "agent", "backup", files, "--passphrase-file", wrong, expect=1).err
    assert "passphrase" in said.lower()
    assert len(deployment.points()) == count
    point = deployment.points()[0]["id"]
    said = deployment.inside(
        "web01", "agent", "restore", point, "--to", tmp_path / "r", "--passphrase-file", wrong, expect=1).err  # fmt: skip
    assert "passphrase" in said.lower()


def test_credentials_that_are_not(furnished: tuple[Deployment, Path], tmp_path: Path) -> None:
    deployment = furnished[0]
    broken = tmp_path / "broken.credentials"
    broken.write_text("{")
    assert (
        "broken.credentials"
        in deployment.inside("web01", "agent", "register", "--credentials", broken, expect=(1, 2)).err
    )
    said = deployment.inside("web01", "agent", "register", "--credentials", tmp_path / "none", expect=(1, 2)).err
    assert "none" in said


def test_superseded_credentials(furnished: tuple[Deployment, Path]) -> None:
    deployment = furnished[0]
    old = deployment.credentials("safe").rename(deployment.home.parent / "old.credentials")
    deployment.credentials("safe")
    said = deployment.inside("web01", "agent", "register", "--credentials", old, expect=1).err
    assert "newest" in said or "newer" in said or "Superseded" in said


def test_damaged_pack_is_named_and_the_rest_restored(deployment: Deployment) -> None:
    files = deployment.furnished(files=10)
    for number in range(3):
        (files / f"large-{number}").write_bytes(os.urandom(40 << 20))
    deployment.backup(files)
    packs = [path for path in (deployment.home / "store").rglob("*") if path.is_file() and path.parent.name == "packs"]
    victim = max(packs, key=lambda path: path.stat().st_size)
    victim.chmod(0o600)
    with victim.open("r+b") as file:
        file.seek(victim.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    point = deployment.points()[0]["id"]
    target = deployment.home.parent / "restored"
    said = deployment.inside(
        "web01", "agent", "restore", point, "--to", target, "--passphrase-file", deployment.passphrase, expect=3).said  # fmt: skip
    assert victim.name in said
    whole = wrong = 0
    for path in files.iterdir():
        found = next(iter(target.rglob(path.name)), None)
        if found is not None and found.read_bytes() == path.read_bytes():
            whole += 1
        else:
            assert path.name in said, f"{path.name} is damaged or missing and was not named"
            wrong += 1
    assert wrong >= 1
    assert whole >= 10
    assert deployment.points()[0]["id"] == point, "the point is still there"


def test_no_right_to_make_namespaces(tmp_path: Path) -> None:
    """In a user namespace that may have no child namespaces: the driver says so, names the setting, and does not pretend."""
    code = (
        "import os, sys, ctypes\n"
        "uid = os.getuid()\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "assert libc.unshare(0x10000000) == 0\n"
        "open('/proc/self/setgroups','w').write('deny')\n"
        "open('/proc/self/uid_map','w').write(f'{uid} {uid} 1')\n"
        "open('/proc/sys/user/max_user_namespaces','w').write('0')\n"
        "open('/proc/sys/user/max_net_namespaces','w').write('0')\n"
        "from undercroft.cli.main import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code, *words],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    refused = run("up", "--home", str(tmp_path / "home"), "--port", "0", "--detach", "--driver", "rootless")
    assert refused.returncode == 1, refused.stdout + refused.stderr
    assert "Traceback" not in refused.stderr
    assert "namespace" in refused.stdout + refused.stderr
    probe = run("fabric", "probe")
    assert probe.returncode == 0, probe.stderr
    assert "loopback" in probe.stdout
    assert "max_" in probe.stdout
