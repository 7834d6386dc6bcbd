"""The name server is a process of its own: names are there while the node is not, and come back with nothing lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.deployment import Deployment
from tests.faults.test_killed_processes import eventually, gone, running

pytestmark = [pytest.mark.rootless, pytest.mark.slow]

# Asks the resolver of the VM for one name over and over, each time by a new question; prints each answer on a line, then "end".
PROBER = """
import select, socket, struct, sys
name = b"".join(bytes([len(label)]) + label.encode() for label in sys.argv[1].split(".")) + b"\\0"
number = 0
while not select.select([sys.stdin], [], [], 0.02)[0]:
    number = (number + 1) % 65536
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        link.settimeout(60)
        link.connect(("168.63.129.16", 53))
        try:
            link.send(struct.pack(">6H", number, 0x0100, 1, 0, 0, 0) + name + struct.pack(">2H", 1, 1))
            answer = link.recv(4096)
            said = f"rcode {answer[3] & 15}" if answer[3] & 15 else socket.inet_ntoa(answer[-4:])
        except OSError as error:
            said = type(error).__name__
    print(said, flush=True)
print("end", flush=True)
"""


class Answers:
    """What the prober was told so far."""

    def __init__(self, file: Path) -> None:
        self._file = file

    @property
    def said(self) -> list[str]:
        return [line for line in self._file.read_text("utf-8").split("\n")[:-1] if line != "end"]

    @property
    def ended(self) -> bool:
        return self._file.read_text("utf-8").endswith("end\n")

    @property
    def kinds(self) -> set[str]:
        return set(self.said)

    def more(self, count: int = 5) -> None:
        """Wait until so many more questions have been answered. The first may have been asked before."""
        wanted = len(self.said) + count
        eventually(lambda: len(self.said) >= wanted, 90)


@contextmanager
def asking(deployment: Deployment, name: str) -> Iterator[Answers]:
    """Ask all the while; from the first answer on."""
    command = [sys.executable, "-m", "undercroft.cli", "vm", "exec", "web01", "--", "sh", "-c"]
    # The probe must not end with the node through which it was started: it runs by itself, and talks through files.
    place = deployment.home.parent
    script = place / "prober.py"
    script.write_text(PROBER, "utf-8")
    fifo, out = place / "stop", place / "answers"
    for path in (fifo, out):
        path.unlink(missing_ok=True)
    os.mkfifo(fifo)
    out.touch()
    line = f"setsid {sys.executable} {script} {name} <>{fifo} >>{out} 2>&1 & sleep 0"
    subprocess.run([*command, line], env=deployment.environment, check=True)
    answers = Answers(out)
    try:
        answers.more(1)
        yield answers
    finally:
        fifo.write_text("stop\n", "ascii")
        eventually(lambda: answers.ended, 90)


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """That process does nothing meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def member(deployment: Deployment) -> tuple[str, str]:
    """A name of the endpoint, and its address."""
    shown = deployment.run("endpoint", "show", "door", "-g", "rg", "--json").json
    entry = shown["properties"]["customDnsConfigs"][0]
    return entry["fqdn"], entry["ipAddresses"][0]


def test_names_outlive_the_node_and_come_back_with_the_name_server(deployment: Deployment) -> None:
    deployment.run("group", "create", "rg", "-l", "westeurope")
    deployment.network("spoke", "web01")
    deployment.vault("safe")
    deployment.endpoint("door", "safe", "spoke", "--integrate-dns")
    name, address = member(deployment)
    pids = deployment.pids()

    with asking(deployment, name) as answers:
        with stopped(pids["supervisor"]):  # which would start another
            os.kill(pids["node"], signal.SIGKILL)
            eventually(lambda: gone(pids["node"]))
            answers.more(20)
        eventually(lambda: running(deployment).get("node", pids["node"]) != pids["node"], 60)
        answers.more()
    assert answers.kinds == {address}, answers.said
    assert deployment.pids()["dns"] == pids["dns"]

    pids = deployment.pids()
    with asking(deployment, name) as answers:
        os.kill(pids["dns"], signal.SIGKILL)
        eventually(lambda: running(deployment).get("dns", pids["dns"]) != pids["dns"], 60)
        answers.more()
    assert answers.kinds == {address}, "what was asked meanwhile is answered late, and nothing is lost"
    assert deployment.pids()["node"] == pids["node"]

    os.kill(deployment.pids()["dns"], signal.SIGKILL)
    deployment.endpoint(
        "second", "safe", "spoke", "--integrate-dns"
    )  # a change while there is no name server waits for it
    with asking(deployment, name) as answers:
        answers.more()
    second = deployment.run("endpoint", "show", "second", "-g", "rg", "--json").json
    wanted = {one["fqdn"]: one["ipAddresses"][0] for one in second["properties"]["customDnsConfigs"]}
    assert answers.kinds == {wanted[name]}, "two endpoints of one vault in one zone: the last one wins"

    pids = deployment.pids()
    os.kill(pids["supervisor"], signal.SIGKILL)
    eventually(lambda: gone(pids["dns"]))
    deployment.start()
    with asking(deployment, name) as answers:
        answers.more()
    assert answers.kinds == {wanted[name]}


def test_the_name_server_has_no_capability_and_can_gain_none(deployment: Deployment) -> None:
    path = f"/proc/{deployment.pids()['dns']}/status"
    with open(path, encoding="ascii") as status:
        fields = dict(line.rstrip("\n").split(":\t", 1) for line in status if ":\t" in line)
    assert (int(fields["CapEff"], 16), int(fields["CapPrm"], 16), int(fields["NoNewPrivs"])) == (0, 0, 1)
    if os.geteuid() == 0:
        assert int(fields["CapBnd"], 16) == 0
