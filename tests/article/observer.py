"""What one VM sees of private endpoints: a process inside it that looks, connects and holds connections when it is told to.

One process for many questions, because the moment matters: when a name is shown, when a connection ends. Times are of
``time.monotonic``, which all processes of a machine share.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from tests.deployment import Deployment

__all__ = ["Observer", "Seen"]

SCRIPT = r"""
import http.client, json, socket, ssl, sys, threading, time
import dns.exception, dns.message, dns.query, dns.rcode, dns.rdatatype

context = ssl.create_default_context(cafile=sys.argv[1])
held, ended = [], {}

def open_to(name, address):
    link = http.client.HTTPSConnection(name, context=context, timeout=3)
    link._create_connection = lambda *_: socket.create_connection((address, 443), 3)
    return link

def resolve(name):
    answer = dns.query.udp(dns.message.make_query(name, "A"), "168.63.129.16", timeout=2)
    found = [one.to_text() for set in answer.answer if set.rdtype == dns.rdatatype.A for one in set]
    return dns.rcode.to_text(answer.rcode()), found

def probe(name, address):
    link = open_to(name, address)
    try:
        link.request("GET", "/x/CommonProtectionCatalogService.svc")
        return str(link.getresponse().status)
    except OSError as error:
        return type(error).__name__
    finally:
        link.close()

def look(name, address):
    rcode, found = resolve(name)
    return {"rcode": rcode, "addresses": found, "status": probe(name, address) if address else ""}

def watched(key, work):
    def run():
        try:
            how = work()
        except Exception as error:
            how = type(error).__name__
        ended[key] = [time.monotonic(), how]
    threading.Thread(target=run, daemon=True).start()

def hold(key, name, address):
    link = open_to(name, address)
    link.request("GET", "/x/CommonProtectionCatalogService.svc")
    link.getresponse().read()
    link.sock.settimeout(60)
    held.append(link)
    watched(key, lambda: "closed" if link.sock.recv(1) == b"" else "data")
    return {}

def upload(key):
    # a backup of the registered agent, as its own code begins one, whose pack takes its time
    from undercroft.agent.accounts import await_grant
    from undercroft.agent.identity import AgentHome
    from undercroft.agent.messages import OpenBackup
    from undercroft.agent.registration import open_session
    from undercroft.agent.resolve import SystemResolver
    from undercroft.clock import SystemClock
    session = open_session(AgentHome.find().load(), SystemResolver(), SystemClock(), public_fallback=False)
    body = {"item": {"name": "/" + key, "kind": "files"}, "formatVersion": 0}
    opened = session.call("prot1", "POST", "/v1/backups", OpenBackup, body=body)
    path = "/v1/backups/%s/renew" % opened.backup_id
    grant = await_grant(session, "prot1", opened, path, OpenBackup, 20.0)
    address = resolve(grant.blob_host)[1][0]
    link = open_to(grant.blob_host, address)
    link.connect()
    link.sock.settimeout(60)
    held.extend((link, session))
    sent = threading.Event()
    def pieces():
        for _ in range(6000):
            yield b"\0" * 65536
            sent.set()
            time.sleep(0.01)
    def work():
        headers = {"x-ms-blob-type": "BlockBlob", "x-ms-version": "2020-12-06", "Content-Length": str(6000 * 65536)}
        link.request("PUT", "/%s/packs/%032x?%s" % (grant.container, time.time_ns(), grant.sas.lstrip("?")), pieces(), headers)
        return "answered %d" % link.getresponse().status
    watched(key, work)
    sent.wait(10)
    return {"host": grant.blob_host, "address": address}

def report(*keys):
    until = time.monotonic() + 20
    while time.monotonic() < until and any(key not in ended for key in keys):
        time.sleep(0.002)
    return {key: ended.get(key) for key in keys}

print("ready", flush=True)
for line in sys.stdin:
    what, *words = json.loads(line)
    try:
        said = {"look": look, "hold": hold, "upload": upload, "report": report}[what](*words)
    except Exception as error:
        said = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(said), flush=True)
"""


@dataclass(frozen=True)
class Seen:
    rcode: str
    addresses: tuple[str, ...]
    status: str
    """Of the connection probe over TLS at the address: an HTTP status, or the name of the error."""


class Observer:
    def __init__(self, deployment: Deployment, vm: str) -> None:
        self._said = deployment
        command = [sys.executable, "-m", "undercroft.cli", "vm", "exec", vm, "--", sys.executable, "-u", "-c", SCRIPT]
        self._process = subprocess.Popen(
            [*command, deployment.connection["caBundle"]],
            env=deployment.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=deployment.home.parent,
        )

    def __enter__(self) -> Observer:
        assert self._process.stdout is not None and self._process.stdout.readline() == "ready\n"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.communicate(timeout=20)

    def _ask(self, *words: str) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        assert "error" not in answer, f"{words}: {answer['error']}\n{self._said.logs()}"
        return answer

    def look(self, name: str, address: str = "") -> Seen:
        """The resolver's answer for the name, and whether the service answers at ``address``."""
        answer = self._ask("look", name, address)
        return Seen(answer["rcode"], tuple(answer["addresses"]), answer["status"])

    def hold(self, key: str, name: str, address: str) -> None:
        """Ask once, keep the connection open, and note when and how it ends."""
        self._ask("hold", key, name, address)

    def upload(self, key: str) -> str:
        """Begin a backup as the VM's agent, whose pack is under way when this returns; the address that it goes to."""
        return str(self._ask("upload", key)["address"])

    def ends(self, *keys: str) -> dict[str, tuple[float, str] | None]:
        """When and how each ended; waits 20 s at most, None if it did not."""
        answer: dict[str, list[Any] | None] = self._ask("report", *keys)
        return {key: None if end is None else (float(end[0]), str(end[1])) for key, end in answer.items()}
