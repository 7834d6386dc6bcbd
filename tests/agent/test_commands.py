"""The commands as processes: exit statuses, what goes where, and what a killed one leaves. Only name resolution is replaced (these
names exist in virtual networks, not here)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.agent.peer import COMMUNICATION, Peer
from undercroft.clock import SystemClock

RUN = """
import json, os, sys
import undercroft.agent.resolve as resolve

class Names:
    def __init__(self):
        self.table = json.loads(os.environ["NAMES"])
    def addresses(self, name):
        if name not in self.table:
            raise resolve.LegFailed(f"{name}: NXDOMAIN from resolver 168.63.129.16", leg="name")
        return tuple(self.table[name])

resolve.SystemResolver = Names
from undercroft.cli.main import main
sys.exit(main(["agent", *sys.argv[1:]]))
"""


class Agent:
    def __init__(self, peer: Peer, folder: Path) -> None:
        self.peer, self.folder = peer, folder
        self.passphrase = folder / "passphrase"
        self.passphrase.write_text("correct horse battery staple\n")
        self.passphrase.chmod(0o600)
        self.files = folder / "files"
        self.without_override = False
        """Root without the capabilities that let it read everything."""

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "NAMES": json.dumps(self.peer.names.table),
            "UNDERCROFT_AGENT_HOME": str(self.folder / "home"),
            "UNDERCROFT_VM": "web01",
        }

    def start(self, *words: str | Path) -> subprocess.Popen[str]:
        less = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if self.without_override else []
        return subprocess.Popen(
            [*less, sys.executable, "-c", RUN, *map(str, words)],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str | Path, expect: int = 0) -> tuple[str, str]:
        process = self.start(*words)
        out, err = process.communicate(timeout=60)
        assert process.returncode == expect, out + err
        assert "Traceback" not in err
        return out, err

    def register(self) -> None:
        self.run("register", "--credentials", self.peer.credentials(self.folder / "vault.json"))

    def back_up(self, *more: str | Path, expect: int = 0) -> tuple[str, str]:
        return self.run("backup", self.files, "--passphrase-file", self.passphrase, *more, expect=expect)

    def document(self, *words: str | Path) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run(*words, "--json")[0])
        return found


@pytest.fixture
def agent(peer: Peer, tmp_path: Path) -> Agent:
    files = tmp_path / "files"
    files.mkdir()
    for number in range(5):
        (files / f"file-{number}").write_bytes(os.urandom(5000))
    return Agent(peer, tmp_path)


def test_the_whole_way(agent: Agent, tmp_path: Path) -> None:
    out, _ = agent.run("register", "--credentials", agent.peer.credentials(tmp_path / "vault.json"))
    assert "private path" in out and COMMUNICATION in out
    assert list(agent.peer.containers) == ["web01"]
    out, err = agent.back_up()
    assert "5 files" in out and "MB/s" in out and "private path" in out and "Recovery point" in out
    assert "lost passphrase is final" in err
    summary = json.loads(agent.back_up("--json")[0])
    assert summary["bytesSent"] < 20_000 and summary["path"] == "private" and summary["problems"] == []
    points = agent.document("points")["points"]
    assert points[0]["id"] == summary["recoveryPointId"] and len(points) == 2
    assert points[0]["id"] in agent.run("points")[0]
    agent.run("restore", points[0]["id"], "--to", tmp_path / "out", "--passphrase-file", agent.passphrase)
    for path in agent.files.iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    status = agent.document("status")
    assert (status["vault"], status["path"], status["machineName"]) == ("vault1", "private", "web01")
    assert status["accounts"][0]["address"] == "127.0.0.1"
    assert "vault1" in agent.run("status")[0]


def test_points_of_several_pages_are_listed_and_found(agent: Agent, tmp_path: Path) -> None:
    """The peer's pages have two entries."""
    agent.register()
    made = [json.loads(agent.back_up("--json")[0])["recoveryPointId"] for _ in range(5)]
    assert [point["id"] for point in agent.document("points")["points"]] == made[::-1]
    agent.run("restore", made[0], "--to", tmp_path / "out", "--passphrase-file", agent.passphrase)


def test_notes_that_cannot_be_written_fail_no_backup_and_no_restore(agent: Agent, tmp_path: Path) -> None:
    """A full disk under the agent's home must not keep anybody from a restore, nor call a committed backup a failure."""
    agent.register()
    home = tmp_path / "home"
    (container,) = agent.peer.containers.values()
    for name in ("route.json", f"committed-{container}.json"):
        (home / name).unlink(missing_ok=True)
        (home / name).mkdir()
    out, err = agent.back_up()
    assert "the way taken was not noted on this host" in out + err
    assert "the next backup reads every file again" in out + err
    agent.run("restore", "latest", "--to", tmp_path / "out", "--passphrase-file", agent.passphrase)
    assert len(list((tmp_path / "out").iterdir())) == 5


def test_commands_before_registration_say_to_register(agent: Agent) -> None:
    for words in (["points"], ["status"], ["restore", "latest", "--to", "x", "--passphrase-file", agent.passphrase]):
        assert "agent register" in agent.run(*words, expect=1)[1]
    assert "agent register" in agent.back_up(expect=1)[1]


def test_a_folder_that_is_not_there_and_a_bad_passphrase_file_are_usage(agent: Agent, tmp_path: Path) -> None:
    agent.register()
    assert "not there" in agent.run("backup", "/no/such", "--passphrase-file", agent.passphrase, expect=2)[1]
    empty = tmp_path / "empty"
    empty.write_text("\nsecond line\n")
    assert "empty" in agent.run("backup", agent.files, "--passphrase-file", empty, expect=2)[1]
    assert "cannot be read" in agent.run("backup", agent.files, "--passphrase-file", tmp_path / "no", expect=1)[1]
    short = tmp_path / "short"
    short.write_text("short\n")
    assert "12 or more are advised" in agent.run("backup", agent.files, "--passphrase-file", short)[1]
    assert "--passphrase-file" in agent.run("restore", "latest", "--to", tmp_path / "x", expect=2)[1]


def test_an_unknown_point_is_a_failure(agent: Agent, tmp_path: Path) -> None:
    agent.register()
    agent.back_up()
    unknown = ("restore", "0" * 8, "--to", tmp_path / "x", "--passphrase-file", agent.passphrase)
    assert "agent points" in agent.run(*unknown, expect=1)[1]


def test_unreadable_files_are_listed_and_the_status_is_3(agent: Agent, tmp_path: Path) -> None:
    agent.register()
    (agent.files / "file-3").chmod(0)
    agent.without_override = os.geteuid() == 0
    _, err = agent.back_up(expect=3)
    assert "file-3" in err and "Unreadable: 1" in err
    document = json.loads(agent.back_up("--json", expect=3)[0])
    assert document["unreadable"] == 1 and document["problems"][0]["path"] == "file-3"
    agent.run("restore", "latest", "--to", tmp_path / "x", "--passphrase-file", agent.passphrase)
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == ["file-0", "file-1", "file-2", "file-4"]


def test_damage_is_listed_and_the_status_is_3(agent: Agent, tmp_path: Path) -> None:
    agent.register()
    (agent.files / "large").write_bytes(os.urandom(3_000_000))
    agent.back_up()
    (blobs,) = agent.peer.blobs.values()
    pack = max((name for name in blobs if name.startswith("packs/")), key=lambda name: len(blobs[name]))
    damaged = bytearray(blobs[pack])
    damaged[len(damaged) // 2] ^= 1
    blobs[pack] = bytes(damaged)
    _, err = agent.run("restore", "latest", "--to", tmp_path / "x", "--passphrase-file", agent.passphrase, expect=3)
    assert pack in err and "large" in err
    assert (tmp_path / "x" / "file-1").read_bytes() == (agent.files / "file-1").read_bytes()


def packs(agent: Agent) -> int:
    with agent.peer.lock:
        return sum(name.startswith("packs/") for blobs in agent.peer.blobs.values() for name in blobs)


def until_a_pack_arrived(agent: Agent, process: subprocess.Popen[str]) -> None:
    clock = SystemClock()
    deadline = clock.monotonic() + 40
    while packs(agent) < 1:
        assert process.poll() is None and clock.monotonic() < deadline
        threading.Event().wait(0.01)


def test_a_killed_backup_resumes(agent: Agent, tmp_path: Path) -> None:
    """Killed after a pack was acknowledged: the next run does not send that pack's contents again."""
    agent.register()
    (agent.files / "large").write_bytes(os.urandom(50_000_000))
    # The second pack is held up, so that the moment to kill at is certain.
    held = agent.peer.plan.add("PUT .*/indexes/", 503, "ServerBusy", times=1000, headers={"Retry-After": "30"})
    process = agent.start("backup", agent.files, "--passphrase-file", agent.passphrase)
    until_a_pack_arrived(agent, process)
    clock = SystemClock()
    deadline = clock.monotonic() + 40
    while not held.hit:
        assert process.poll() is None and clock.monotonic() < deadline
        threading.Event().wait(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=10)
    assert not any(backup.point for backup in agent.peer.backups.values())
    agent.peer.plan.faults.clear()
    summary = json.loads(agent.back_up("--json")[0])
    assert summary["bytesSent"] < 2_000_000, "what had arrived was sent again"
    agent.run("restore", "latest", "--to", tmp_path / "x", "--passphrase-file", agent.passphrase)
    assert (tmp_path / "x" / "large").read_bytes() == (agent.files / "large").read_bytes()


def test_sigterm_ends_cleanly_with_status_1_and_the_next_run_resumes(agent: Agent) -> None:
    agent.register()
    (agent.files / "large").write_bytes(os.urandom(40_000_000))
    agent.peer.plan.add("PUT .*/indexes/", 503, "ServerBusy", times=1000, headers={"Retry-After": "30"})
    process = agent.start("backup", agent.files, "--passphrase-file", agent.passphrase)
    until_a_pack_arrived(agent, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "Interrupted by SIGTERM" in err and "Traceback" not in err
    (told,) = agent.peer.backups.values()
    assert told.failure["code"] == "Interrupted"
    agent.peer.plan.faults.clear()
    agent.back_up()


def test_a_second_backup_at_the_same_time_is_refused(agent: Agent) -> None:
    agent.register()
    agent.peer.plan.add("POST /v1/backups$", 503, "ServerBusy", times=1000, headers={"Retry-After": "30"})
    first = agent.start("backup", agent.files, "--passphrase-file", agent.passphrase)
    clock = SystemClock()
    deadline = clock.monotonic() + 20
    while not agent.peer.plan.faults[0].hit and clock.monotonic() < deadline:
        threading.Event().wait(0.01)
    assert "busy" in agent.back_up(expect=1)[1]
    first.send_signal(signal.SIGINT)
    _, err = first.communicate(timeout=20)
    assert first.returncode == 1 and "SIGINT" in err
