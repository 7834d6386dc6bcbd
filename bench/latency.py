"""How long a name and a management call take while a backup saturates the data plane, beside the same with nothing going on.

Two probers ask one question after the other, with a short pause between: one in the VM asks the resolver for a name of the endpoint, one
on the machine reads the vault over one connection. The load is the agent's own backup, in the same VM, through the endpoint; it
competes with everything for the same cores, as it does in real life on one machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.peers import PASSPHRASE, Failed, called
from bench.service import ENDPOINT, GROUP, UNDERCROFT, VAULT, Arm, Deployment

__all__ = ["Latency", "Percentiles", "measure"]

SECONDS = 8.0
MIB = 1 << 20

DNS_PROBER = """
import json, random, socket, struct, sys, time
name = b"".join(bytes([len(label)]) + label.encode() for label in sys.argv[1].split(".")) + b"\\0"
link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
link.settimeout(5)
link.connect(("168.63.129.16", 53))
took, until = [], time.monotonic() + float(sys.argv[2])
while time.monotonic() < until:
    question = struct.pack(">6H", random.randrange(65536), 0x0100, 1, 0, 0, 0) + name + struct.pack(">2H", 1, 1)
    begun = time.perf_counter()
    link.send(question)
    answer = link.recv(4096)
    took.append(time.perf_counter() - begun)
    assert answer[6:8] != b"\\0\\0"
    time.sleep(0.003)
print(json.dumps(took))
"""

ARM_PROBER = """
import http.client, json, ssl, sys, time
port, ca, path, token, seconds = sys.argv[1:]
link = http.client.HTTPSConnection("localhost", int(port), context=ssl.create_default_context(cafile=ca))
took, until = [], time.monotonic() + float(seconds)
while time.monotonic() < until:
    begun = time.perf_counter()
    link.request("GET", path, headers={"Authorization": token})
    answer = link.getresponse()
    answer.read()
    took.append(time.perf_counter() - begun)
    assert answer.status == 200, answer.status
    time.sleep(0.003)
print(json.dumps(took[1:]))
"""


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Seconds."""

    half: float
    most: float
    """99 of 100 are not longer."""
    count: int

    @classmethod
    def of(cls, took: Sequence[float]) -> Percentiles:
        ordered = sorted(took)
        return cls(ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)], len(ordered))


@dataclass(frozen=True, slots=True)
class Latency:
    names_idle: Percentiles
    names_loaded: Percentiles
    calls_idle: Percentiles
    calls_loaded: Percentiles
    rate: float
    """Bytes per second that the service stored meanwhile."""


def measure(place: Path, mebibytes: int = 4000, seconds: float = SECONDS) -> Latency:
    data = place / "data"
    data.mkdir()
    for number in range(mebibytes // 100):
        (data / f"large{number}").write_bytes(os.urandom(100 * MIB))
    deployment = Deployment(place / "home")
    deployment.start()
    try:
        deployment.furnish(dns=True)
        credentials, passphrase = place / "credentials", place / "passphrase"
        deployment.manage("vault", "credentials", VAULT, "-g", GROUP, "--out", credentials)
        called([*deployment.within(), UNDERCROFT, "agent", "register", "--credentials", credentials])
        passphrase.touch(0o600)
        passphrase.write_text(PASSPHRASE, "ascii")
        names_idle, calls_idle = _probe(deployment, seconds)
        backup = [*deployment.within(), UNDERCROFT, "agent", "backup", data, "--passphrase-file", passphrase]
        store = deployment.home / "store"
        with subprocess.Popen([str(word) for word in backup], stdout=subprocess.DEVNULL) as running:
            try:
                while _stored(store) < 50 * MIB:
                    time.sleep(0.05)
                    if running.poll() is not None:
                        raise Failed("the backup ended before it sent anything")
                begun, before = time.monotonic(), _stored(store)
                names_loaded, calls_loaded = _probe(deployment, seconds)
                rate = (_stored(store) - before) / (time.monotonic() - begun)
                if running.poll() is not None:
                    raise Failed("the backup ended while latencies were measured; give it more data")
            finally:
                running.terminate()
        return Latency(names_idle, names_loaded, calls_idle, calls_loaded, rate)
    finally:
        deployment.close()


def _probe(deployment: Deployment, seconds: float) -> tuple[Percentiles, Percentiles]:
    arm = Arm(deployment.home)
    shown = arm.call("GET", f"{arm.group}/providers/Microsoft.Network/privateEndpoints/{ENDPOINT}")
    name = shown["properties"]["customDnsConfigs"][0]["fqdn"]
    path = f"{arm.group}/providers/Microsoft.RecoveryServices/vaults/{VAULT}?api-version=2026-01-01"
    within = [str(word) for word in deployment.within()]
    commands = (
        [*within, sys.executable, "-c", DNS_PROBER, name, str(seconds)],
        [sys.executable, "-c", ARM_PROBER, str(arm.port), arm.ca_bundle, path, arm.token, str(seconds)],
    )
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    found = []
    for process in running:
        said, _ = process.communicate()
        if process.returncode:
            raise Failed(f"a prober ended with {process.returncode}")
        found.append(Percentiles.of(json.loads(said)))
    return found[0], found[1]


def _stored(store: Path) -> int:
    """What has arrived, whole or not."""
    total = 0
    for path in store.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue  # it became an object while we looked
    return total


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory(prefix="ut-latency-") as folder:
        print(measure(Path(folder), int(sys.argv[1]) if len(sys.argv) > 1 else 4000))
