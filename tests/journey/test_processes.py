"""The processes of a node: what they may do, and what they cost (decision 2, DESIGN section 4)."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.deployment import Deployment

pytestmark = [pytest.mark.rootless, pytest.mark.slow]


@pytest.mark.parametrize("name", ["node", "data", "dns"])
def test_what_others_talk_to_has_no_capability_and_can_gain_none(deployment: Deployment, name: str) -> None:
    lines = Path(f"/proc/{deployment.pids()[name]}/status").read_text("ascii").splitlines()
    fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert int(fields["CapEff"], 16) == 0
    assert int(fields["CapPrm"], 16) == 0
    assert int(fields["NoNewPrivs"]) == 1
    if os.geteuid() == 0:
        assert int(fields["CapBnd"], 16) == 0


def test_bulk_data_gives_way_to_names_and_management(deployment: Deployment) -> None:
    at = {name: os.getpriority(os.PRIO_PROCESS, pid) for name, pid in deployment.pids().items()}
    assert at["data"] > at["node"] == at["dns"]
    assert os.sched_getscheduler(deployment.pids()["data"]) == os.SCHED_BATCH


def test_secrets_are_readable_by_their_owner_only(deployment: Deployment) -> None:
    secret = [deployment.home / "connection.json", *(deployment.home / "keys").iterdir()]
    for path in secret:
        if path.name != "ca.pem":
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    for folder in (".", "keys", "run", "state", "store", "logs", "vms"):
        assert stat.S_IMODE((deployment.home / folder).stat().st_mode) & 0o077 == 0, folder


def test_a_clean_stop_removes_connection_json_and_the_sockets(deployment: Deployment) -> None:
    assert sorted(deployment.connection) == [
        "caBundle", "clientId", "clientSecret", "fabric", "loginEndpoint", "resourceManager", "subscriptionId", "tenantId",
    ]  # fmt: skip
    deployment.run("status")
    deployment.stop()
    assert not (deployment.home / "connection.json").exists()
    assert not [path for path in (deployment.home / "run").iterdir() if path.is_socket()]
    deployment.run("status", expect=3)


def test_vm_exec_passes_streams_and_the_exit_status_through(deployment: Deployment) -> None:
    deployment.run("group", "create", "rg", "-l", "westeurope")
    deployment.network("spoke", "web01")
    answer = deployment.inside("web01", "sh", "-c", "echo out; echo err >&2; exit 7", expect=7)
    assert (answer.out, answer.err) == ("out\n", "err\n")
    assert "not found" in deployment.inside("web01", "no-such-command", expect=127).err
    assert "10.20.1.4" in deployment.inside("web01", "cat", "/proc/net/fib_trie").out
    said = deployment.run("vm", "exec", "nobody", "--", "true", expect=3).err
    assert "nobody" in said
