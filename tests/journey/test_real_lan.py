"""The host driver, whole: a deployment on one host of a LAN, a real agent on another, and what stands in the way named.

The LAN is a veth between two namespaces (``tests.fabric.lan``); the tests share one deployment in the order in which they stand.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from tests.deployment import REGION, Answer, Deployment
from tests.fabric.lan import INTERFACE, MACHINE, PREFIX, SERVICE, Lan, lan

pytestmark = [pytest.mark.rootless, pytest.mark.slow]

SETTINGS = f"""
reconcile_seconds = 2

[host]
interface = "{INTERFACE}"
address = "{SERVICE}"
probe_seconds = 1

[suffixes]
backup = "backup.example.internal"
storage = "storage.example.internal"
partitioned = ""
"""
SUBNET = "192.168.7.96/27"
FIRST = IPv4Address("192.168.7.100")
WITH_FILES = """
import os, sys
from pathlib import Path
from undercroft.fabric.namespace import CLONE_NEWNS, bind_mount, keep_mounts_private, unshare
hosts, resolvers, *command = sys.argv[1:]
unshare(CLONE_NEWNS)
keep_mounts_private()
bind_mount(Path(hosts), Path("/etc/hosts"))
bind_mount(Path(resolvers), Path(os.path.realpath("/etc/resolv.conf")))
os.execvp(command[0], command)
"""


class LanDeployment(Deployment):
    """On the LAN's machine; ``agent`` runs our agent on the other host, with name files of its own."""

    def __init__(self, folder: Path, wire: Lan) -> None:
        super().__init__(folder / "home", "auto")
        self.wire = wire
        self.hosts, self.resolvers = folder / "hosts", folder / "resolv.conf"
        self.home.mkdir()
        (self.home / "undercroft.toml").write_text(SETTINGS, "utf-8")

    def command(self, *words: str) -> list[str]:
        return self.wire.machine.command(*words)

    def agent(self, *words: str | Path, expect: int = 0) -> Answer:
        agent = (sys.executable, "-m", "undercroft.cli", "agent", *words)
        command = self.wire.neighbour.command(sys.executable, "-c", WITH_FILES, self.hosts, self.resolvers, *agent)
        environment = {**self.environment, "UNDERCROFT_AGENT_HOME": str(self.home.parent / "agent")}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=120, cwd=self.home.parent
        )
        assert done.returncode == expect, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}\n{self.logs()}"
        return Answer(done.returncode, done.stdout, done.stderr)

    def names(self, *, hosts: str = "", resolvers: str = "") -> None:
        """The name files of the other host."""
        self.hosts.write_text("127.0.0.1 localhost\n" + hosts, "utf-8")
        self.resolvers.write_text(resolvers, "utf-8")

    def door(self) -> dict[str, Any]:
        """The endpoint, as ARM shows it."""
        found: list[dict[str, Any]] = json.loads(self.run("endpoint", "list", "--json").out)
        properties: dict[str, Any] = next(one for one in found if one["name"] == "door")["properties"]
        return properties


@pytest.fixture(scope="module")
def deployment() -> Iterator[LanDeployment]:
    folder = Path(tempfile.mkdtemp(prefix="lan-"))
    try:
        with lan() as wire:
            made = LanDeployment(folder, wire)
            try:
                yield made
            finally:
                made.stop()
            assert wire.machine.addresses().keys() == {MACHINE}, "a clean end removes what was added"
    finally:
        shutil.rmtree(folder)


def eventually(check: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)


def test_a_wrong_interface_is_explained_before_anything_starts(deployment: LanDeployment) -> None:
    settings = deployment.home / "undercroft.toml"
    settings.write_text(SETTINGS.replace(INTERFACE, "lan7"), "utf-8")
    try:
        said = deployment.run("up", "--port", "0", "--detach", expect=1).err
        assert f"no interface 'lan7'. It has: {INTERFACE} ({PREFIX})" in said and "DriverNotPossible" in said
        probe = deployment.run("fabric", "probe", expect=1).out
        assert "host fails at interface lan7" in probe and f"{INTERFACE}: {PREFIX}" in probe
    finally:
        settings.write_text(SETTINGS, "utf-8")


def test_up_takes_the_interface_of_the_settings(deployment: LanDeployment) -> None:
    said = deployment.run("up", "--port", "0", "--detach").out
    assert "fabric: host" in said
    assert deployment.run("status").out.startswith("running") and deployment.connection["fabric"] == "host"
    probe = deployment.run("fabric", "probe").out
    assert probe.startswith("driver: host\n")
    assert f"{INTERFACE}: {PREFIX}" in probe
    pids = deployment.pids()
    for name in ("node", "dns", "data"):  # an ordinary user's capabilities reach the fabric and nobody else
        rights = Path(f"/proc/{pids[name]}/status").read_text("ascii")
        assert "CapEff:\t0000000000000000" in rights and "CapAmb:\t0000000000000000" in rights, name


def test_what_the_driver_cannot_is_refused_by_name(deployment: LanDeployment) -> None:
    deployment.run("group", "create", "rg", "-l", REGION)
    create = ("vnet", "create", "lan", "-g", "rg", "--subnet-name", "work", "--subnet-prefix")
    refused = deployment.run(*create, "10.20.1.0/24", "--address-prefixes", "10.20.0.0/16", expect=1).err
    assert f"interface is attached to: {PREFIX}" in refused and "AddressPrefixNotOnInterface" in refused
    neighbour = deployment.wire.neighbour
    neighbour.ip(f"addr add {SERVICE}/24 dev {INTERFACE}")
    deployment.run(*create, SUBNET, "--address-prefixes", PREFIX)
    taken = deployment.run("reconcile", expect=1).out
    assert f"failing: rg/lan: address {SERVICE} is refused" in taken
    neighbour.ip(f"addr del {SERVICE}/24 dev {INTERFACE}")
    second = deployment.run("vnet", "create", "two", "-g", "rg", "--address-prefixes", PREFIX, expect=1).err
    assert "virtual network already" in second and "virtualnetworks/lan" in second
    machine = deployment.run("vm", "create", "web", "-g", "rg", "--vnet-name", "lan", "--subnet", "work", expect=1).err
    assert "virtual machines" in machine and "real machines" in machine
    refused = deployment.run("vm", "exec", "web", "--", "true", expect=1).err
    assert "real machines" in refused


def test_an_address_that_a_neighbour_has_degrades_the_endpoint_until_it_is_free(deployment: LanDeployment) -> None:
    neighbour = deployment.wire.neighbour
    mac = neighbour.run("ip", "-o", "link", "show", INTERFACE).split("link/ether ")[1].split()[0]
    neighbour.ip(f"addr add {FIRST}/24 dev {INTERFACE}")
    try:
        deployment.vault("safe")
        deployment.run("endpoint", "create", "door", "-g", "rg", "--vault", "safe", "--vnet-name", "lan",
                       "--subnet", "work", "--integrate-dns")  # fmt: skip
        shown = deployment.door()
        assert shown["health"]["state"] == "Degraded"
        assert [IPv4Address(text.split()[1]) for text in shown["health"]["conflicts"]] == [FIRST]
        assert mac in shown["health"]["conflicts"][0]
        assert len(shown["customDnsConfigs"]) == 7 and str(FIRST) not in str(shown["customDnsConfigs"])
        refused = deployment.run("reconcile", expect=1).out
        assert f"failing: rg/lan: address {FIRST} is refused: {mac} has it already" in refused
        assert f"address {FIRST} is refused" in deployment.run("status").out
    finally:
        neighbour.ip(f"addr del {FIRST}/24 dev {INTERFACE}")
    deployment.run("reconcile")
    shown = deployment.door()
    assert shown["health"]["state"] != "Degraded" and "conflicts" not in shown["health"]
    assert len(shown["customDnsConfigs"]) == 8


def test_a_real_agent_registers_backs_up_and_restores(deployment: LanDeployment) -> None:
    """By the deployment's name server; then, with every name in its hosts file, without any."""
    deployment.names(resolvers=f"nameserver {SERVICE}\n")
    folder = deployment.home.parent
    (folder / "passphrase").write_text("correct horse battery staple\n", "ascii")
    (folder / "passphrase").chmod(0o600)
    files = deployment.files("files", 10)
    secret = ("--passphrase-file", folder / "passphrase")
    deployment.agent("register", "--credentials", deployment.credentials("safe"), "--machine-name", "real01")
    deployment.agent("backup", files, *secret)
    [point] = deployment.agent("points", "--json").json["points"]
    deployment.agent("restore", point["id"], "--to", folder / "restored", *secret)
    [restored] = (folder / "restored").rglob("big")
    assert restored.read_bytes() == (files / "big").read_bytes()

    records = {one["fqdn"]: one["ipAddresses"][0] for one in deployment.door()["customDnsConfigs"]}
    assert len(records) == 11, "grown by the vault's accounts"
    assert {IPv4Address(address) for address in records.values()} <= deployment.wire.machine.addresses().keys()
    exported = deployment.run("dns", "export", "--endpoint", "door", "-g", "rg", "--format", "hosts").out
    assert all(f"{address} {name}" in exported for name, address in records.items())
    deployment.names(hosts=f"{exported}\n{SERVICE} login.undercroft.internal management.undercroft.internal\n")
    (files / "more").write_bytes(os.urandom(5000))
    deployment.agent("backup", files, *secret)
    assert len(deployment.agent("points", "--json").json["points"]) == 2
    deployment.names()
    assert "not" in deployment.agent("backup", files, *secret, expect=1).err, "neither: it cannot be found"


def test_a_removed_address_is_back_within_the_period(deployment: LanDeployment) -> None:
    machine = deployment.wire.machine
    before = machine.addresses().keys()
    machine.ip(f"addr del {FIRST}/32 dev {INTERFACE}")
    with deployment.wire.listening() as ear:
        eventually(lambda: FIRST in machine.addresses())
        eventually(lambda: FIRST in [one.announces for one in ear.heard()])
    assert machine.addresses().keys() == before
    eventually(lambda: "mended" in deployment.run("status").out)
    assert any(one["what"] == f"address {FIRST}/32" for one in deployment.run("status", "--json").json["mended"])


def test_after_kill_9_of_everything_up_takes_over_and_down_cleans(deployment: LanDeployment) -> None:
    machine = deployment.wire.machine
    before = machine.addresses().keys()
    kill_all(deployment)
    assert machine.addresses().keys() == before
    deployment.run("up", "--port", "0", "--detach")
    deployment.names(resolvers=f"nameserver {SERVICE}\n")
    assert len(deployment.agent("points", "--json").json["points"]) == 2
    assert machine.addresses().keys() == before
    kill_all(deployment)
    assert machine.addresses().keys() == before
    assert "12 addresses, left on an interface" in deployment.run("down").out
    assert machine.addresses().keys() == {MACHINE}


def kill_all(deployment: LanDeployment) -> None:
    pids = deployment.pids()
    for name in ("supervisor", "node", "data", "dns", "fabric"):
        os.kill(pids[name], signal.SIGKILL)
    eventually(lambda: deployment.run("status", expect=(0, 3)).status == 3)
