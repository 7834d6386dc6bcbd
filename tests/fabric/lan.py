"""A LAN made of a veth: one namespace plays the machine that carries the service, another a second host on the wire.

As root both are plain network namespaces; for an ordinary user they belong to a user namespace in which that user has every right, as
root has on a real machine. The tests' own namespace, and with it every real interface, is never entered or changed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from tests.fabric.machine import PATHS

PREFIX = "192.168.7.0/24"
MACHINE, NEIGHBOUR = IPv4Address("192.168.7.1"), IPv4Address("192.168.7.9")
SERVICE = IPv4Address("192.168.7.53")
"""``host.address``."""
INTERFACE = "lan0"

_HOLD = """
# Make a namespace (and, for an ordinary user, a user namespace with every right in it), say so, and hold it until the pipe closes.
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
user, group = os.getuid(), os.getgid()
if sys.argv[1] == "new user":
    assert libc.unshare(0x50000000) == 0, ctypes.get_errno()
    open("/proc/self/setgroups", "w").write("deny")
    open("/proc/self/uid_map", "w").write(f"{user} {user} 1")
    open("/proc/self/gid_map", "w").write(f"{group} {group} 1")
else:
    assert libc.unshare(0x40000000) == 0, ctypes.get_errno()
print("held", flush=True)
sys.stdin.read()
"""
_ENTER = """
# Like nsenter; a user who is not root keeps the rights over the user namespace when the command is executed (ambient capabilities).
import ctypes, os, sys
process, user, *command = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
network = os.open(f"/proc/{process}/ns/net", os.O_RDONLY)
if user:
    assert libc.setns(os.open(f"/proc/{process}/ns/user", os.O_RDONLY), 0x10000000) == 0, ctypes.get_errno()
    everything = [0xFFFFFFFF] * 3 + [0x1FF] * 3
    assert libc.capset((ctypes.c_uint * 2)(0x20080522, 0), (ctypes.c_uint * 6)(*everything)) == 0, ctypes.get_errno()
    for capability in range(41):
        assert libc.prctl(47, 2, capability, 0, 0) == 0, ctypes.get_errno()
assert libc.setns(network, 0x40000000) == 0, ctypes.get_errno()
os.execvp(command[0], command)
"""
_LISTEN = """
import socket, sys
from undercroft.fabric.arp import PROTOCOL, Packet, written
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(PROTOCOL)) as wire:
    wire.bind((sys.argv[1], PROTOCOL))
    print("listening", flush=True)
    while True:
        packet = Packet.parse(wire.recv(2048))
        if packet is not None:
            print(packet.operation, written(packet.sender_mac), packet.sender, packet.target, flush=True)
"""


@dataclass(frozen=True, slots=True)
class Heard:
    """An ARP packet on the wire."""

    operation: int
    mac: str
    sender: IPv4Address
    target: IPv4Address

    @property
    def probes(self) -> IPv4Address | None:
        return self.target if self.operation == 1 and self.sender == IPv4Address(0) else None

    @property
    def announces(self) -> IPv4Address | None:
        return self.target if self.operation == 1 and self.sender == self.target else None


class Place:
    """A namespace of the LAN."""

    def __init__(self, holder: subprocess.Popen[str]) -> None:
        self.holder = holder
        self._user = "" if os.geteuid() == 0 else "user"

    def command(self, *words: str | Path) -> list[str]:
        """The words, to be executed in there."""
        return [sys.executable, "-c", _ENTER, str(self.holder.pid), self._user, *map(str, words)]

    def run(self, *words: str | Path, expect: int = 0, timeout: float = 60) -> str:
        done = subprocess.run(
            self.command(*words), capture_output=True, text=True, check=False, timeout=timeout, env=environment()
        )
        assert done.returncode == expect, (words, done.stdout, done.stderr)
        return done.stdout

    def ip(self, words: str) -> str:
        return self.run("ip", *words.split())

    def addresses(self) -> dict[IPv4Address, str]:
        """Of the LAN's interface: address to label."""
        shown = [line.split() for line in self.ip(f"-4 -o addr show dev {INTERFACE}").splitlines()]
        return {
            IPv4Address(words[3].partition("/")[0]): words[words.index("valid_lft") - 1].rstrip("\\") for words in shown
        }


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": PATHS, "PYTHONDONTWRITEBYTECODE": "1"}


class Lan:
    def __init__(self, machine: Place, neighbour: Place) -> None:
        self.machine = machine
        self.neighbour = neighbour

    @contextmanager
    def listening(self) -> Iterator[Ear]:
        """What the neighbour hears on the wire meanwhile."""
        ear = Ear(self.neighbour)
        try:
            yield ear
        finally:
            ear.close()


class Ear:
    def __init__(self, place: Place) -> None:
        command = place.command(sys.executable, "-c", _LISTEN, INTERFACE)
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "listening\n"
        os.set_blocking(self._process.stdout.fileno(), False)

    def heard(self) -> list[Heard]:
        """Since the last time."""
        assert self._process.stdout is not None
        found = []
        for line in self._process.stdout:
            operation, mac, sender, target = line.split()
            found.append(Heard(int(operation), mac, IPv4Address(sender), IPv4Address(target)))
        return found

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@contextmanager
def lan() -> Iterator[Lan]:
    holders: list[subprocess.Popen[str]] = []

    def hold(command: Sequence[str]) -> Place:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        holders.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return Place(process)

    try:
        new = "" if os.geteuid() == 0 else "new user"
        machine = hold([sys.executable, "-c", _HOLD, new])
        neighbour = hold(machine.command(sys.executable, "-c", _HOLD, ""))
        machine.ip(f"link add {INTERFACE} type veth peer name {INTERFACE} netns {neighbour.holder.pid}")
        for place, address in ((machine, MACHINE), (neighbour, NEIGHBOUR)):
            place.ip("link set lo up")
            place.ip(f"addr add {address}/24 dev {INTERFACE}")
            place.ip(f"link set {INTERFACE} up")
        yield Lan(machine, neighbour)
    finally:
        for process in reversed(holders):
            assert process.stdin is not None and process.stdout is not None
            process.stdin.close()
            process.stdout.close()
            process.wait(10)
