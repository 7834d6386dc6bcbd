"""The steps, in the article's order. Each prints its heading, the commands, and the proof."""

from __future__ import annotations

import ipaddress
import json
import re
import secrets
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demo import leftovers, tree
from demo.shell import Ran, Shell

__all__ = ["Journey"]

GROUP = "backup-rg"
REGION = "westeurope"
RANGE = ipaddress.ip_network("10.10.0.0/16")


@dataclass
class Figures:
    """What the closing table shows."""

    files: int = 0
    source: int = 0
    backups: list[dict[str, Any]] = field(default_factory=list)
    restored: list[tuple[str, int, float]] = field(default_factory=list)
    compared: tree.Comparison | None = None


class Journey:
    """One run in ``work``, a folder of its own that the caller removes. ``driver`` is auto, netns or rootless."""

    def __init__(self, work: Path, source: Path | None, driver: str, *, as_root: bool) -> None:
        self.home = work / "home"
        self.shell = Shell(self.home)
        self.figures = Figures()
        self._work = work
        self._files = work / "files"
        self._source = source
        self._up = ["up", "--port", "0", "--detach", *(["--driver", driver] if driver != "auto" else [])]
        self._as_root = as_root
        self._passphrase = work / "passphrase"
        self._fabric = ""
        self._host = ""
        self._zones: list[str] = []

    def run(self) -> None:
        self._prepare()
        with self.shell.step("Start the service"):
            self._start()
        with self.shell.step("Create a Recovery Services vault"):
            self._create()
            self._taint()
        with self.shell.step("Deny public network access to the vault"):
            self._deny()
        with self.shell.step("Create private endpoints for Azure Backup"):
            self._endpoint()
        with self.shell.step("Approve private endpoints"):
            self._approve()
        with self.shell.step("Manage DNS records · Check VM connectivity"):
            self._names()
        with self.shell.step("Use private endpoints for backup · Configure backup"):
            self._register()
        with self.shell.step("Backup and restore through the private endpoint"):
            self._back_up()
            self._restore("restored")
        with self.shell.step("The state database is lost, and rebuilt from the store"):
            self._rebuild()
        with self.shell.step("Deleting private endpoints"):
            self._remove()
        with self.shell.step("Tear everything down"):
            self._tear_down()

    # --- steps -------------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        self.shell.say("Copying files to back up …")
        self.figures.files, self.figures.source = tree.build(self._files, self._source, as_root=self._as_root)
        self._passphrase.touch(0o600)
        self._passphrase.write_text(secrets.token_urlsafe(24) + "\n", "ascii")
        self.shell.say(f"{self.figures.files:,} files, {_mb(self.figures.source)}, in {self._files}")

    def _start(self) -> None:
        self.shell.run(*self._up)
        connection = json.loads((self.home / "connection.json").read_text("utf-8"))
        self._fabric = connection["fabric"]
        self.shell.run("status")
        self.shell.proof(f"it runs, and its networks are made by '{self._fabric}'", True)

    def _create(self) -> None:
        run = self.shell.run
        run("group", "create", GROUP, "-l", REGION, show=False)
        for network in ("spoke", "lonely", "third"):
            run("vnet", "create", network, "-g", GROUP, "--address-prefixes", str(RANGE),
                "--subnet-name", "work", "--subnet-prefix", "10.10.1.0/24", show=False)  # fmt: skip
        for vm, network in (("web01", "spoke"), ("web02", "lonely"), ("web03", "third")):
            run("vm", "create", vm, "-g", GROUP, "--vnet-name", network, "--subnet", "work", show=False)
        run("vm", "list")
        vault = json.loads(run("vault", "create", "safe", "-g", GROUP, show=False).out)
        self.shell.proof("three networks with the same address range, a VM in each, and a new vault",
                         vault["properties"]["provisioningState"] == "Succeeded")  # fmt: skip

    def _taint(self) -> None:
        self.shell.say("A throw-away vault: registered publicly first, so it may never have an endpoint.")
        run = self.shell.run
        run("vault", "create", "used", "-g", GROUP, show=False)
        credentials = self._work / "used.credentials"
        run("vault", "credentials", "used", "-g", GROUP, "--out", credentials)
        run("agent", "register", "--credentials", credentials, inside="web02")
        refused = self._endpoint_create("too-late", "used", "lonely", expect=(1, 2))
        self.shell.proof("its first endpoint is refused: a used vault is tainted", "UsedVault" in refused.said)

    def _deny(self) -> None:
        self.shell.run("vault", "update", "safe", "-g", GROUP, "--public-network-access", "Disable", show=False)
        credentials = self._work / "safe.credentials"
        self.shell.run("vault", "credentials", "safe", "-g", GROUP, "--out", credentials)
        refused = self.shell.run("agent", "register", "--credentials", credentials, inside="web01", expect=1)
        self.shell.proof("registration through the public name is refused by the network rule",
                         "UserErrorPublicNetworkAccessDenied" in refused.said)  # fmt: skip

    def _endpoint(self) -> None:
        run = self.shell.run
        endpoint = json.loads(self._endpoint_create("door", "safe", "spoke").out)
        status = endpoint["properties"]["privateLinkServiceConnections"][0]["properties"][
            "privateLinkServiceConnectionState"]["status"]  # fmt: skip
        self.shell.proof("the refused call left no taint: the endpoint is there", status == "Approved")
        self._zones = run("dns", "required-zones", "--vault", "safe", "-g", GROUP).out.split()
        run("dns", "zone-create", *self._zones, "-g", GROUP, show=False)
        run("dns", "link-create", *self._zones, "-g", GROUP, "--vnet-name", "spoke", show=False)
        run("dns", "zone-group-create", *self._zones, "-g", GROUP, "--endpoint-name", "door", show=False)
        records = run("dns", "record-list", self._zones[0], "-g", GROUP)
        shown = run("endpoint", "show", "door", "-g", GROUP)
        names = re.findall(r"(\S+-ab-pod01-(\w+)\.\S+)", shown.out)
        self._host = next(name for name, service in names if service == "id1")
        self.shell.proof(f"{len(names)} members have an address each, and an A record in the zone",
                         len(names) == 8 and all(f"ab-pod01-{service}" in records.out for _, service in names))  # fmt: skip

    def _approve(self) -> None:
        run = self.shell.run
        self.shell.proof("the owner's endpoint was approved automatically",
                         "connection Approved" in run("endpoint", "show", "door", "-g", GROUP, show=False).out)  # fmt: skip
        login = self._work / "networker.login"
        connection = json.loads((self.home / "connection.json").read_text("utf-8"))
        scope = f"/subscriptions/{connection['subscriptionId']}/resourceGroups/{GROUP}"
        run("principal", "create", "networker", "--role", "Network Contributor", "--scope", scope, "--out", login)
        endpoint = json.loads(self._endpoint_create("guest", "safe", "third", login=login).out)
        state = endpoint["properties"]["privateLinkServiceConnections"][0]["properties"]
        self.shell.proof("another principal's endpoint is Pending",
                         state["privateLinkServiceConnectionState"]["status"] == "Pending")  # fmt: skip
        run("connection", "approve", "guest", "--vault", "safe", "-g", GROUP, "--description", "ours", show=False)
        shown = json.loads(run("endpoint", "show", "guest", "-g", GROUP, "--json", show=False).out)
        member = next(entry for entry in shown["properties"]["customDnsConfigs"] if "-prot1." in entry["fqdn"])
        said = self._ask_at(member["ipAddresses"][0], member["fqdn"], Path(connection["caBundle"]))
        self.shell.proof("approved: the vault answers at that address, with its own certificate", "200" in said.out)
        run("endpoint", "delete", "guest", "-g", GROUP, show=False)

    def _names(self) -> None:
        shown = self.shell.run("endpoint", "show", "door", "-g", GROUP, show=False).out
        address = next(line.split()[0] for line in shown.splitlines() if self._host in line)
        with_endpoint = self._look_up("web01")
        self.shell.proof(f"in the endpoint's network it is {address}", address in with_endpoint.out)
        without = self._look_up("web02")
        self.shell.proof("in the other network, with the same range, it is not",
                         address not in without.out and "NXDOMAIN" in without.said)  # fmt: skip
        refused = self.shell.run("agent", "register", "--credentials", self._work / "safe.credentials",
                                 inside="web02", expect=1)  # fmt: skip
        self.shell.proof("and an agent there is refused",
                         "UserErrorPublicNetworkAccessDenied" in refused.said)  # fmt: skip

    def _register(self) -> None:
        credentials = self._work / "safe.credentials"
        self.shell.run("agent", "register", "--credentials", credentials, inside="web01")
        shown = self.shell.run("endpoint", "show", "door", "-g", GROUP)
        self.shell.proof("the vault has a communication account now: two more names on the endpoint",
                         "ecs01.blob." in shown.out and "ecs01.queue." in shown.out)  # fmt: skip
        for zone in self._zones[1:3]:  # the fourth is for accounts that come as the vault grows
            records = self.shell.run("dns", "record-list", zone, "-g", GROUP)
            self.shell.proof(f"and a record in {zone}", "ecs01" in records.out)

    def _back_up(self) -> None:
        first = self._backup_once()
        shown = self.shell.run("endpoint", "show", "door", "-g", GROUP, show=False)
        self.shell.proof("the first backup brought a protection account", "prot01.blob." in shown.out)
        touched, size = tree.change(self._files)
        self.shell.say(f"Changed {touched:,} files ({_mb(size)} of content)")
        second = self._backup_once()
        self.shell.proof(f"only the change travelled: {_mb(second['bytesSent'])} after {_mb(first['bytesSent'])}",
                         second["bytesSent"] < max(first["bytesSent"] / 4, size * 1.5))  # fmt: skip
        hosts = self.shell.run("vault", "containers", "safe", "-g", GROUP)
        self.shell.proof(
            "the vault saw the host come by its private endpoint",
            "backup private by door; blob private by door" in hosts.out,
        )

    def _restore(self, name: str) -> None:
        point = json.loads(self.shell.run("agent", "points", "--json", inside="web01", show=False).out)["points"][0][
            "id"
        ]
        target = self._work / name
        ran = self.shell.run("agent", "restore", point, "--to", target, "--passphrase-file", self._passphrase,
                             inside="web01")  # fmt: skip
        root = target if (target / "odd cases").is_dir() else target / self._files.name
        owners = self._as_root and self._fabric == "netns"
        found = tree.compare(self._files, root, owners=owners)
        for difference in found.differences[:10]:
            self.shell.say(f"  differs: {difference}", "31")
        self.shell.proof(
            f"{found.files:,} names of files are the same, byte for byte, with modes, times, {found.symlinks:,} symlinks, "
            f"{found.hard_links:,} hard links, {found.xattrs:,} xattrs, {found.sparse} sparse"
            + (", owners" if owners else "; foreign owners are unknown here, and were said to be"),
            not found.differences,
        )
        self.figures.restored.append((name, found.bytes, ran.seconds))
        self.figures.compared = found
        shutil.rmtree(target)

    def _rebuild(self) -> None:
        self.shell.run("down")
        state = self.home / "state"
        self.shell.say("$ rm -r home/state", "1")
        shutil.rmtree(state)
        self.shell.run("rebuild")
        self.shell.run(*self._up, show=False)
        self.shell.say("Networks, zones and endpoints are not in the store; the same commands make them again.")
        run = self.shell.run
        run("vnet", "create", "spoke", "-g", GROUP, "--address-prefixes", str(RANGE),
            "--subnet-name", "work", "--subnet-prefix", "10.10.1.0/24", show=False)  # fmt: skip
        run("vm", "create", "web01", "-g", GROUP, "--vnet-name", "spoke", "--subnet", "work", show=False)
        self._endpoint_create("door", "safe", "spoke", "--integrate-dns")
        listed = self.shell.run("agent", "points", inside="web01")
        made = [backup["recoveryPointId"] for backup in self.figures.backups]
        self.shell.proof("both recovery points are there again", all(point in listed.out for point in made))
        self._restore("restored-after-rebuild")

    def _remove(self) -> None:
        self.shell.run("endpoint", "delete", "door", "-g", GROUP, show=False)
        failed = self._backup(expect=1)
        self.shell.proof("the next backup fails, and says why", "endpoint" in failed.said.lower() and
                         ("UserError" in failed.said or "NXDOMAIN" in failed.said))  # fmt: skip

    def _tear_down(self) -> None:
        during = leftovers.traces(self.home)
        self.shell.say(f"  running: {during}")
        self.shell.run("down")
        deadline = time.monotonic() + 10
        while not (after := leftovers.traces(self.home, during.namespaces)).none and time.monotonic() < deadline:
            time.sleep(0.1)  # the kernel frees namespaces in the background
        self.shell.say(f"  after:   {after}")
        self.shell.proof("no process, namespace or mount is left", bool(during.namespaces) and after.none)

    # --- commands used more than once --------------------------------------------------------------------------------

    def _endpoint_create(
        self,
        name: str,
        vault: str,
        network: str,
        *more: str,
        login: Path | None = None,
        expect: int | tuple[int, ...] = 0,
    ) -> Ran:
        words = ["endpoint", "create", name, "-g", GROUP, "--vault", vault, "--vnet-name", network, "--subnet", "work"]
        extra: list[str | Path] = ["--login", login] if login else []
        return self.shell.run(*words, *more, *extra, expect=expect, show=expect != 0)

    def _look_up(self, vm: str) -> Ran:
        """nslookup, as the article says; where Debian's bind9-dnsutils is not there, our own query, and marked so."""
        if shutil.which("nslookup"):
            return self.shell.run("nslookup", self._host, inside=vm, expect=(0, 1))
        self.shell.say("nslookup is not here (Debian: apt-get install bind9-dnsutils); our own query instead", "33")
        return self.shell.run("dns", "lookup", self._host, inside=vm, expect=(0, 1))

    def _ask_at(self, address: str, host: str, ca: Path) -> Ran:
        """One HTTPS request to an address, without DNS; with curl where there is one."""
        url = f"https://{host}/CommonProtectionCatalogService.svc"
        if shutil.which("curl"):
            return self.shell.run("curl", "-sS", "--noproxy", "*", "-o", "/dev/null", "-w", "%{http_code} from %{remote_ip}", "--cacert", ca,
                                  "--resolve", f"{host}:443:{address}", url, inside="web03")  # fmt: skip
        program = self._work / "ask.py"
        program.write_text(_ASK, "utf-8")
        return self.shell.run("python3", program, address, host, ca, inside="web03")

    def _backup(self, expect: int = 0) -> Ran:
        return self.shell.run("agent", "backup", self._files, "--passphrase-file", self._passphrase, "--json",
                              inside="web01", expect=expect, show=expect != 0)  # fmt: skip

    def _backup_once(self) -> dict[str, Any]:
        ran = self._backup()
        summary: dict[str, Any] = json.loads(ran.out[ran.out.index("{") :])
        self.shell.show(
            f"recovery point {summary['recoveryPointId']}, by the {summary['path']} path\n"
            f"{summary['files']:,} files: {_mb(summary['bytesRead'])} read, {_mb(summary['bytesSent'])} sent, "
            f"{_mb(summary['bytesStored'])} stored"
        )
        summary["seconds"] = ran.seconds
        self.figures.backups.append(summary)
        return summary

    def table(self) -> list[str]:
        lines = ["", "| step | seconds |", "|---|---:|"]
        lines += [f"| {step.heading} | {step.seconds:.1f} |" for step in self.shell.steps]
        lines += [f"| **all** | **{sum(step.seconds for step in self.shell.steps):.1f}** |", ""]
        lines += ["| data | read | sent | stored | seconds | MB/s |", "|---|---:|---:|---:|---:|---:|"]
        for number, backup in enumerate(self.figures.backups, 1):
            lines.append(
                f"| backup {number} | {_mb(backup['bytesRead'])} | {_mb(backup['bytesSent'])} | {_mb(backup['bytesStored'])} "
                f"| {backup['seconds']:.1f} | {backup['sourceBytes'] / backup['seconds'] / 1e6:.0f} |"
            )
        for name, size, seconds in self.figures.restored:
            lines.append(f"| {name} | {_mb(size)} | | | {seconds:.1f} | {size / seconds / 1e6:.0f} |")
        owners = self.figures.compared is not None and self.figures.compared.owners
        lines += ["", f"Fabric: {self._fabric}. Owners: "
                  + ("compared and equal." if owners else "not restored here; unmapped owners are recorded as unknown.")]  # fmt: skip
        return lines


_ASK = """import socket, ssl, sys

address, host, authority = sys.argv[1:]
context = ssl.create_default_context(cafile=authority)
with context.wrap_socket(socket.create_connection((address, 443), 5), server_hostname=host) as link:
    link.sendall(f"GET /CommonProtectionCatalogService.svc HTTP/1.1\\r\\nHost: {host}\\r\\nConnection: close\\r\\n\\r\\n".encode())
    print(link.recv(100).decode().split()[1], "from", link.getpeername()[0])
"""


def _mb(size: float) -> str:
    return f"{size / 1e6:,.1f} MB"
