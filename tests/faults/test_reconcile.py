"""Damage by hand, with the machine's own tools, to a running deployment: packets and names come back, and what was mended is said.

One deployment for each driver; every test leaves it whole. Two networks, so that one can be seen to go on while the other is damaged.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest

from tests.deployment import GROUP, REGION, NearDeployment, drivers
from tests.fabric.machine import Outside
from tests.faults.held import held_backup
from undercroft.control.client import Request, ask
from undercroft.fabric.client import FabricClient
from undercroft.fabric.specification import NetworkSpecification

pytestmark = [pytest.mark.rootless, pytest.mark.slow]

ENDPOINT = IPv4Address("10.20.1.5")
VM = IPv4Address("10.20.1.4")
PERIOD = 3
WHOLE = """
# The whole way in: names by UDP and by TCP from 168.63.129.16, and the handshake with what they lead to.
import socket, ssl, struct, sys
name, ca = sys.argv[1:]
question = b"\\x12\\x34\\x01\\x00\\x00\\x01" + bytes(6)
question += b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\\0\\0\\1\\0\\1"
try:
    with socket.create_connection(("168.63.129.16", 53), 3) as stream:
        stream.sendall(struct.pack("!H", len(question)) + question)
        by_tcp = socket.inet_ntoa(stream.recv(4096)[-4:])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram:
        datagram.settimeout(2)
        datagram.sendto(question, ("168.63.129.16", 53))
        by_udp = socket.inet_ntoa(datagram.recv(4096)[-4:])
    context = ssl.create_default_context(cafile=ca)
    with context.wrap_socket(socket.create_connection((by_udp, 443), 3), server_hostname=name):
        sys.exit(by_tcp != by_udp)
except OSError as error:
    sys.exit(f"not whole: {error}")
"""


class Seen(Outside):
    """The fabric process of a deployment, and its namespaces."""

    def __init__(self, pid: int, driver: str) -> None:
        self._pid = pid
        self.driver = driver

    @property
    def pid(self) -> int:
        return self._pid


class Damaged(NearDeployment):
    """A deployment whose networks are entered from outside."""

    names: dict[str, str]
    """Of each vault, the first name of its endpoint."""

    def ask(self, verb: str) -> Any:
        """What the commands ``status`` and ``reconcile`` print with --json, sooner."""
        return ask(self.home / "run" / "control.sock", Request(verb))

    def whole(self, vm: str = "web01", vault: str = "safe") -> bool:
        """Whether an agent in that VM would get through to its vault."""
        words = (sys.executable, "-S", "-c", WHOLE, self.names[vault], self.connection["caBundle"])
        return self.inside(vm, *words, expect=(0, 1, 3)).status == 0

    def mended(self) -> list[str]:
        return [one["what"] for one in self.ask("status")["mended"]]

    def fabric(self) -> int:
        pid: int = self.ask("status")["processes"].get("fabric", 0)
        return pid

    def outside(self) -> Seen:
        return Seen(self.fabric(), self.driver)


@pytest.fixture(scope="module", params=drivers())
def deployment(request: pytest.FixtureRequest) -> Iterator[Damaged]:
    folder = Path(tempfile.mkdtemp(prefix="mend-"))
    made = Damaged(folder / "home", request.param)
    made.home.mkdir()
    (made.home / "undercroft.toml").write_text(f"reconcile_seconds = {PERIOD}\n", "ascii")
    try:
        made.start()
        furnish(made)
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder)


def furnish(made: Damaged) -> None:
    made.run("group", "create", GROUP, "-l", REGION)
    made.names = {}
    for network, vm, vault, prefix in (("spoke", "web01", "safe", "10.20"), ("other", "web02", "cellar", "10.30")):
        made.network(network, vm, f"{prefix}.0.0/16", f"{prefix}.1.0/24")
        made.vault(vault)
        made.endpoint(f"door-{vault}", vault, network, "--integrate-dns")
    made.run("nsg", "create", "usual", "-g", GROUP)
    made.run("nsg", "attach", "usual", "-g", GROUP, "--vnet-name", "spoke", "--subnet", "work", "--endpoints")
    for one in json.loads(made.run("endpoint", "list", "--json").out):
        configurations = one["properties"]["customDnsConfigs"]
        made.names[one["name"].removeprefix("door-")] = configurations[0]["fqdn"]


def eventually(check: Callable[[], bool], seconds: float = 25) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


FLUSH = (
    "import ctypes; nft = ctypes.CDLL('libnftables.so.1'); nft.nft_ctx_new.restype = ctypes.c_void_p; "
    "nft.nft_run_cmd_from_buffer(ctypes.c_void_p(nft.nft_ctx_new(0)), b'flush ruleset')"
)
IN_THE_NETWORK = {
    f"ip addr del {ENDPOINT}/32 dev lo": f"address {ENDPOINT}/32",
    "ip addr del 168.63.129.16/32 dev lo": "address 168.63.129.16/32",
    "ip addr add 10.20.1.77/32 dev lo": "stray address 10.20.1.77/32",
    "ip link del vm1000": "link of VM web01",
    "ip route flush table main": f"route {VM}/32",
    "ip link set lo down": "loopback link",
    f'{sys.executable} -S -c "{FLUSH}"': "security rules",
    "ss -K -t state listening sport = :443": "listener on *:443",
    "ss -K -t state listening sport = :53": "name server's listener on 168.63.129.16:53",
}
"""What is done by hand, and what is said to be mended."""


def test_what_is_destroyed_is_back_at_once_on_reconcile(deployment: Damaged) -> None:
    outside = deployment.outside()
    network, vm = outside.namespace_with(ENDPOINT), outside.namespace_with(VM)
    outside.inside(network, "sh", "-c", "; ".join(f"{command} >/dev/null" for command in IN_THE_NETWORK))
    answer = deployment.ask("reconcile")
    assert answer["failing"] == []
    assert deployment.whole(), answer
    words = deployment.mended()  # the timer may have been first: the history has it either way
    assert set(IN_THE_NETWORK.values()) <= set(words), words
    outside.inside(vm, "sh", "-c", "ip addr flush dev eth0; ip link set eth0 down")
    deployment.ask("reconcile")
    assert deployment.whole()
    assert {"link in VM web01", f"address {VM}/24 in VM web01"} <= set(deployment.mended())


def test_it_is_back_within_the_period_without_anybody_asking(deployment: Damaged) -> None:
    outside = deployment.outside()
    network = outside.namespace_with(ENDPOINT)
    outside.inside(network, "ip", "addr", "del", f"{ENDPOINT}/32", "dev", "lo")
    outside.inside(network, "ss", "-K", "-t", "state", "listening", "sport", "=", ":443")
    eventually(
        deployment.whole
    )  # the limit is many periods, and less than the default, which would be the setting ignored
    assert "network mended" in (deployment.home / "logs" / "node.log").read_text("utf-8")


def test_nothing_is_reported_when_nothing_was_done(deployment: Damaged) -> None:
    deployment.ask("reconcile")
    answer = deployment.run("reconcile").out
    assert answer.startswith("2 networks looked at: 0 differences mended, 0 failing")
    assert "last reconcile: " in deployment.run("status").out
    last = deployment.ask("status")["lastReconcile"]
    assert (last["networks"], last["mended"], last["failing"]) == (2, [], [])


SQUATTER = """
import socket, sys, time
mine = socket.socket()
mine.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
print("waiting", flush=True)
while True:
    try:
        mine.bind(("0.0.0.0", 443))
        break
    except OSError:
        time.sleep(0.001)
mine.listen()
print("mine", flush=True)
sys.stdin.read()
"""


def test_a_listener_that_something_else_took_is_failing_until_it_is_free(deployment: Damaged) -> None:
    """And the other network is none the worse."""
    outside = deployment.outside()
    network = outside.namespace_with(ENDPOINT)
    command = outside.command(network, sys.executable, "-c", SQUATTER)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            assert process.stdout.readline() == "waiting\n"
            outside.inside(network, "ss", "-K", "-t", "state", "listening", "sport", "=", ":443")
            assert process.stdout.readline() == "mine\n"
            said = deployment.run("reconcile", expect=1).out
            assert "failing: rg/spoke: " in said and "Something else listens there" in said
            assert "failing: rg/spoke: " in deployment.run("status").out
            assert deployment.whole("web02", "cellar")
        finally:
            process.stdin.close()
            process.wait(10)
    assert deployment.ask("reconcile")["failing"] == []
    assert deployment.whole()


def network_of(deployment: Damaged) -> str:
    """The id of ``spoke``."""
    shown = json.loads(deployment.run("vnet", "list", "--json").out)
    found: str = next(one["id"] for one in shown if one["name"] == "spoke")
    return found.lower()


async def removed(deployment: Damaged, network: str) -> None:
    client = await FabricClient.connect(deployment.home / "run" / "fabric.sock")
    try:
        await client.remove(network)
    finally:
        await client.close()


def test_a_network_removed_under_a_running_backup(deployment: Damaged) -> None:
    """Its agent dies with its VM; the other network's backup goes on; the network comes back and the backup is repeated. However
    fast the machine, neither backup is over when the network goes: both wait in the middle, with a pack sent and another begun."""
    deployment.passphrase.write_text("correct horse battery staple\n", "ascii")
    deployment.passphrase.chmod(0o600)
    files = deployment.files("files", 10)
    for number in range(4):
        (files / f"large-{number}").write_bytes(os.urandom(12 << 20))
    for vm, vault in (("web01", "safe"), ("web02", "cellar")):
        deployment.inside(vm, "agent", "register", "--credentials", deployment.credentials(vault))
    network = network_of(deployment)
    middle = deployment.home.parent / "in the middle"
    middle.touch()
    agents = {vm: backing_up(deployment, vm, files, middle) for vm in ("web01", "web02")}
    try:
        eventually(lambda: len(packs_by_container(deployment)) == 2, 90)
        assert {vm: process.poll() for vm, process in agents.items()} == {"web01": None, "web02": None}
        asyncio.run(removed(deployment, network))
        assert agents["web01"].wait(30) != 0
        sent = packs_by_container(deployment)
        middle.unlink()
        assert agents["web02"].wait(90) == 0, "nobody else noticed"
    finally:
        middle.unlink(missing_ok=True)
        for process in agents.values():
            process.kill()
            process.wait()
    assert sum(packs_by_container(deployment).values()) > sum(sent.values()), "and had data to send afterwards"
    eventually(deployment.whole)
    assert "the whole network" in deployment.mended()
    deployment.inside("web01", "agent", "backup", files, "--passphrase-file", deployment.passphrase)
    assert len(deployment.inside("web01", "agent", "points", "--json").json["points"]) == 1


def backing_up(deployment: Damaged, vm: str, files: Path, middle: Path) -> subprocess.Popen[bytes]:
    words = ("vm", "exec", vm, "--", *held_backup(files, deployment.passphrase, middle, "large-3"))
    return subprocess.Popen(
        [sys.executable, "-m", "undercroft.cli", *words],
        env=deployment.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def packs_by_container(deployment: Damaged) -> dict[str, int]:
    """Bytes in whole packs, of each container that has any: one container for each host."""
    found: dict[str, int] = {}
    for path in deployment.home.glob("store/*/blobs/*/*/packs/*"):
        container = str(path.parent)
        found[container] = found.get(container, 0) + path.stat().st_size
    return found


def test_a_network_that_was_replaced_by_another_of_its_name_is_listened_in_again(deployment: Damaged) -> None:
    """Removed and built again by somebody else between two looks: its sockets are in a namespace that is no more."""
    network = network_of(deployment)

    async def replaced() -> None:
        client = await FabricClient.connect(deployment.home / "run" / "fabric.sock")
        try:
            empty = NetworkSpecification(network, (IPv4Network("10.20.0.0/16"),), (IPv4Network("10.20.1.0/24"),))
            removing = asyncio.create_task(client.remove(network))
            await client.apply(empty)
            await removing
        finally:
            await client.close()

    asyncio.run(replaced())
    eventually(deployment.whole)
    assert deployment.whole("web02", "cellar")


def test_the_fabric_killed(deployment: Damaged) -> None:
    before = deployment.fabric()
    os.kill(before, signal.SIGKILL)
    eventually(lambda: deployment.fabric() not in (0, before))
    eventually(lambda: deployment.whole() and deployment.whole("web02", "cellar"))
    mended = {(one["network"].rsplit("/", 1)[-1], one["what"]) for one in deployment.ask("status")["mended"]}
    assert {("spoke", "the whole network"), ("other", "the whole network")} <= mended
