"""Clients that die, fabrics that die, clean ends, and that nothing is left."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tests.fabric.machine import (
    DATABASE,
    ENDPOINT,
    PATHS,
    PYTHON,
    Machine,
    alive,
    connect,
    eventually,
    host,
    network,
    run,
)
from tests.fabric.test_execution import start_daemon, start_group
from undercroft.errors import CapabilityMissing, Conflict, LocalProblem, Unavailable
from undercroft.fabric.client import FabricClient
from undercroft.fabric.occupants import MARK, Record, end_survivors
from undercroft.fabric.process import clear
from undercroft.fabric.specification import Transport

pytestmark = pytest.mark.rootless

BUILD_AND_WAIT = """
import asyncio, sys
from pathlib import Path
from tests.fabric.machine import Machine, host, network
from undercroft.fabric.client import FabricClient

async def main():
    client = await FabricClient.connect(Path(sys.argv[1]))
    await client.apply(network("a", host("web")))
    print("built", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def children(process: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def start_builder(machine: Machine) -> subprocess.Popen[bytes]:
    """A client in a process of its own, that has built a network and stays connected."""
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(
        [PYTHON, "-P", "-c", BUILD_AND_WAIT, str(machine.socket)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(root), PATHS))},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"built\n"
    return process


async def test_killed_client_is_replaced(machine: Machine) -> None:
    """kill -9 of the client: the next one finds networks, VMs and their daemons, and has nothing to mend."""
    with start_builder(machine) as first:
        async with machine.client() as helper:
            daemon = await start_daemon(helper, machine)
        first.kill()
    async with machine.client() as client:
        assert await client.networks() == {"/vnet/a"}
        assert await client.apply(network("a", host("web"))) == ()
        assert alive(daemon)
        assert (await run(client, "web", "true")).status == 0


async def test_killed_fabric_leaves_nothing_running(machine: Machine) -> None:
    """kill -9 of the fabric: the client is told, VMs' processes go on, and the next fabric ends them before it serves."""
    async with machine.client() as client:
        await client.apply(network("a", host("web"), host("database", DATABASE)))
        daemons = [await start_daemon(client, machine), await start_daemon(client, machine, "database")]
        scrubbed = await run(
            client,
            "web",
            "env",
            "-i",
            PYTHON,
            "-c",
            "import os\nif not os.fork(): os.setsid(); os.execlp('sleep', 'sleep', '600')",
        )
        assert scrubbed.status == 0, scrubbed
        task, group = await start_group(client, machine)
        before = machine.pid
        sleeper = [process for process in children(before) if process not in [*daemons, *group]]
        assert len(sleeper) == 1
        machine.end(signal.SIGKILL)
        with pytest.raises(Unavailable):
            await task
        await asyncio.wait_for(client.disconnected(), 5)
        with pytest.raises(Unavailable):
            await client.networks()
    left = [*daemons, *group, *sleeper]
    assert all(map(alive, left))
    machine.start()
    assert not any(map(alive, left))
    async with machine.client() as client:
        assert await client.networks() == frozenset()
        drifts = await client.apply(network("a", host("web")))
        assert all(drift.created for drift in drifts)
        assert (await run(client, "web", "true")).status == 0


async def test_clean_end(machine: Machine) -> None:
    """SIGTERM: VMs' processes are gone, and so are the socket and what lay beside it; the VMs' folders stay."""
    async with machine.client() as client:
        await client.apply(network("a", host("web")))
        daemon = await start_daemon(client, machine)
        task, group = await start_group(client, machine)
        assert machine.end() == 0
        assert await task == 128 + signal.SIGKILL
        with pytest.raises(Unavailable):
            await client.networks()
    assert not any(map(alive, [daemon, *group]))
    assert list(machine.socket.parent.iterdir()) == []
    assert machine.agent_home("web").is_dir()
    with pytest.raises(Unavailable, match="No fabric process listens"):
        await FabricClient.connect(machine.socket)


async def test_stop(machine: Machine) -> None:
    async with machine.client() as client:
        await client.apply(network("a", host("web")))
        daemon = await start_daemon(client, machine)
        await client.stop()
        assert not alive(daemon)
        await client.stop()
    assert machine.process is not None
    assert machine.process.wait(10) == 0
    machine.process = None
    assert list(machine.socket.parent.iterdir()) == []


async def test_interrupt_is_the_supervisors_affair(machine: Machine, client: FabricClient) -> None:
    os.kill(machine.pid, signal.SIGINT)
    assert await client.networks() == frozenset()


async def test_survivors_are_cleared_without_a_successor(machine: Machine) -> None:
    """For ``down`` after everything was killed. While a fabric serves, nothing is touched."""
    async with machine.client() as client:
        await client.apply(network("a", host("web")))
        daemon = await start_daemon(client, machine)
        with pytest.raises(LocalProblem, match="already serves"):
            clear(machine.socket)
        assert alive(daemon)
        machine.end(signal.SIGKILL)
    assert alive(daemon)
    if machine.user is not None:
        machine.start()  # the record's owner has to do it: here that is another user
        machine.end()
    else:
        assert clear(machine.socket) == (1, 0)
    assert not alive(daemon)
    assert list(machine.socket.parent.iterdir()) == []


def test_one_fabric_per_socket(machine: Machine) -> None:
    first, machine.process = machine.process, None
    try:
        said = machine.launch()
        assert said is not None and "already serves" in said and "Traceback" not in said
    finally:
        machine.process = first


async def test_socket_is_private(machine: Machine, client: FabricClient) -> None:
    assert machine.socket.stat().st_mode & 0o777 == 0o600
    assert machine.socket.with_name("fabric.sock.lock").exists()


async def test_vm_in_one_network_at_a_time(client: FabricClient) -> None:
    await client.apply(network("a", host("web")))
    with pytest.raises(Conflict, match="is in network /vnet/a"):
        await client.apply(network("b", host("web")))
    await client.apply(network("a"))
    await client.apply(network("b", host("web")))
    assert (await run(client, "web", "true")).status == 0


async def test_fifty_rounds_leave_nothing(client: FabricClient, machine: Machine) -> None:
    """Descriptors, namespaces, processes and folders after fifty networks came and went are what they were after one."""

    def held() -> tuple[int, int, int, int]:
        descriptors = len(list(Path(f"/proc/{machine.pid}/fd").iterdir()))
        tasks = len(list(Path(f"/proc/{machine.pid}/task").iterdir()))
        return descriptors, tasks, len(machine.namespaces()), len([*filter(alive, children(machine.pid))])

    async def once() -> None:
        await client.apply(network("a", host("web"), host("database", DATABASE)))
        listener = await client.listen("/vnet/a", None, 443, Transport.TCP)
        assert (await run(client, "web", "sh", "-c", "sleep 600 >/dev/null 2>&1 &")).status == 0
        await client.apply(network("a", host("web")))
        listener.close()
        await client.remove("/vnet/a")

    await once()
    await eventually(lambda: held()[1:] == (1, 0, 0))  # a thread that has ended is listed for a moment longer
    before, own = held(), len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        await once()
    await eventually(lambda: held() == before)
    assert len(os.listdir("/proc/self/fd")) == own
    assert list(machine.vms.iterdir()) == []
    record = msgspec.json.decode(machine.socket.with_name("fabric.sock.record").read_bytes(), type=Record)
    assert record.namespaces == ()


@pytest.mark.parametrize("marked", [True, False])
def test_only_marked_namespaces_are_cleared(tmp_path: Path, marked: bool) -> None:
    """An inode may belong to somebody else by now: without a marked process in it, nobody is touched."""
    mark = secrets.token_hex(8)
    flags = ["--net"] if os.geteuid() == 0 else ["--user", "--map-current-user", "--net"]
    environment = {"PATH": os.defpath, **({MARK: mark} if marked else {})}
    script = "env -i sleep 600 & echo $! ; exec sleep 600"
    with subprocess.Popen(
        ["unshare", *flags, "sh", "-c", script],
        env=environment,
        stdout=subprocess.PIPE,
        start_new_session=True,
        text=True,
    ) as process:
        assert process.stdout is not None
        companion = int(process.stdout.readline())
        try:
            inode = Path(f"/proc/{process.pid}/ns/net").stat().st_ino
            assert inode != Path("/proc/self/ns/net").stat().st_ino
            record = tmp_path / "record"
            Record("another boot", mark, (inode,)).write(record)
            assert end_survivors(record) == 0
            Record(Record.current_boot(), mark, (inode,)).write(record)
            assert end_survivors(record) == (2 if marked else 0)
            assert (alive(process.pid), alive(companion)) == (not marked, not marked)
            assert not record.exists()
        finally:
            for number in (process.pid, companion):
                if alive(number):
                    os.kill(number, signal.SIGKILL)


async def test_loopback_refuses_by_name(tmp_path: Path) -> None:
    """The simulation pretends nothing: what it cannot do says so and why."""
    machine = Machine("loopback")
    try:
        machine.start()
        async with machine.client() as client:
            found = client.capabilities
            assert (found.driver, found.isolation, found.execute) == ("loopback", False, False)
            assert {"networks", "isolation", "security groups"} <= dict(found.missing).keys()
            with pytest.raises(CapabilityMissing, match="simulation"):
                await client.apply(network("a"))
            with pytest.raises(CapabilityMissing, match="simulation"):
                await client.listen("/vnet/a", None, 443, Transport.TCP)
            with pytest.raises(CapabilityMissing, match="simulation"):
                await run(client, "web", "true")
            assert await client.networks() == frozenset()
            await client.remove("/vnet/a")
    finally:
        machine.close()


async def test_capabilities(client: FabricClient, machine: Machine) -> None:
    found = client.capabilities
    assert found.driver == machine.driver
    assert found.isolation and found.overlapping_networks and found.privileged_ports and found.execute
    assert found.security_groups and "security groups" not in dict(found.missing), "needs libnftables1"
    assert found.foreign_owners == (machine.driver == "netns")
    assert ("foreign owners" in dict(found.missing)) == (machine.driver == "rootless")


def test_the_privileged_process_is_small() -> None:
    """It holds the privilege: it must not load what it does not need."""
    code = (
        "import sys, undercroft.fabric.__main__; print(*sys.modules, 'nftables.so' in open('/proc/self/maps').read())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": PATHS}, capture_output=True, text=True, check=True
    )
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {
        "aiohttp",
        "sqlalchemy",
        "cryptography",
        "dns",
        "zstandard",
        "obstore",
        "argon2",
        "joserfc",
        "True",
    }


async def test_endpoint_works_after_adoption(machine: Machine) -> None:
    """A new client can listen where the old one's socket was."""
    async with machine.client() as first:
        await first.apply(network("a", host("web")))
        (await first.listen("/vnet/a", None, 443, Transport.TCP)).close()
    async with machine.client() as second:
        assert await connect(second, "web", ENDPOINT) == "ConnectionRefusedError 111"
        with await second.listen("/vnet/a", None, 443, Transport.TCP) as listener:
            asking = asyncio.ensure_future(connect(second, "web", ENDPOINT))
            accepted, _ = await asyncio.wait_for(asyncio.get_running_loop().sock_accept(listener), 10)
            accepted.sendall(b"hello")
            accepted.close()
            assert await asking == "hello"
