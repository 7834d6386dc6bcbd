"""``up`` in the foreground, its signals and ports, and what earlier runs left in the folder."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.deployment import Deployment, drivers

pytestmark = [pytest.mark.rootless, pytest.mark.slow]


@contextmanager
def foreground(deployment: Deployment, port: int) -> Iterator[subprocess.Popen[str]]:
    """``undercroft up`` without --detach, once it has said that it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-m", "undercroft.cli", "up", "--port", str(port), "--driver", deployment.driver],
        env=deployment.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("Undercroft is ready: https://localhost:"), line + process.stdout.read()
        yield process
    finally:
        deployment.stop()
        process.wait(30)
        process.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_foreground_ends_cleanly_on_a_signal(number: signal.Signals, tmp_path: Path) -> None:
    deployment = Deployment(tmp_path / "home", drivers()[0])
    with foreground(deployment, 0) as process:
        pids = deployment.pids()
        assert pids["supervisor"] == process.pid
        assert stat.S_IMODE((deployment.home / "connection.json").stat().st_mode) == 0o600
        assert Path(deployment.connection["caBundle"]).is_absolute()
        process.send_signal(number)
        assert process.wait(30) == 0
        assert process.stdout is not None
        said = process.stdout.read()
        assert "Traceback" not in said
        assert "az cloud register -n Undercroft" in said
        assert "az login --service-principal" in said
        assert "SIMULATION" not in said
        assert not (deployment.home / "connection.json").exists()
        assert not [pid for pid in pids.values() if Path(f"/proc/{pid}").exists()]
        deployment.run("down", expect=3)


def test_a_chosen_port_and_what_earlier_runs_left(tmp_path: Path) -> None:
    """A folder as after a crash and a reboot: pid files of others, sockets that nobody serves, an old connection.json."""
    deployment = Deployment(tmp_path / "home", drivers()[0])
    run = deployment.home / "run"
    run.mkdir(parents=True, mode=0o700)
    (run / "up.pid").write_text(str(os.getpid()))
    for name in ("control.sock", "fabric.sock"):
        with socket.socket(socket.AF_UNIX) as nobody:
            nobody.bind(str(run / name))
    (deployment.home / "connection.json").write_text("{}")
    deployment.run("status", expect=3)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with foreground(deployment, port):
        assert urlsplit(deployment.connection["resourceManager"]).port == port
        assert deployment.run("status", "--json").json["running"] is True
        deployment.run("group", "create", "rg", "-l", "westeurope")
        deployment.run("down")
        deployment.run("down", expect=3)
