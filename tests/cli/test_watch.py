"""dns watch: files that grow, hooks that fail, a service that is away; and that nothing of it ever empties a file."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.dns.test_exports import CONFIGS, plan, required, source
from undercroft.cli.kept_files import KeptFiles
from undercroft.cli.watcher import Watcher
from undercroft.clock import SystemClock
from undercroft.dns.exports.plan import Plan
from undercroft.dns.requirements import Requirements
from undercroft.errors import Conflict, InvalidInput, LocalProblem, Unavailable

LATER = datetime(2026, 11, 28, tzinfo=UTC)
GROWN = required(source({**CONFIGS, "0a1b2c3dprot01.blob.core.windows.net": ("10.20.1.8",)}))
SHRUNK = required(source({name: value for name, value in CONFIGS.items() if "queue" not in name}))


@pytest.mark.parametrize("format", ["bind", "unbound", "hosts", "json"])
def test_files_are_written_once_and_again_when_names_grow(format: str, tmp_path: Path) -> None:
    kept = KeptFiles(format, tmp_path / "made" / "out")
    first = plan(folder="/x")
    assert kept.update(first) is not None
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert kept.update(first.at(LATER)) is None, "the time alone is no change"
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    changes = kept.update(plan(needs=GROWN, folder="/x").at(LATER))
    assert changes is not None
    assert any("0a1b2c3dprot01" in line and line.startswith("+") for line in changes)
    assert not any("SOA" in line or "written" in line.removesuffix(",") for line in changes if format != "json")


def test_zone_files_of_names_that_are_gone_go_and_those_of_others_stay(tmp_path: Path) -> None:
    kept = KeptFiles("bind", tmp_path)
    kept.update(plan())
    (tmp_path / "db.mine").write_text("; mine\n", "utf-8")
    assert (tmp_path / "db.0a1b2c3decs01.queue.core.windows.net").exists()
    kept.update(plan(needs=SHRUNK))
    assert not (tmp_path / "db.0a1b2c3decs01.queue.core.windows.net").exists()
    assert (tmp_path / "db.mine").exists()


@pytest.mark.parametrize("format", ["bind", "unbound", "dnsmasq", "coredns", "windows", "json"])
def test_a_file_that_somebody_else_wrote_is_not_replaced(format: str, tmp_path: Path) -> None:
    kept = KeptFiles(format, tmp_path / "out")
    kept.update(plan())
    kept.update(plan(needs=GROWN))
    path = min(kept.out.glob("db.*")) if format == "bind" else kept.out
    path.write_text("server: my own\n", "utf-8")
    with pytest.raises(Conflict, match="did not write"):
        kept.update(plan())
    assert path.read_text("utf-8") == "server: my own\n"
    path.write_text("", "utf-8")
    assert kept.update(plan()) is not None


@pytest.mark.parametrize("format", ["bind", "unbound", "dnsmasq", "coredns", "windows"])
def test_the_export_of_one_vault_does_not_replace_that_of_another(format: str, tmp_path: Path) -> None:
    kept = KeptFiles(format, tmp_path / "out")
    kept.update(plan())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    other = Requirements.of(
        [source({"other.example": ("10.20.1.30",)}, "another")],
        (),
        backup_suffix="backup.windowsazure.com",
        deployment="undercroft.internal",
    )
    with pytest.raises(Conflict, match=r"is the export of 'door \(rg\)', and that of 'another \(rg\)' would"):
        kept.update(plan(needs=other))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_hosts_file_keeps_its_inode_and_its_owners_lines(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_bytes(b"127.0.0.1 localhost\r\n10.0.0.9 \xff\n")
    inode = path.stat().st_ino
    kept = KeptFiles("hosts", path)
    kept.update(plan(needs=GROWN))
    kept.update(plan(needs=SHRUNK))
    assert path.stat().st_ino == inode
    assert path.read_bytes().startswith(b"127.0.0.1 localhost\r\n10.0.0.9 \xff\n# BEGIN undercroft")
    assert b"queue" not in path.read_bytes().split(b"mode records")[1].split(b"dns diff")[1]


def test_a_block_of_a_vault_is_found_again_when_an_endpoint_was_added(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    kept = KeptFiles("hosts", path)
    for sources in ([source()], [source(), source({"other.example": ("10.20.1.30",)}, "another")]):
        needs = Requirements.of(
            sources,
            (),
            backup_suffix="backup.windowsazure.com",
            deployment="undercroft.internal",
            subject="vault safe (rg)",
        )
        assert kept.update(plan(needs=needs)) is not None
    text = path.read_text("utf-8")
    assert text.count("# BEGIN undercroft vault safe (rg)") == 1
    assert text.count("0a1b2c3decs01.blob.core.windows.net") == 1


def test_a_folder_is_wanted_where_there_are_several_files(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    with pytest.raises(InvalidInput, match="needs a folder"):
        KeptFiles("bind", tmp_path / "file")
    assert KeptFiles("unbound", tmp_path).update(plan()) is not None
    assert (tmp_path / "undercroft.conf").exists()


def test_a_hook_is_run_after_a_change_and_until_it_succeeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran, allowed = tmp_path / "ran", tmp_path / "allowed"
    hook = f'echo "$UNDERCROFT_DNS_OUT" >> {ran}; test -e {allowed}'
    files = KeptFiles("unbound", tmp_path / "out")
    with pytest.raises(LocalProblem, match="status 1"):
        Watcher(files, plan, hook, SystemClock()).look()
    again = Watcher(files, plan, hook, SystemClock())  # as after a crash: the mark on disk is what is remembered
    with pytest.raises(LocalProblem, match="status 1"):
        again.look()
    allowed.touch()
    again.look()
    again.look()
    assert ran.read_text("utf-8").split() == [str(tmp_path / "out")] * 3
    assert "+ local-data" in capsys.readouterr().out


def test_of_a_failed_hook_it_is_not_said_that_files_stay_as_they_were(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stop = threading.Event()

    def once() -> Plan:
        stop.set()
        return plan()

    Watcher(KeptFiles("hosts", tmp_path / "hosts"), once, "false", SystemClock()).run(stop, 0.01)
    said = capsys.readouterr().out
    assert "ended with status 1" in said and "It is run again every 0.01 s." in said and "stay as they are" not in said


def test_it_goes_on_while_the_service_is_away_and_says_so_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stop = threading.Event()
    looks: list[int] = []

    def away() -> Plan:
        looks.append(len(looks))
        if len(looks) in (2, 3, 4):
            raise Unavailable("Nothing listens there.")
        if len(looks) == 6:
            stop.set()
        return plan()

    Watcher(KeptFiles("hosts", tmp_path / "hosts"), away, None, SystemClock()).run(stop, 0.01)
    said = capsys.readouterr().out
    assert said.count("Nothing listens there.") == 1
    assert said.count("works again") == 1
    assert "0a1b2c3decs01" in (tmp_path / "hosts").read_text("utf-8")


def test_a_file_that_cannot_be_written_is_trouble_and_no_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    stop = threading.Event()

    def once() -> Plan:
        stop.set()
        return plan()

    Watcher(KeptFiles("hosts", tmp_path / "file" / "hosts"), once, None, SystemClock()).run(stop, 0.01)
    assert "The files stay as they are" in capsys.readouterr().out
