"""Commands in a VM: streams, status, environment, and how they end."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fabric.machine import DATABASE, PYTHON, Machine, alive, eventually, host, network, read, run
from undercroft.errors import NotFound, Unavailable
from undercroft.fabric.client import FabricClient
from undercroft.fabric.specification import Execution

pytestmark = pytest.mark.rootless

DAEMON = """
import os, sys, time
# The classic double fork: its own session, no parent, no marker but the environment of its birth.
if os.fork():
    os._exit(0)
os.setsid()
if os.fork():
    os._exit(0)
for descriptor in range(3):
    os.close(descriptor)
with open(sys.argv[1] + ".new", "w") as file:
    file.write(str(os.getpid()))
os.rename(sys.argv[1] + ".new", sys.argv[1])
time.sleep(600)
"""


async def start_daemon(client: FabricClient, machine: Machine, vm: str = "web") -> int:
    path = machine.agent_home(vm) / "daemon.pid"
    path.unlink(missing_ok=True)
    output = await run(client, vm, PYTHON, "-c", DAEMON, str(path))
    assert output.status == 0, output
    await eventually(path.exists)
    return int(path.read_text())


async def start_group(client: FabricClient, machine: Machine) -> tuple[asyncio.Task[int], list[int]]:
    """An execution that stays: a shell and a child of it in one process group."""
    path = machine.agent_home("web") / "group.pid"
    path.unlink(missing_ok=True)
    script = f"sleep 600 & echo $$ $! > {path}.new; mv {path}.new {path}; wait"
    null = [os.open(os.devnull, os.O_RDWR) for _ in range(3)]
    environment = (("PATH", os.defpath),)
    task = asyncio.ensure_future(client.execute(Execution("/vm/web", ("sh", "-c", script), environment, "/", *null)))
    await eventually(path.exists)
    return task, [int(word) for word in path.read_text().split()]


async def test_a_program_without_privilege_binds_the_port_of_a_name_server(client: FabricClient) -> None:
    await client.apply(network("a", host("web")))
    bind = "import os, socket\nif os.geteuid() == 0: os.setuid(65534)\nsocket.socket().bind(('0.0.0.0', 53))"
    output = await run(client, "web", PYTHON, "-c", bind)
    assert output.status == 0, output


async def test_streams_and_status(client: FabricClient) -> None:
    await client.apply(network("a", host("web")))
    output = await run(client, "web", "sh", "-c", "cat; echo bad >&2; exit 7", stdin=b"hello")
    assert (output.status, output.out, output.err) == (7, "hello", "bad\n")


async def test_death_by_signal(client: FabricClient) -> None:
    await client.apply(network("a", host("web")))
    assert (await run(client, "web", "sh", "-c", "kill -TERM $$")).status == 128 + signal.SIGTERM


async def test_signals_are_as_in_a_shell(client: FabricClient) -> None:
    """Nothing of the fabric's own handling is inherited: a closed pipe and an interrupt end a command."""
    await client.apply(network("a", host("web")))
    for number in (signal.SIGPIPE, signal.SIGINT, signal.SIGCHLD):
        ask = f"import signal; print(signal.getsignal({number!r} + 0))"
        status = await run(client, "web", "sh", "-c", f"kill -{number.name[3:]} $$; exit 9")
        assert status.status == (9 if number == signal.SIGCHLD else 128 + number), ask


async def test_environment_and_directory(client: FabricClient, machine: Machine) -> None:
    await client.apply(network("a", host("web")))
    show = "import os; print(os.environ['UNDERCROFT_VM'], os.environ['UNDERCROFT_AGENT_HOME'], os.environ['X'], os.getcwd())"
    seen = await run(client, "web", PYTHON, "-c", show, X="1", directory="/usr")
    assert seen.out.split() == ["web", str(machine.agent_home("web")), "1", "/usr"]
    given = await run(client, "web", PYTHON, "-c", show, X="2", UNDERCROFT_AGENT_HOME="/there", directory="/nowhere")
    assert given.out.split() == ["web", "/there", "2", "/"]


async def test_command_that_cannot_start(client: FabricClient) -> None:
    await client.apply(network("a", host("web")))
    missing = await run(client, "web", "no-such-command")
    assert (missing.status, missing.err) == (127, "undercroft: no-such-command: command not found\n")
    forbidden = await run(client, "web", "/etc/passwd")
    assert (forbidden.status, forbidden.err) == (126, "undercroft: /etc/passwd: Permission denied\n")
    with pytest.raises(NotFound, match="no VM /vm/other"):
        await run(client, "other", "true")


async def test_names_inside(client: FabricClient, machine: Machine) -> None:
    """A VM sees its own hosts and resolv.conf; a change is seen by what runs already; lines that a person added stay."""
    await client.apply(network("a", host("web"), host("database", DATABASE, "10.0.1.4", "168.63.129.16")))
    seen = await run(client, "web", "cat", "/etc/resolv.conf")
    assert seen.out == "nameserver 168.63.129.16\n"
    seen = await run(client, "database", "cat", "/etc/resolv.conf")
    assert seen.out == "nameserver 10.0.1.4\nnameserver 168.63.129.16\n"
    look = await run(client, "web", PYTHON, "-c", "import socket; print(socket.gethostbyname('web'))")
    assert look.out == "10.0.1.4\n"
    added = await run(client, "web", "sh", "-c", "echo '10.0.1.77 mine' >> /etc/hosts")
    assert added.status == 0, added

    follow = asyncio.ensure_future(
        run(client, "web", "sh", "-c", "until grep -q 10.0.2.4 /etc/resolv.conf; do sleep 0.02; done; cat /etc/hosts")
    )
    await asyncio.sleep(0.1)
    drifts = await client.apply(network("a", host("web", DATABASE, "10.0.2.4")))
    assert all(drift.created for drift in drifts)
    lines = (await asyncio.wait_for(follow, 10)).out.splitlines()
    assert "10.0.2.4 web" in lines and "10.0.1.77 mine" in lines and "10.0.1.4 web" not in lines
    assert Path("/etc/resolv.conf").read_text() != "nameserver 10.0.2.4\n"
    assert await client.apply(network("a", host("web", DATABASE, "10.0.2.4"))) == ()


async def test_cancelled_execution_is_killed(client: FabricClient, machine: Machine) -> None:
    """With its process group; a daemon of the same VM stays."""
    await client.apply(network("a", host("web")))
    daemon = await start_daemon(client, machine)
    task, group = await start_group(client, machine)
    assert all(map(alive, group))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually(lambda: not any(map(alive, group)))
    assert alive(daemon)


async def test_lost_client(client: FabricClient, machine: Machine) -> None:
    """What it waited for is killed; daemons, and what other clients wait for, stay."""
    await client.apply(network("a", host("web")))
    async with machine.client() as lost:
        daemon = await start_daemon(lost, machine)
        task, group = await start_group(lost, machine)
    with pytest.raises(Unavailable):
        await task
    await eventually(lambda: not any(map(alive, group)))
    assert alive(daemon)
    assert (await run(client, "web", "true")).status == 0


async def test_deleted_vm_ends_with_everything_in_it(client: FabricClient, machine: Machine) -> None:
    await client.apply(network("a", host("web"), host("database", DATABASE)))
    other = await start_daemon(client, machine, "database")
    daemon = await start_daemon(client, machine)
    task, group = await start_group(client, machine)
    drifts = await client.apply(network("a", host("database", DATABASE)))
    assert [drift.what for drift in drifts][:1] == ["stray VM web"]
    assert not any(map(alive, [daemon, *group]))
    assert await task == 128 + signal.SIGKILL
    assert alive(other)
    assert not (machine.agent_home("web").parent / "hosts").exists()
    await client.remove("/vnet/a")
    assert not alive(other)
    assert await client.networks() == frozenset()
    await client.remove("/vnet/a")


async def test_agents_state_outlives_the_vm(client: FabricClient, machine: Machine) -> None:
    """It holds keys: the fabric deletes the files that it wrote, and no others."""
    await client.apply(network("a", host("web"), host("database", DATABASE)))
    written = await run(client, "web", "sh", "-c", "echo key > $UNDERCROFT_AGENT_HOME/key")
    assert written.status == 0, written
    await client.apply(replace(network("a"), hosts=()))
    assert (machine.agent_home("web") / "key").read_text() == "key\n"
    assert not machine.agent_home("database").parent.exists()


async def test_closed_standard_error(client: FabricClient) -> None:
    """A stream that nobody reads must not hurt the fabric."""
    await client.apply(network("a", host("web")))
    reader, writer = os.pipe()
    os.close(reader)
    null = os.open(os.devnull, os.O_RDWR)
    assert await client.execute(Execution("/vm/web", ("no-such",), (), "/", null, os.dup(null), writer)) == 127
    assert (await run(client, "web", "true")).status == 0


async def test_output_is_complete(client: FabricClient) -> None:
    await client.apply(network("a", host("web")))
    reader, writer = os.pipe()
    null = os.open(os.devnull, os.O_RDWR)
    command = (PYTHON, "-c", "print('x' * 1000000)")
    running = asyncio.ensure_future(client.execute(Execution("/vm/web", command, (), "/", null, writer, os.dup(null))))
    total = 0
    while not running.done() or (left := len(read(reader))):
        total += len(read(reader)) if not running.done() else left
        await asyncio.sleep(0.001)
    os.close(reader)
    assert (await running, total) == (0, 1000001)
