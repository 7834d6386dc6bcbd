"""``kill -9`` of any process, and a start again: the same vaults, networks, endpoints, names and points."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.deployment import Deployment
from tests.faults.held import held_backup

pytestmark = [pytest.mark.rootless, pytest.mark.slow]


def eventually(check: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0] == "Z"


def resolves(deployment: Deployment) -> bool:
    """The whole path works again: DNS in the VM, the door, and a call that needs the container's registration."""
    return deployment.inside("web01", "agent", "points", expect=(0, 1, 3)).status == 0


def test_everything_is_the_same_after_each_kill(deployment: Deployment) -> None:
    files = deployment.furnished()
    deployment.backup(files)
    before = (deployment.points(), configuration(deployment))

    for victim in ("node", "dns", "data", "fabric"):
        pid = deployment.pids()[victim]
        os.kill(pid, signal.SIGKILL)
        eventually(lambda victim=victim, pid=pid: running(deployment).get(victim, pid) != pid)  # type: ignore[misc]
        eventually(lambda: resolves(deployment))
        assert (deployment.points(), configuration(deployment)) == before, victim

    pids = deployment.pids()
    os.kill(pids["supervisor"], signal.SIGKILL)
    eventually(lambda: gone(pids["node"]))
    assert not gone(pids["fabric"]), "the fabric stays, and with it the users' VMs"
    deployment.run("status", expect=3)
    deployment.start()
    assert deployment.pids()["fabric"] == pids["fabric"], "adopted"
    assert (deployment.points(), configuration(deployment)) == before

    deployment.stop()
    deployment.start()
    assert (deployment.points(), configuration(deployment)) == before
    restored = deployment.restore(before[0][0]["id"], "restored")
    assert contents(restored, files) == contents(files, files)


def test_all_processes_killed_at_once(deployment: Deployment) -> None:
    files = deployment.furnished()
    deployment.backup(files)
    before = (deployment.points(), configuration(deployment))
    sleeper = subprocess.Popen(
        [sys.executable, "-m", "undercroft.cli", "vm", "exec", "web01", "--", "sh", "-c", "echo $$; exec sleep 300"],
        env=deployment.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert sleeper.stdout is not None
    in_vm = int(sleeper.stdout.readline())
    pids = deployment.pids()
    for name in ("supervisor", "node", "data", "dns", "fabric"):
        os.kill(pids[name], signal.SIGKILL)
    sleeper.wait(30)
    sleeper.stdout.close()
    deployment.start()
    eventually(lambda: gone(in_vm))
    eventually(lambda: resolves(deployment))
    assert (deployment.points(), configuration(deployment)) == before


def test_a_node_that_cannot_start_at_once_is_tried_again(deployment: Deployment) -> None:
    """Its fabric dies while it starts; then its state cannot be opened for a while. Nothing of that ends the deployment."""
    deployment.run("group", "create", "rg", "-l", "westeurope")
    pids = deployment.pids()
    os.kill(pids["node"], signal.SIGKILL)
    time.sleep(0.3)
    os.kill(pids["fabric"], signal.SIGKILL)
    eventually(lambda: running(deployment).get("node", pids["node"]) != pids["node"], 60)
    assert not gone(pids["supervisor"])

    state, away = deployment.home / "state", deployment.home / "state.away"
    pids = deployment.pids()
    state.rename(away)
    state.write_bytes(b"in the way")
    os.kill(pids["node"], signal.SIGKILL)
    time.sleep(3)
    assert not gone(pids["supervisor"]), deployment.logs()
    state.unlink()
    away.rename(state)
    eventually(lambda: running(deployment).get("node", pids["node"]) != pids["node"], 60)
    assert deployment.pids()["fabric"] == pids["fabric"], "the networks and VMs went on"
    assert "rg" in deployment.run("group", "list").out


def test_a_vm_process_survives_the_node(deployment: Deployment) -> None:
    deployment.run("group", "create", "rg", "-l", "westeurope")
    deployment.network("spoke", "web01")
    started = deployment.inside("web01", "sh", "-c", "sleep 300 >/dev/null 2>&1 </dev/null & echo $!")
    pid = int(started.out)
    node = deployment.pids()["node"]
    os.kill(node, signal.SIGKILL)
    eventually(lambda: running(deployment).get("node", node) != node)
    assert not gone(pid)
    deployment.run("vm", "delete", "web01", "-g", "rg")
    eventually(lambda: gone(pid))


def test_a_node_that_is_told_to_end_is_started_again_and_nothing_else_ends(deployment: Deployment) -> None:
    """Only the supervisor ends a deployment; whoever signals one process of it gets another."""
    files = deployment.furnished()
    before = deployment.pids()
    for victim in ("node", "data"):
        pid = deployment.pids()[victim]
        os.kill(pid, signal.SIGTERM)
        eventually(lambda victim=victim, pid=pid: running(deployment).get(victim, pid) != pid)  # type: ignore[misc]
        eventually(lambda: resolves(deployment))
    after = deployment.pids()
    assert {name for name in before if before[name] != after[name]} == {"node", "data"}
    deployment.backup(files)


def test_an_agent_killed_half_way_resumes(deployment: Deployment) -> None:
    files, middle = large(deployment, 4)
    agent = subprocess.Popen(
        [sys.executable, "-m", "undercroft.cli", "vm", "exec", "web01", "--",
         *held_backup(files, deployment.passphrase, middle, "large-3")],
        env=deployment.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    eventually(lambda: len(packs(deployment)) == 2, 60)
    in_vm = agents(files)
    assert in_vm
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    assert {os.getpriority(os.PRIO_PROCESS, pid) for pid in in_vm} == {min(ours + 5, 19)}, "it gives way to others"
    assert {os.sched_getscheduler(pid) for pid in in_vm} == {os.SCHED_BATCH}
    for pid in in_vm:
        os.kill(pid, signal.SIGKILL)
    agent.wait(30)
    middle.unlink()
    assert deployment.points() == []
    arrived = stored(deployment)
    summary = deployment.backup(files, "--json").json
    whole = sum(path.stat().st_size for path in files.iterdir())
    one_pack = 34 << 20  # acknowledged, and the agent killed before it could write that down
    assert arrived > one_pack, "else the next line could not fail"
    assert summary["bytesSent"] < whole - arrived + one_pack, "what had arrived was sent again"
    restored = deployment.restore(deployment.points()[0]["id"], "restored")
    assert contents(restored, files) == contents(files, files)


@pytest.mark.parametrize("victim", ["node", "data"])
def test_the_service_killed_half_way_loses_nothing(deployment: Deployment, victim: str) -> None:
    """An agent that runs on its own in the VM outlives either process, waits for the next data plane, and finishes."""
    files, middle = large(deployment, 8)
    log = deployment.home.parent / "agent.log"
    agent = shlex.join(held_backup(files, deployment.passphrase, middle, "large-7"))
    deployment.inside("web01", "sh", "-c", f"setsid {agent} >{log} 2>&1 </dev/null & echo $!")
    eventually(lambda: len(packs(deployment)) >= 2, 60)
    acknowledged = packs(deployment)
    pids = deployment.pids()
    os.kill(pids[victim], signal.SIGKILL)
    assert agents(files), "killed half way"
    middle.unlink()
    eventually(lambda: resolves(deployment), 60)
    eventually(lambda: not agents(files), 120)
    if victim == "node":
        assert deployment.pids()["data"] == pids["data"], "the next node goes on with the data plane that is there"
    assert len(deployment.points()) == 1, log.read_text("utf-8")
    assert acknowledged <= packs(deployment)
    restored = deployment.restore(deployment.points()[0]["id"], "restored")
    assert contents(restored, files) == contents(files, files)


def large(deployment: Deployment, count: int) -> tuple[Path, Path]:
    """A folder with so many files of 24 MiB, and the file for which a held agent waits before the last of them."""
    files, middle = deployment.furnished(), deployment.home.parent / "middle"
    for number in range(count):
        (files / f"large-{number}").write_bytes(os.urandom(24 << 20))
    middle.touch()
    return files, middle


# --- what is looked at ------------------------------------------------------------------------------------------------


def configuration(deployment: Deployment) -> object:
    endpoint = deployment.run("endpoint", "show", "door", "-g", "rg", "--json").json
    vault = deployment.run("vault", "show", "safe", "-g", "rg").json
    properties = {key: endpoint["properties"][key] for key in ("customDnsConfigs", "privateLinkServiceConnections")}
    return json.dumps([properties, vault["properties"]["publicNetworkAccess"]], sort_keys=True)


def running(deployment: Deployment) -> dict[str, int]:
    answer = deployment.run("status", "--json", expect=(0, 3))
    return dict(answer.json.get("processes", {})) if answer.status == 0 else {}


def contents(folder: Path, like: Path) -> dict[str, bytes]:
    root = folder if (folder / "big").exists() else folder / like.name
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def packs(deployment: Deployment) -> set[str]:
    """Packs that are whole in the store."""
    return {path.name for path in deployment.home.glob("store/*/blobs/*/*/packs/*")}


def stored(deployment: Deployment) -> int:
    return sum(path.stat().st_size for path in deployment.home.glob("store/*/blobs/*/*/packs/*"))


def every_process() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def agents(files: Path) -> list[int]:
    """Processes that back up this folder inside the VM."""
    commands = {pid: command_of(pid) for pid in every_process()}
    return [pid for pid, text in commands.items() if f"agent backup {files}" in text and "vm exec" not in text]


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        return ""
