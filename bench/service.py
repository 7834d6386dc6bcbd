"""A deployment of Undercroft, as a peer through its private endpoint, and the times that only it has.

Management goes through the command line (``manage``), but for the two timed PUTs, which are sent without a new process. A prober
inside the VM asks again and again and tells the moment of the first right answer by the machine's one monotonic clock.
"""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.measure import Measured, cpu_seconds, proportional_memory
from bench.peers import PASSPHRASE, Failed, called, measured, stored_bytes

__all__ = ["Deployment", "Timings", "Undercroft", "timings"]

UNDERCROFT = Path(sys.executable).parent / "undercroft"
GROUP, REGION, NETWORK, SUBNET, VAULT, ENDPOINT, VM = "bench", "westeurope", "net", "work", "vault", "door", "host"
API_VERSION = "2026-01-01"
IDLE_SECONDS = 5.0
SAMPLE_SECONDS = 0.2

# Asks the VM's resolver until the name has an address of the network; prints the moment.
DNS_PROBER = """
import random, socket, struct, sys, time
name = b"".join(bytes([len(label)]) + label.encode() for label in sys.argv[1].split(".")) + b"\\0"
link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
link.settimeout(0.2)
link.connect(("168.63.129.16", 53))
print("asking", flush=True)
until = time.monotonic() + 60
while time.monotonic() < until:
    number = random.randrange(65536)
    link.send(struct.pack(">6H", number, 0x0100, 1, 0, 0, 0) + name + struct.pack(">2H", 1, 1))
    try:
        answer = link.recv(4096)
    except OSError:
        continue
    at = time.monotonic()
    if struct.unpack(">H", answer[:2])[0] == number and answer[6:8] != b"\\0\\0" and answer[-4:-3] == b"\\n":
        print(at)
        sys.exit(0)
    time.sleep(0.001)
sys.exit("no right answer within a minute")
"""

# Connects to the addresses of the subnet in turn until one completes a TLS handshake; prints the moment.
CONNECTION_PROBER = """
import socket, ssl, sys, time
context = ssl.create_default_context(cafile=sys.argv[2])
print("asking", flush=True)
until = time.monotonic() + 60
while time.monotonic() < until:
    for last in range(4, 30):
        try:
            with socket.create_connection((f"10.30.1.{last}", 443), 0.05) as link:
                with context.wrap_socket(link, server_hostname=sys.argv[1]):
                    print(time.monotonic())
                    sys.exit(0)
        except OSError:
            continue
    time.sleep(0.001)
sys.exit("no connection within a minute")
"""


class Deployment:
    """One home, started; ``close`` stops it. The folder is the caller's."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def manage(self, *words: str | Path) -> str:
        """One command of the command line."""
        return called([UNDERCROFT, *words], {"UNDERCROFT_HOME": str(self.home)})

    def start(self) -> float:
        """Seconds from the command to ready."""
        begun = time.monotonic()
        self.manage("up", "--port", "0", "--detach")
        return time.monotonic() - begun

    def close(self) -> None:
        self.manage("down")

    def furnish(self, *, dns: bool) -> None:
        """A group, a network, a VM, a vault without public access, its private endpoint; with names or not yet."""
        self.manage("group", "create", GROUP, "-l", REGION)
        network = ("--address-prefixes", "10.30.0.0/16", "--subnet-name", SUBNET, "--subnet-prefix", "10.30.1.0/24")
        self.manage("vnet", "create", NETWORK, "-g", GROUP, *network)
        self.manage("vm", "create", VM, "-g", GROUP, "--vnet-name", NETWORK, "--subnet", SUBNET)
        self.manage("vault", "create", VAULT, "-g", GROUP, "--public-network-access", "Disable")
        where = ("--vault", VAULT, "--vnet-name", NETWORK, "--subnet", SUBNET)
        self.manage("endpoint", "create", ENDPOINT, "-g", GROUP, *where, *(["--integrate-dns"] if dns else []))

    def within(self) -> list[str | Path]:
        """What goes in front of a command to run it in the VM."""
        return [UNDERCROFT, "vm", "exec", VM, "-g", GROUP, "--home", self.home, "--"]

    def processes(self) -> list[int]:
        """The service's: they name the home on their command line, and are not in a VM (no agent, no prober of ours)."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            ours = any(os.fsencode(self.home) in word for word in words) and any(
                b"undercroft" in word for word in words
            )
            if ours and not {b"agent", b"exec"} & set(words):
                found.append(int(entry.name))
        return found

    def memory(self) -> int:
        return proportional_memory(self.processes())


class Undercroft:
    """The peer: a new deployment for every run; the agent runs in a VM and reaches the vault by the private endpoint only."""

    name = "undercroft"

    def __init__(self) -> None:
        self.service_cpu: list[float] = []
        self.service_memory: list[int] = []

    def version(self) -> str:
        return called([UNDERCROFT, "--version"]).strip() + ", through a private endpoint, TLS, packs as block blobs"

    def prepare(self, place: Path) -> None:
        self._place = place
        self._deployment = Deployment(place / "home")
        self._passphrase = place / "passphrase"
        self._passphrase.touch(0o600)
        self._passphrase.write_text(PASSPHRASE, "ascii")
        self._deployment.start()
        self._deployment.furnish(dns=True)
        credentials = place / "credentials"
        self._deployment.manage("vault", "credentials", VAULT, "-g", GROUP, "--out", credentials)
        self._agent("register", "--credentials", credentials)

    def back_up(self, source: Path) -> Measured:
        return self._measured("backup", source, "--passphrase-file", self._passphrase)

    def stored(self) -> int:
        return stored_bytes(self._place / "home" / "store")

    def restore(self, target: Path) -> Measured:
        point = json.loads(self._agent("points", "--json"))["points"][0]["id"]
        return self._measured("restore", point, "--to", target, "--passphrase-file", self._passphrase)

    def close(self) -> None:
        if (self._place / "home").exists():
            self._deployment.close()

    def _agent(self, *words: str | Path) -> str:
        return called([*self._deployment.within(), UNDERCROFT, "agent", *words])

    def _measured(self, *words: str | Path) -> Measured:
        service = self._deployment.processes()
        before = cpu_seconds(service)
        ended, samples = threading.Event(), [proportional_memory(service)]

        def sample() -> None:
            while not ended.wait(SAMPLE_SECONDS):
                samples.append(proportional_memory(service))

        sampler = threading.Thread(target=sample)
        sampler.start()
        try:
            result = measured(self._place, [UNDERCROFT, "agent", *words], before=self._deployment.within())
        finally:
            ended.set()
            sampler.join()
        self.service_cpu.append(cpu_seconds(service) - before)
        self.service_memory.append(max(samples))
        return result


# --- what only a service has -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds, and bytes of idle memory."""

    second_start: float
    name_answered: float
    connection_accepted: float
    idle_memory: int


class Arm:
    """PUT without a process around it. The token is got before the clock starts."""

    def __init__(self, home: Path) -> None:
        said = json.loads((home / "connection.json").read_text("utf-8"))
        self.ca_bundle: str = said["caBundle"]
        self._base: str = said["resourceManager"].rstrip("/")
        self._context = ssl.create_default_context(cafile=self.ca_bundle)
        self.group = f"/subscriptions/{said['subscriptionId']}/resourceGroups/{GROUP}"
        form = {
            "grant_type": "client_credentials",
            "client_id": said["clientId"],
            "client_secret": said["clientSecret"],
            "scope": f"{self._base}/.default",
        }
        url = f"{self._base}/{said['tenantId']}/oauth2/v2.0/token"
        answer = self._send(urllib.request.Request(url, urllib.parse.urlencode(form).encode("ascii")))
        self.token = f"Bearer {answer['access_token']}"
        self._headers = {"Authorization": self.token, "Content-Type": "application/json"}

    @property
    def port(self) -> int:
        return int(self._base.rpartition(":")[2])

    def call(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode("utf-8")
        url = f"{self._base}{path}?api-version={API_VERSION}"
        return self._send(urllib.request.Request(url, data, self._headers, method=method))

    def _send(self, request: urllib.request.Request) -> Any:
        with urllib.request.urlopen(request, context=self._context, timeout=60) as answer:
            received = answer.read()
        return json.loads(received) if received.strip() else None


@contextmanager
def prober(deployment: Deployment, code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A prober in the VM that has begun to ask."""
    command = [*map(str, deployment.within()), sys.executable, "-c", code, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline().strip() != "asking":
                raise Failed("the prober did not start in the VM")
            time.sleep(0.2)
            yield process
        finally:
            process.terminate()


def moment(process: subprocess.Popen[str]) -> float:
    said, _ = process.communicate(timeout=90)
    if process.returncode:
        raise Failed(f"a prober ended with {process.returncode}")
    return float(said)


def timings(place: Path) -> Timings:
    """One deployment, from its second start to the first connection through a second endpoint."""
    deployment = Deployment(place / "home")
    deployment.start()
    try:
        deployment.furnish(dns=False)
        deployment.close()
        second_start = deployment.start()
        name_answered, host = time_name(deployment)
        connection_accepted = time_connection(deployment, host)
        time.sleep(IDLE_SECONDS)
        idle_memory = deployment.memory()
    finally:
        deployment.close()
    return Timings(second_start, name_answered, connection_accepted, idle_memory)


def time_name(deployment: Deployment) -> tuple[float, str]:
    """Zone-group PUT to the first right answer in the VM; and the host name that was asked for."""
    zones = deployment.manage("dns", "required-zones", "--vault", VAULT, "-g", GROUP).split()
    deployment.manage("dns", "zone-create", *zones, "-g", GROUP)
    deployment.manage("dns", "link-create", *zones, "-g", GROUP, "--vnet-name", NETWORK)
    arm = Arm(deployment.home)
    endpoint = f"{arm.group}/providers/Microsoft.Network/privateEndpoints/{ENDPOINT}"
    names = [entry["fqdn"] for entry in arm.call("GET", endpoint)["properties"]["customDnsConfigs"]]
    host = next(name for name in names if "-id1." in name)
    ids = [f"{arm.group}/providers/Microsoft.Network/privateDnsZones/{zone}" for zone in zones]
    configs = [
        {"name": zone.replace(".", "-"), "properties": {"privateDnsZoneId": id_}}
        for zone, id_ in zip(zones, ids, strict=True)
    ]
    with prober(deployment, DNS_PROBER, host) as process:
        begun = time.monotonic()
        arm.call("PUT", f"{endpoint}/privateDnsZoneGroups/default", {"properties": {"privateDnsZoneConfigs": configs}})
        return moment(process) - begun, host


def time_connection(deployment: Deployment, host: str) -> float:
    """Endpoint PUT to the first TLS handshake in the VM; the endpoint made before is deleted first."""
    deployment.manage("endpoint", "delete", ENDPOINT, "-g", GROUP)
    arm = Arm(deployment.home)
    network = f"{arm.group}/providers/Microsoft.Network/virtualNetworks/{NETWORK}"
    vault = f"{arm.group}/providers/Microsoft.RecoveryServices/vaults/{VAULT}"
    link = {"name": ENDPOINT, "properties": {"privateLinkServiceId": vault, "groupIds": ["AzureBackup"]}}
    properties = {"subnet": {"id": f"{network}/subnets/{SUBNET}"}, "privateLinkServiceConnections": [link]}
    with prober(deployment, CONNECTION_PROBER, host, arm.ca_bundle) as process:
        begun = time.monotonic()
        arm.call(
            "PUT",
            f"{arm.group}/providers/Microsoft.Network/privateEndpoints/{ENDPOINT}",
            {"location": REGION, "properties": properties},
        )
        return moment(process) - begun
