"""A VM that floods one private endpoint, on the real fabric: others are served, and nothing is left when it ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.deployment import GROUP, Deployment, NearDeployment, drivers

pytestmark = [pytest.mark.rootless, pytest.mark.slow, pytest.mark.xdist_group("floods")]

FLOOD = r"""
# Everything at once against one door, until it is killed: connections that say nothing, headers that never end or are huge, and
# garbage where TLS should be. Prints how many connections it had open at most, once a second.
import os, random, select, socket, ssl, sys, threading, time
address, name = sys.argv[1], sys.argv[2]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

def silent():
    held = []
    while True:
        try:
            held.append(socket.create_connection((address, 443), 2))
        except OSError:
            time.sleep(0.05)
        if len(held) > 400:
            held.pop(random.randrange(len(held))).close()

def spoken(send):
    while True:
        try:
            with socket.create_connection((address, 443), 2) as plain, context.wrap_socket(plain, server_hostname=name) as link:
                send(link)
        except OSError:
            time.sleep(0.02)

def slowly(link):
    link.sendall(b"GET /v1/container HTTP/1.1\r\nHost: " + name.encode() + b"\r\nX-Slow: ")
    while True:
        link.sendall(b"a")
        time.sleep(0.5)

def hugely(link):
    link.sendall(b"GET / HTTP/1.1\r\nHost: " + name.encode() + b"\r\nX-Huge: " + b"a" * 200_000 + b"\r\n\r\n")
    link.recv(100)

def garbage():
    while True:
        try:
            with socket.create_connection((address, 443), 2) as link:
                link.sendall(os.urandom(1 + random.randrange(600)))
                link.recv(100)
        except OSError:
            time.sleep(0.02)

work = [silent, garbage, lambda: spoken(hugely)] + [lambda: spoken(slowly)] * 8
for each in work:
    threading.Thread(target=each, daemon=True).start()
print("flooding", flush=True)
time.sleep(300)
"""

ABORT = r"""
# Connections that are reset: at once, in the handshake, and in the middle of a request.
import os, socket, ssl, struct, sys
address, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
done = 0
for number in range(count):
    link = socket.create_connection((address, 443), 8)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    try:
        if number % 20 == 0:
            link = context.wrap_socket(link, server_hostname=name)
            link.sendall(b"POST /v1/backups HTTP/1.1\r\nHost: " + name.encode() + b"\r\nContent-Length: 100\r\n\r\nxx")
        elif number % 2:
            link.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc")
    except OSError:
        pass
    link.close()
    done += 1
print(done)
"""


@pytest.fixture(scope="module", params=drivers())
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    deployment = NearDeployment(tmp_path_factory.mktemp("floods") / "home", request.param)
    try:
        deployment.start()
        deployment.furnished(files=3)
        deployment.run("vm", "create", "rogue", "-g", GROUP, "--vnet-name", "spoke", "--subnet", "work")
        yield deployment
    finally:
        deployment.stop()


def door(site: Deployment) -> tuple[str, str]:
    """Address and name of the vault's prot1, which is what the agent backs up by."""
    shown = site.run("endpoint", "show", "door", "-g", GROUP, "--json").json
    entries = {entry["fqdn"]: entry["ipAddresses"][0] for entry in shown["properties"]["customDnsConfigs"]}
    name = next(fqdn for fqdn in entries if "-prot1." in fqdn)
    return entries[name], name


def descriptors(site: Deployment) -> dict[str, int]:
    return {role: len(os.listdir(f"/proc/{pid}/fd")) for role, pid in site.pids().items()}


def settle(site: Deployment, before: dict[str, int], spare: int = 4) -> dict[str, int]:
    """What the processes hold once it is no more than before, or after a while."""
    deadline = time.monotonic() + 45
    while True:
        now = descriptors(site)
        grown = {role: now[role] - held for role, held in before.items() if now[role] - held > spare}
        if not grown or time.monotonic() > deadline:
            return grown
        time.sleep(0.3)


@contextmanager
def flooding(site: Deployment, *words: str) -> Iterator[None]:
    command = [sys.executable, "-m", "undercroft.cli", "vm", "exec", "rogue", "--", sys.executable, "-c", FLOOD, *words]
    process = subprocess.Popen(command, env=site.environment, stdout=subprocess.PIPE, cwd=site.home.parent)
    try:
        assert process.stdout is not None and process.stdout.readline() == b"flooding\n"
        time.sleep(1.5)
        yield
    finally:
        process.terminate()
        process.wait(20)
        if process.stdout is not None:
            process.stdout.close()


def test_a_vm_that_floods_one_endpoint_stops_nobody_elses_backup(site: Deployment) -> None:
    files = site.home.parent / "files"
    site.backup(files)
    before = descriptors(site)
    with flooding(site, *door(site)):
        held = descriptors(site)["data"] - before["data"]
        (files / "new").write_bytes(os.urandom(100_000))
        assert "private path" in site.backup(files).out
        assert site.points()
        assert site.run("vault", "show", "safe", "-g", GROUP).json["name"] == "safe"
        log = (site.home / "logs" / "data.log").read_text("utf-8", "replace")
    assert 0 < held <= 80, "what one host may hold of one door is bounded"
    assert "too many of one host" in log, "and it is said"
    assert settle(site, before) == {}, "every descriptor of the flood is closed"


def test_two_thousand_aborted_connections_leave_no_descriptor(site: Deployment) -> None:
    before = descriptors(site)
    said = site.inside("rogue", "python3", "-c", ABORT, *door(site), "2000", timeout=100).out
    assert said.strip() == "2000"
    assert settle(site, before) == {}
    assert site.inside("web01", "agent", "status").status == 0


def test_a_resolver_that_hangs_makes_the_agent_name_it_in_a_bounded_time(site: Deployment) -> None:
    """The resolver takes questions and answers none; there is no fallback, or an outage would send backups out publicly."""
    hang = "import socket, time; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('0.0.0.0', 53)); print('bound', flush=True); time.sleep(200)"
    command = [sys.executable, "-m", "undercroft.cli", "vm", "exec", "rogue", "--", sys.executable, "-c", hang]
    resolver = subprocess.Popen(command, env=site.environment, stdout=subprocess.PIPE, cwd=site.home.parent)
    address = site.inside("rogue", "hostname", "-I").out.split()[0]
    configuration = "/etc/resolv.conf"
    try:
        assert resolver.stdout is not None and resolver.stdout.readline() == b"bound\n"
        kept = site.inside("web01", "cat", configuration).out
        text = f"nameserver {address}\noptions timeout:1 attempts:1\n"
        site.inside("web01", "sh", "-c", f'printf "%s" "$1" > {configuration}', "sh", text)
        begun = time.monotonic()
        said = site.backup(site.home.parent / "files", expect=1).err
        assert time.monotonic() - begun < 60
        assert f"no answer to the DNS question from resolver {address}" in said
        assert "The resolver is down or not reachable from here" in said or "login endpoint cannot be reached" in said
        site.inside("web01", "sh", "-c", f'printf "%s" "$1" > {configuration}', "sh", kept)
        site.backup(site.home.parent / "files")
    finally:
        resolver.terminate()
        resolver.wait(20)
        if resolver.stdout is not None:
            resolver.stdout.close()
