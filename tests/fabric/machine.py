"""A fabric process under test, and what the machine shows of it from outside: namespaces, processes, kernel tables.

As root the rootless driver is tried by an ordinary user (65534) where that user can read the checkout and its interpreter.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from undercroft.fabric.client import FabricClient
from undercroft.fabric.host import folder_name
from undercroft.fabric.specification import WIRE_ADDRESS, Execution, HostSpecification, NetworkSpecification

NOBODY = 65534
PYTHON = str(Path(sys.executable).resolve())
ENDPOINT = IPv4Address("10.0.1.10")
PUBLIC = IPv4Address("203.0.113.10")
WEB, DATABASE = IPv4Address("10.0.1.4"), IPv4Address("10.0.2.4")
PATHS = os.pathsep.join(dict.fromkeys(str(Path(entry).resolve()) for entry in sys.path if entry))


def drivers() -> list[str]:
    return ["netns", "rootless"] if os.geteuid() == 0 else ["rootless"]


@functools.cache
def _nobody_can_run() -> bool:
    """Whether user 65534 may read what these tests run (not with a checkout under /root, say)."""
    trial = subprocess.run(
        [PYTHON, "-P", "-c", "import msgspec, undercroft.fabric.process"],
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        cwd="/",
        env={"PYTHONPATH": PATHS, "PYTHONDONTWRITEBYTECODE": "1"},
        stderr=subprocess.DEVNULL,
        check=False,
    )
    return trial.returncode == 0


def host(name: str, address: IPv4Address = WEB, *resolvers: str) -> HostSpecification:
    found = tuple(IPv4Address(resolver) for resolver in resolvers) or (WIRE_ADDRESS,)
    return HostSpecification(f"/vm/{name}", name, address, found)


def network(
    name: str = "a",
    *hosts: HostSpecification,
    addresses: Sequence[IPv4Address] = (ENDPOINT,),
    public: Sequence[IPv4Address] = (PUBLIC,),
) -> NetworkSpecification:
    """10.0.0.0/16 with two subnets, whatever its name."""
    return NetworkSpecification(
        f"/vnet/{name}",
        (IPv4Network("10.0.0.0/16"),),
        (IPv4Network("10.0.1.0/24"), IPv4Network("10.0.2.0/24")),
        frozenset(addresses),
        frozenset(public),
        hosts,
    )


@dataclass(frozen=True, slots=True)
class Output:
    status: int
    out: str
    err: str


class Outside:
    """What the machine shows of a fabric process and of the namespaces that it holds; subclasses say which process."""

    driver: str

    @property
    def pid(self) -> int:
        raise NotImplementedError

    def namespaces(self) -> dict[int, int]:
        """Inode to descriptor of the network namespaces that the fabric process holds."""
        folder = Path(f"/proc/{self.pid}/fd")
        found = {}
        for entry in folder.iterdir():
            with contextlib.suppress(OSError):
                if os.readlink(entry).startswith("net:["):
                    found[entry.stat().st_ino] = int(entry.name)
        return found

    def inside(self, descriptor: int, *command: str) -> str:
        """Run a command of the machine in a namespace that the fabric holds, with the right to change it."""
        done = subprocess.run(self.command(descriptor, *command), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done
        return done.stdout

    def command(self, descriptor: int, *command: str) -> list[str]:
        """The same, to be executed."""
        user = "user" if self.driver == "rootless" else ""
        return [PYTHON, "-S", "-c", ENTER, str(self.pid), str(descriptor), user, *command]

    def namespace_with(self, address: IPv4Address) -> int:
        """The descriptor of the namespace that has the address."""
        found = [
            descriptor
            for descriptor in self.namespaces().values()
            if f" {address}/" in self.inside(descriptor, "ip", "-4", "-o", "addr")
        ]
        assert len(found) == 1, found
        return found[0]


class Machine(Outside):
    """Starts and kills fabric processes for one socket."""

    def __init__(self, driver: str) -> None:
        self.driver = driver
        self.user = NOBODY if driver == "rootless" and os.geteuid() == 0 and _nobody_can_run() else None
        # Not pytest's folder, which other users may not enter.
        self.folder = Path(tempfile.mkdtemp(prefix="fabric-", dir="/tmp" if self.user is not None else None))
        if self.user is not None:
            os.chown(self.folder, self.user, self.user)
        self.socket = self.folder / "run" / "fabric.sock"
        self.vms = self.folder / "vms"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        started = self.launch()
        assert started is None, started

    def launch(self) -> str | None:
        """Start it; what it said if it ended instead of becoming ready."""
        reader, writer = os.pipe()
        arguments = ["--socket", str(self.socket), "--vms", str(self.vms), "--driver", self.driver]
        with tempfile.TemporaryFile() as log:
            process = subprocess.Popen(
                [PYTHON, "-P", "-m", "undercroft.fabric", *arguments, "--ready-fd", str(writer)],
                pass_fds=(writer,),
                user=self.user,
                group=self.user,
                extra_groups=None if self.user is None else [],
                stderr=log,
                cwd=self.folder,
                env={"PATH": os.defpath, "PYTHONPATH": PATHS, "PYTHONDONTWRITEBYTECODE": "1"},
            )
            os.close(writer)
            said = os.read(reader, 16) if select.select([reader], [], [], 30)[0] else b""
            os.close(reader)
            if said == b"ready\n":
                self.process = process
                return None
            process.kill()
            process.wait()
            log.seek(0)
            return log.read().decode()

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        status = self.process.wait(20)
        self.process = None
        return status

    def close(self) -> None:
        if self.process is not None:
            self.end()
        elif self.socket.with_name("fabric.sock.record").exists():
            self.start()  # a test killed it: its successor ends what it left
            self.end()
        shutil.rmtree(self.folder)

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[FabricClient]:
        made = await FabricClient.connect(self.socket)
        try:
            yield made
        finally:
            await made.close()

    def agent_home(self, name: str) -> Path:
        return self.vms / folder_name(f"/vm/{name}") / "agent"


async def run(client: FabricClient, vm: str, *arguments: str, stdin: bytes = b"", **options: str) -> Output:
    """A command in a VM with pipes as its streams. ``options`` are environment variables; ``directory`` is special."""
    directory = options.pop("directory", "/")
    in_reader, in_writer = os.pipe()
    out_reader, out_writer = os.pipe()
    err_reader, err_writer = os.pipe()
    os.write(in_writer, stdin)
    os.close(in_writer)
    environment = (("PATH", os.defpath), *options.items())
    try:
        execution = Execution(f"/vm/{vm}", arguments, environment, directory, in_reader, out_writer, err_writer)
        status = await client.execute(execution)
        return Output(status, read(out_reader), read(err_reader))
    finally:
        os.close(out_reader)
        os.close(err_reader)


def read(descriptor: int) -> str:
    """What is in the pipe now; its other end may be held by a daemon, so this never waits."""
    os.set_blocking(descriptor, False)
    parts = []
    with contextlib.suppress(BlockingIOError):
        while part := os.read(descriptor, 1 << 16):
            parts.append(part)
    return b"".join(parts).decode()


ENTER = """
# Like nsenter; but a user who is not root keeps the rights over the user namespace when ip is executed (ambient capabilities).
import ctypes, os, sys
process, descriptor, user, *command = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
network = os.open(f"/proc/{process}/fd/{descriptor}", os.O_RDONLY)
if user:
    assert libc.setns(os.open(f"/proc/{process}/ns/user", os.O_RDONLY), 0x10000000) == 0, ctypes.get_errno()
    everything = [0xFFFFFFFF] * 3 + [0x1FF] * 3
    assert libc.capset((ctypes.c_uint * 2)(0x20080522, 0), (ctypes.c_uint * 6)(*everything)) == 0, ctypes.get_errno()
    for capability in range(41):
        assert libc.prctl(47, 2, capability, 0, 0) == 0, ctypes.get_errno()
assert libc.setns(network, 0x40000000) == 0, ctypes.get_errno()
os.execvp(command[0], command)
"""

CONNECT = """
import socket, sys
connection = socket.socket()
connection.settimeout(8)
try:
    connection.connect((sys.argv[1], int(sys.argv[2])))
    print(connection.recv(100).decode())
except OSError as error:
    print(type(error).__name__, error.errno)
"""


async def connect(client: FabricClient, vm: str, address: IPv4Address, port: int = 443) -> str:
    """What a TCP listener says to a client in the VM; or the error's name and number."""
    output = await run(client, vm, PYTHON, "-c", CONNECT, str(address), str(port))
    assert output.status == 0, output
    return output.out.strip()


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


async def eventually(condition: object, seconds: float = 5.0) -> None:
    """Wait until the callable is true."""
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not become true"
        await asyncio.sleep(0.01)
