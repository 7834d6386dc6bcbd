"""``python -m bench.soak``: create and delete networks, VMs, endpoints and zone groups again and again, and show that nothing stays.

One cycle makes a virtual network with a VM and its private endpoint, links the zones and has the records written, leaves a connection
to a door open and one broken off in its handshake, and deletes everything. What is counted before and after: descriptors, threads and
memory of every process of the deployment, the network namespaces that they hold, interfaces and mounts of this machine, rows of every
table, files of the deployment. It ends after ``--cycles`` or ``--minutes``, whatever comes first; status 1 when something grew.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from bench.__main__ import publish
from bench.measure import proportional_memory, tree
from bench.peers import Failed, called
from bench.table import machine

__all__ = ["Count", "Soak", "leaks", "main", "render"]

UNDERCROFT = (sys.executable, "-m", "undercroft.cli")
GROUP, REGION, VAULT = "soak", "westeurope", "safe"
NETWORK, COMPUTE, VAULTS = "Microsoft.Network", "Microsoft.Compute", "Microsoft.RecoveryServices"
API_VERSION = "2026-01-01"
WARM_UP = 5
SETTLE_SECONDS = 40.0
STEP_SECONDS = 60.0
MEMORY_PER_CYCLE = 16 << 10
MEMORY_ALLOWED = 8 << 20
"""In the second half of the cycles a process may grow this much by itself (caches fill, the allocator keeps), and this much per cycle,
before it is a leak."""
HISTORY = frozenset({"operations", "activity_log", "record_changes", "tasks"})
"""Tables that keep what happened for a time; their rows are shown, and bounded by their own tests."""

EXPLAINED = """One cycle makes a network with a VM, an endpoint, zone links and records, and deletes them; in every 25th, connections to a
door are left open. Counted are descriptors, threads and memory (PSS) of each process, namespaces, interfaces, mounts, files, and rows
of every table. Shown is what is not as it was, and memory; `record_changes` is a history that is cut from time to time."""

LINGER = """
# Left behind in the VM: a connection that says nothing, one that breaks off within TLS, and one that goes on asking for names.
import socket, sys, time
sockets = []
for text in (b"", b"\\x16\\x03\\x01\\x02\\x00\\x01"):
    link = socket.create_connection((sys.argv[1], 443), 5)
    link.sendall(text)
    sockets.append(link)
print("open", flush=True)
time.sleep(600)
"""


@dataclass(frozen=True, slots=True)
class Count:
    """What there is of one thing."""

    name: str
    value: int
    kind: str = "number"
    """``number`` may not grow at all, ``bytes`` only within what is allowed, ``history`` is only shown."""


@dataclass(slots=True)
class Api:
    """ARM of one deployment over one kept connection."""

    connection: dict[str, str]
    token: str = ""
    _link: http.client.HTTPSConnection | None = field(default=None)

    def id(self, *parts: str) -> str:
        base = f"/subscriptions/{self.connection['subscriptionId']}/resourceGroups/{GROUP}"
        return f"{base}/providers/{'/'.join(parts)}" if parts else base

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        if not self.token:
            self._sign_in()
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        target = f"{path}?api-version={API_VERSION}".replace(" ", "%20")
        status, received = self._send(method, target, json.dumps(body) if body is not None else None, headers)
        if status == 401:
            self._sign_in()
            return self.call(method, path, body)
        return status, json.loads(received) if received.strip() else None

    def put(self, path: str, body: Any) -> Any:
        """Put it, and wait until it is there; polled without the pauses that are polite."""
        status, answer = self.call("PUT", path, body)
        until = time.monotonic() + STEP_SECONDS
        while status < 400:
            state = (answer or {}).get("properties", {}).get("provisioningState", "Succeeded")
            if state == "Succeeded":
                return answer
            if state == "Failed" or time.monotonic() > until:
                break
            time.sleep(0.02)
            status, answer = self.call("GET", path)
        raise Failed(f"PUT {path}: {status} {answer}")

    def delete(self, path: str) -> None:
        status, answer = self.call("DELETE", path)
        until = time.monotonic() + STEP_SECONDS
        while status < 400:
            if status == 204 or self.call("GET", path)[0] == 404:
                return
            if time.monotonic() > until:
                break
            time.sleep(0.02)
        raise Failed(f"DELETE {path}: {status} {answer}")

    def close(self) -> None:
        if self._link is not None:
            self._link.close()

    def _sign_in(self) -> None:
        known = self.connection
        form = f"grant_type=client_credentials&client_id={known['clientId']}&client_secret={known['clientSecret']}"
        form += f"&scope={known['resourceManager'].rstrip('/')}/.default"
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        status, received = self._send("POST", f"/{known['tenantId']}/oauth2/v2.0/token", form, headers)
        if status != 200:
            raise Failed(f"no token: {status}")
        self.token = json.loads(received)["access_token"]

    def _send(self, method: str, target: str, body: str | None, headers: dict[str, str]) -> tuple[int, bytes]:
        for attempt in (1, 2):
            link = self._link or self._connect()
            try:
                link.request(method, target, body, headers)
                answer = link.getresponse()
                return answer.status, answer.read()
            except (OSError, http.client.HTTPException):
                link.close()
                self._link = None
                if attempt == 2:
                    raise
        raise AssertionError("the loop returns or raises")

    def _connect(self) -> http.client.HTTPSConnection:
        host, _, port = self.connection["resourceManager"].removeprefix("https://").strip("/").rpartition(":")
        context = ssl.create_default_context(cafile=self.connection["caBundle"])
        self._link = http.client.HTTPSConnection(host, int(port), context=context, timeout=STEP_SECONDS)
        return self._link


class Soak:
    """One deployment that is soaked; ``close`` stops it. The folder is the caller's."""

    def __init__(self, home: Path, driver: str) -> None:
        self.home = home
        self.driver = driver
        self.api = Api({})
        self._lingering: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        self._manage("up", "--port", "0", "--detach", "--driver", self.driver)
        self.api = Api(json.loads((self.home / "connection.json").read_text("utf-8")))
        self._manage("group", "create", GROUP, "-l", REGION)
        self._manage("vault", "create", VAULT, "-g", GROUP, "--public-network-access", "Disable")
        self.vault = self.api.id(VAULTS, "vaults", VAULT)
        kinds = ("we.backup.windowsazure.com", "blob.core.windows.net", "queue.core.windows.net")
        self.zones = [self.api.id(NETWORK, "privateDnsZones", f"privatelink.{kind}") for kind in kinds]
        for zone in self.zones:
            self.api.put(zone, {"location": "global", "properties": {}})

    def close(self) -> None:
        for process in self._lingering:
            process.kill()
            process.wait()
        self.api.close()
        self._manage("down")

    def cycle(self, number: int, *, linger: bool) -> None:
        """Everything of one network, made and deleted."""
        api, name = self.api, f"n{number}"
        network = api.id(NETWORK, "virtualNetworks", name)
        subnets = [{"name": "work", "properties": {"addressPrefix": "10.40.1.0/24"}}]
        space = {"addressSpace": {"addressPrefixes": ["10.40.0.0/16"]}, "subnets": subnets}
        api.put(network, {"location": REGION, "properties": space})
        machine = api.id(COMPUTE, "virtualMachines", name)
        subnet = {"id": f"{network}/subnets/work"}
        address = {"primary": True, "ipConfigurations": [{"name": "one", "properties": {"subnet": subnet}}]}
        profile = {
            "networkApiVersion": "2020-11-01",
            "networkInterfaceConfigurations": [{"name": f"{name}-nic", "properties": address}],
        }
        api.put(machine, {"location": REGION, "properties": {"networkProfile": profile}})
        links = [f"{zone}/virtualNetworkLinks/{name}" for zone in self.zones]
        for link in links:
            properties = {"virtualNetwork": {"id": network}, "registrationEnabled": False}
            api.put(link, {"location": "global", "properties": properties})
        endpoint = api.id(NETWORK, "privateEndpoints", name)
        connection = {"name": name, "properties": {"privateLinkServiceId": self.vault, "groupIds": ["AzureBackup"]}}
        wanted = {"subnet": subnet, "privateLinkServiceConnections": [connection]}
        made = api.put(endpoint, {"location": REGION, "properties": wanted})
        group = f"{endpoint}/privateDnsZoneGroups/default"
        configurations = [
            {"name": f"zone{index}", "properties": {"privateDnsZoneId": zone}} for index, zone in enumerate(self.zones)
        ]
        api.put(group, {"properties": {"privateDnsZoneConfigs": configurations}})
        if linger:
            door = made["properties"]["customDnsConfigs"][0]["ipAddresses"][0]
            self._linger(name, door)
        api.delete(group)
        api.delete(endpoint)
        for link in links:
            api.delete(link)
        api.delete(machine)
        api.delete(network)

    def _linger(self, vm: str, address: str) -> None:
        """A program of the VM with connections to a door; it is still there when everything is deleted under it."""
        command: list[str | Path] = [
            *UNDERCROFT,
            "vm",
            "exec",
            vm,
            "--home",
            self.home,
            "--",
            sys.executable,
            "-c",
            LINGER,
            address,
        ]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self._lingering.append(process)
        assert process.stdout is not None
        if process.stdout.readline() != b"open\n":
            raise Failed(f"nothing answers at {address} in {vm}")
        process.stdout.close()

    def counts(self) -> tuple[Count, ...]:
        roots = json.loads(self._manage("status", "--json"))["processes"]
        found: list[Count] = []
        for role, pid in sorted(roots.items()):
            found += _process(role, pid)
        everybody = sorted({pid for root in roots.values() for pid in tree(root)})
        found.append(Count("processes", len(everybody)))
        found.append(Count("network namespaces", len(_namespaces(everybody))))
        found.append(Count("interfaces of this machine", len(socket.if_nameindex())))
        mounts = Path(f"/proc/{roots['fabric']}/mountinfo").read_text("utf-8").splitlines()
        found.append(Count("mounts of the fabric", len(mounts)))
        files = [path for folder in ("vms", "run") for path in (self.home / folder).rglob("*")]
        found.append(Count("files of VMs and sockets", len(files)))
        return (*found, *self._rows())

    def settled(self, before: Sequence[Count] | None = None) -> tuple[Count, ...]:
        """The counts once what is torn down in the background is gone: nothing is above ``before`` (or, without it, nothing changes
        any more), or time is up."""
        for process in self._lingering:
            process.wait(STEP_SECONDS)
        self._lingering.clear()
        until = time.monotonic() + SETTLE_SECONDS
        last: tuple[Count, ...] = ()
        while True:
            now = self.counts()
            still = (
                not leaks(before, now, 10**9)
                if before is not None
                else not (leaks(last, now, 10**9) or leaks(now, last, 10**9))
            )
            if still or time.monotonic() > until:
                return now
            last = now
            time.sleep(0.5)

    def _rows(self) -> list[Count]:
        database = sqlite3.connect(f"file:{self.home / 'state' / 'state.db'}?mode=ro", uri=True, timeout=30)
        try:
            names = [
                row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
            ]
            return [
                Count(
                    f"rows of {name}",
                    int(database.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0]),
                    "history" if name in HISTORY else "number",
                )
                for name in names
            ]
        finally:
            database.close()

    def _manage(self, *words: str) -> str:
        return called([*UNDERCROFT, *words], {"UNDERCROFT_HOME": str(self.home)})


def _process(role: str, pid: int) -> list[Count]:
    descriptors = len(os.listdir(f"/proc/{pid}/fd"))
    threads = len(os.listdir(f"/proc/{pid}/task"))
    return [
        Count(f"descriptors of {role}", descriptors),
        Count(f"threads of {role}", threads),
        Count(f"memory of {role}", proportional_memory([pid]), "bytes"),
    ]


def _namespaces(pids: Sequence[int]) -> set[int]:
    """Those that the processes are in or hold a descriptor of."""
    found = set()
    for pid in pids:
        for folder in (f"/proc/{pid}/fd", f"/proc/{pid}/ns"):
            for name in os.listdir(folder):
                try:
                    if os.readlink(f"{folder}/{name}").startswith("net:["):
                        found.add(os.stat(f"{folder}/{name}").st_ino)
                except OSError:
                    continue  # closed while we looked
    return found


def leaks(
    before: Sequence[Count], after: Sequence[Count], cycles: int, halfway: Sequence[Count] | None = None
) -> list[str]:
    """What grew and may not have, in words. Memory is compared with what it was ``halfway``."""
    known = {count.name: count.value for count in before}
    known |= {count.name: count.value for count in halfway or () if count.kind == "bytes"}
    found = []
    for count in after:
        grown = count.value - known.get(count.name, 0)
        allowed = 0 if count.kind == "number" else MEMORY_ALLOWED + cycles // 2 * MEMORY_PER_CYCLE
        # A worker's pool starts a thread, and a library opens a file, the first time that they are needed.
        if count.name.startswith(("threads", "descriptors")):
            allowed = 4
        if count.kind != "history" and grown > allowed:
            found.append(f"{count.name}: {known.get(count.name, 0):,} -> {count.value:,}")
    return found


def render(
    driver: str,
    cycles: int,
    seconds: float,
    before: Sequence[Count],
    after: Sequence[Count],
    halfway: Sequence[Count] | None = None,
) -> str:
    """A table of what is not as it was, and of memory."""
    known = {count.name: count.value for count in before}
    half = {count.name: count.value for count in halfway or before}
    lines = [f"{driver}: {cycles} cycles in {seconds:.0f} s, {1000 * seconds / max(cycles, 1):.0f} ms each", ""]
    lines += ["| what | before | halfway | after | more |", "|---|---:|---:|---:|---:|"]
    for count in after:
        start = known.get(count.name, 0)
        if count.kind != "bytes" and start == count.value:
            continue
        scale, unit = (1 << 20, " MiB") if count.kind == "bytes" else (1, "")
        values = (start, half.get(count.name, 0), count.value, count.value - start)
        lines.append(f"| {count.name} | {' | '.join(f'{value / scale:,.0f}{unit}' for value in values)} |")
    same = sum(known.get(count.name) == count.value for count in after)
    return "\n".join([*lines, "", f"{same} of {len(after)} counts are what they were."])


def soak(home: Path, driver: str, cycles: int, minutes: float, linger_every: int = 25) -> tuple[str, list[str]]:
    """The table, and what leaked."""
    subject = Soak(home, driver)
    try:
        subject.start()
        for number in range(WARM_UP):
            subject.cycle(number, linger=number == 0)
        before = subject.settled()
        begun, done, halfway = time.monotonic(), 0, before
        while done < cycles and time.monotonic() - begun < minutes * 60:
            done += 1
            subject.cycle(WARM_UP + done, linger=done % linger_every == 0)
            if done == cycles // 2:
                halfway = subject.counts()
        seconds = time.monotonic() - begun
        after = subject.settled(before)
        return render(driver, done, seconds, before, after, halfway), leaks(before, after, done, halfway)
    finally:
        subject.close()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/soak", description="Create and delete again and again; nothing may stay."
    )
    parser.add_argument("--cycles", type=int, default=1000, help="per driver (default 1000)")
    parser.add_argument("--minutes", type=float, default=45.0, help="per driver, at most (default 45)")
    parser.add_argument("--drivers", default="netns,rootless" if os.geteuid() == 0 else "rootless")
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="also write the tables there, as a part of the benchmark"
    )
    chosen = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupted)  # so that everything is stopped
    status, described, tables = 0, machine(), []
    try:
        for driver in chosen.drivers.split(","):
            with tempfile.TemporaryDirectory(prefix="soak-") as folder:
                table, found = soak(Path(folder) / "home", driver, chosen.cycles, chosen.minutes)
            print(table, *(f"LEAK {line}" for line in found), "", sep="\n", flush=True)
            status = 1 if found else status
            tables.append("\n".join([table, *(f"\nLeft: {line}" for line in found)]))
        if chosen.write is not None:
            publish("soak", section(described, tables), chosen.write)
    except Failed as failure:
        print(f"soak: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("soak: interrupted; everything is stopped", file=sys.stderr)
        return 130
    return status


def section(described: Sequence[str], tables: Sequence[str]) -> str:
    """The part of the benchmark that says it."""
    when = time.strftime("%d %b %Y", time.gmtime())
    lines = [f"## Soak\n\nMeasured {when} by `scripts/soak`, on\n", *(f"- {line}" for line in described), "", EXPLAINED]
    return "\n".join(lines) + "\n\n" + "\n\n".join(tables) + "\n"


def _interrupted(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
