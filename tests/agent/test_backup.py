"""Backups and restores through the peer: the real engine, real files, real sockets."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.agent.peer import ACCOUNT, Peer
from undercroft.agent import accounts, backup, heartbeat
from undercroft.agent.backup import BackupReport, run_backup
from undercroft.agent.identity import AgentHome
from undercroft.agent.interruption import Interrupted
from undercroft.agent.registration import Registered, open_session
from undercroft.agent.restore import RestoreReport, run_restore
from undercroft.agent.sources.files import FilesSource
from undercroft.agent.sources.files_target import FilesTarget
from undercroft.clock import SystemClock
from undercroft.errors import (
    Conflict,
    LocalProblem,
    NotAuthorized,
    NotFound,
    RefusedByNetworkRule,
    StorageFull,
    Unavailable,
    WrongPassphrase,
)

CLOCK = SystemClock()
PASSPHRASE = "correct horse battery staple"


class Host:
    """A registered host with a folder of files."""

    def __init__(self, peer: Peer, home: AgentHome, files: Path) -> None:
        self.peer, self.home, self.files = peer, home, files
        self.said: list[str] = []

    def back_up(self, passphrase: str = PASSPHRASE) -> BackupReport:
        identity = self.home.load()
        session = open_session(identity, self.peer.names, CLOCK)
        try:
            source = FilesSource(self.files)
            return run_backup(self.home, identity, session, source, passphrase, CLOCK, self.said.append)
        finally:
            session.close()

    def restore(self, target: Path, point: str = "latest", passphrase: str = PASSPHRASE) -> RestoreReport:
        session = open_session(self.home.load(), self.peer.names, CLOCK)
        try:
            return run_restore(self.home, session, point, FilesTarget(target), passphrase, CLOCK, self.said.append)
        finally:
            session.close()

    @property
    def blobs(self) -> dict[str, bytes]:
        return next(iter(self.peer.blobs.values()), {})

    def puts(self, kind: str) -> int:
        return sum(request.startswith("PUT") and f"/{kind}/" in request for _, _, request in self.peer.seen)


@pytest.fixture
def host(peer: Peer, registered: Registered, home: AgentHome, tmp_path: Path) -> Iterator[Host]:
    files = tmp_path / "files"
    (files / "sub").mkdir(parents=True)
    for number in range(20):
        (files / "sub" / f"small-{number}").write_bytes(os.urandom(1000 + number))
    (files / "large").write_bytes(os.urandom(5_000_000))
    yield Host(peer, home, files)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def eventually(true: Callable[[], bool], seconds: float = 15) -> None:
    deadline = CLOCK.monotonic() + seconds
    while not true():
        assert CLOCK.monotonic() < deadline
        threading.Event().wait(0.01)


def test_a_backup_becomes_a_point_that_restores(host: Host, tmp_path: Path) -> None:
    done = host.back_up()
    (made,) = host.peer.backups.values()
    assert made.status == "Committed" and made.point is not None and made.point["id"] == done.point
    assert done.summary.files == 21 and done.summary.path == "private"
    assert done.summary.sent == sum(map(len, host.blobs.values())) == done.summary.stored
    assert any("lost passphrase is final" in line for line in host.said)
    restored = host.restore(tmp_path / "restored")
    assert contents(tmp_path / "restored") == contents(host.files)
    assert restored.damaged == () and restored.summary.files == 21
    (told,) = host.peer.restores.values()
    assert told["done"]["status"] == "Completed"


def test_only_the_change_travels_the_second_time(host: Host) -> None:
    first = host.back_up()
    host.said.clear()
    (host.files / "sub" / "small-3").write_bytes(b"changed")
    second = host.back_up()
    assert second.summary.sent < first.summary.sent / 20
    assert not any("final" in line for line in host.said)
    assert first.point != second.point


def test_a_wrong_passphrase_is_told_before_anything_happens(host: Host, tmp_path: Path) -> None:
    host.back_up()
    before, backups = dict(host.blobs), len(host.peer.backups)
    with pytest.raises(WrongPassphrase):
        host.back_up("something else entirely")
    with pytest.raises(WrongPassphrase):
        host.restore(tmp_path / "restored", passphrase="something else entirely")
    assert host.blobs == before and len(host.peer.backups) == backups and not host.peer.restores


def test_what_the_service_lost_is_sent_again(host: Host, tmp_path: Path) -> None:
    host.back_up()
    for name in [name for name in host.blobs if name.startswith("packs/")]:
        del host.blobs[name]
    (host.files / "new").write_bytes(os.urandom(100_000))
    host.back_up()
    assert any("lacks" in line for line in host.said)
    host.restore(tmp_path / "restored")
    assert contents(tmp_path / "restored") == contents(host.files)


def test_a_lost_answer_to_the_commit_makes_one_point(host: Host) -> None:
    lost = host.peer.plan.add("POST .*/commit", 0, after=True)
    done = host.back_up()
    assert lost.hit == 1
    (made,) = host.peer.backups.values()
    assert made.point is not None and made.point["id"] == done.point


def test_the_account_is_waited_for(host: Host) -> None:
    host.peer.pending["backup"] = 2
    host.back_up()
    (made,) = host.peer.backups.values()
    assert made.renewals >= 2


def test_an_account_that_does_not_come_ends_the_backup_and_says_where_to_look(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup, "ACCOUNT_SECONDS", 0.3)
    monkeypatch.setattr(accounts, "PAUSE", 0.1)
    host.peer.pending["backup"] = 1000
    with pytest.raises(Unavailable, match="did not become ready on this endpoint"):
        host.back_up()
    (made,) = host.peer.backups.values()
    assert made.failure["code"] == "UserErrorAccountNotReady"


def test_a_storage_name_missing_in_a_custom_dns_is_named(host: Host) -> None:
    del host.peer.names.table[f"{ACCOUNT}.blob.core.windows.net"]
    with pytest.raises(Unavailable, match=rf"{ACCOUNT}\.blob\.core\.windows\.net: NXDOMAIN.*A record") as caught:
        host.back_up()
    assert caught.value.code == "UserErrorStorageAccountUnreachable"
    (made,) = host.peer.backups.values()
    assert made.status == "Failed" and ACCOUNT in made.failure["message"]


def test_storage_reached_by_the_public_door_of_a_denied_vault_names_the_record(host: Host) -> None:
    host.peer.plan.add("GET .*/packs/0+$", 403, "UserErrorPublicNetworkAccessDenied")
    with pytest.raises(RefusedByNetworkRule, match="A record"):
        host.back_up()


def test_a_removed_endpoint_asks_for_registration(host: Host) -> None:
    host.back_up()
    host.peer.registered = False
    with pytest.raises(NotAuthorized, match="agent register") as caught:
        host.back_up()
    assert "endpoint" in caught.value.message


def test_a_vault_that_is_gone_from_dns_and_denies_public_access_says_both(host: Host) -> None:
    host.back_up()
    host.peer.hide_private_names()
    host.peer.public_access = False
    with pytest.raises(RefusedByNetworkRule, match="NXDOMAIN"):
        host.back_up()


def test_a_full_store_ends_the_backup_and_the_next_one_resumes(host: Host) -> None:
    host.peer.blob_capacity = 1_000_000
    with pytest.raises(StorageFull):
        host.back_up()
    (made,) = host.peer.backups.values()
    assert made.failure["code"] == "InsufficientStorage"
    host.peer.blob_capacity = None
    host.back_up()


def test_the_service_hears_how_far_it_is_and_the_lease_is_renewed(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "PROGRESS_SECONDS", 0.05)
    monkeypatch.setattr(heartbeat, "LONGEST_RENEWAL", 0.1)
    host.peer.plan.add("PUT .*/packs/", 503, "ServerBusy", times=3, headers={"Retry-After": "1"})
    host.back_up()
    (made,) = host.peer.backups.values()
    assert made.progress and made.renewals >= 1


def test_a_backup_that_another_one_replaced_stops(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "PROGRESS_SECONDS", 0.05)
    host.peer.plan.add("PUT .*/packs/", 503, "ServerBusy", times=2, headers={"Retry-After": "1"})

    def expire() -> None:
        eventually(lambda: bool(host.peer.plan.faults[0].hit))
        next(iter(host.peer.backups.values())).status = "Expired"

    thread = threading.Thread(target=expire)
    thread.start()
    with pytest.raises(Conflict, match="Expired") as caught:
        host.back_up()
    thread.join()
    assert caught.value.code == "UserErrorBackupNotOpen"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_soon_and_the_service_is_told(host: Host, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    host.peer.plan.add("PUT .*/packs/", 503, "ServerBusy", times=1000, headers={"Retry-After": "30"})

    def interrupt() -> None:
        eventually(lambda: bool(host.peer.plan.faults[0].hit))
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    started = CLOCK.monotonic()
    thread.start()
    with pytest.raises(Interrupted, match=f"{number.name}.*run the command again"):
        host.back_up()
    thread.join()
    assert CLOCK.monotonic() - started < 10
    (made,) = host.peer.backups.values()
    assert made.status == "Failed" and made.failure["code"] == "Interrupted"
    assert signal.getsignal(number) is before


def test_a_damaged_pack_is_named_and_the_rest_restored(host: Host, tmp_path: Path) -> None:
    host.back_up()
    pack = max((name for name in host.blobs if name.startswith("packs/")), key=lambda name: len(host.blobs[name]))
    damaged = bytearray(host.blobs[pack])
    damaged[len(damaged) // 2] ^= 1
    host.blobs[pack] = bytes(damaged)
    done = host.restore(tmp_path / "restored")
    assert [(lost.path, lost.pack) for lost in done.damaged] == [("large", pack)]
    assert len(contents(tmp_path / "restored")) == 20
    (told,) = host.peer.restores.values()
    assert told["done"]["status"] == "CompletedWithWarnings"


def test_a_missing_pack_is_named_too(host: Host, tmp_path: Path) -> None:
    host.back_up()
    (host.files / "later").write_bytes(os.urandom(50_000))
    first = {name for name in host.blobs if name.startswith("packs/")}
    host.back_up()
    (second,) = {name for name in host.blobs if name.startswith("packs/")} - first
    del host.blobs[second]
    done = host.restore(tmp_path / "restored")
    assert any(lost.pack == second for lost in done.damaged)


def test_points_that_are_not_there(host: Host, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no recovery point"):
        host.restore(tmp_path / "restored")
    done = host.back_up()
    with pytest.raises(NotFound, match="agent points"):
        host.restore(tmp_path / "restored", "00000000-0000-0000-0000-000000000000")
    host.restore(tmp_path / "restored", done.point[:8])


def test_the_latest_point_is_found_on_the_first_page(host: Host, tmp_path: Path) -> None:
    done = [host.back_up() for _ in range(3)]  # a page of the peer is two
    host.peer.seen.clear()
    assert host.restore(tmp_path / "newest").point.id == done[-1].point
    assert sum("/v1/points" in path for *_, path in host.peer.seen) == 1
    assert host.restore(tmp_path / "oldest", done[0].point).point.id == done[0].point


def test_a_folder_that_is_not_empty_is_refused_and_the_service_is_told(host: Host, tmp_path: Path) -> None:
    host.back_up()
    with pytest.raises(Conflict, match="not empty"):
        host.restore(host.files)
    (told,) = host.peer.restores.values()
    assert told["done"]["status"] == "Failed"


def test_a_service_that_restarts_does_not_send_its_agents_to_the_public_door(host: Host, tmp_path: Path) -> None:
    """Killed half-way: what was acknowledged is not sent again, and a denied vault's refusal at the public door is not met."""
    host.peer.public_access = False
    (host.files / "larger").write_bytes(os.urandom(60_000_000))
    held = host.peer.plan.add("PUT .*/indexes/", 503, "ServerBusy", times=1)

    def restart() -> None:
        eventually(lambda: bool(held.hit))
        host.peer.stop("private")
        threading.Event().wait(1.5)
        host.peer.start_again("private")

    thread = threading.Thread(target=restart)
    thread.start()
    done = host.back_up()
    thread.join()
    assert done.summary.path == "private"
    assert host.puts("packs") <= 5
    host.restore(tmp_path / "restored")
    assert contents(tmp_path / "restored") == contents(host.files)


def test_the_job_leaves_a_log_in_the_communication_account_without_names_of_files(host: Host, tmp_path: Path) -> None:
    (host.files / "a-secret-name").write_bytes(b"x")
    done = host.back_up()
    host.restore(tmp_path / "restored")
    backed_up, restored = host.peer.logs.values()
    assert f"jobs/{done.job}/agent.log" in host.peer.logs
    assert "private path" in backed_up and done.point in backed_up and "files" in restored
    assert "a-secret-name" not in backed_up + restored


def test_a_log_that_cannot_be_stored_is_a_warning(host: Host) -> None:
    host.peer.plan.add("PUT .*/jobs/", 403, "AuthorizationFailed")
    host.back_up()
    assert any("log was not stored" in line for line in host.said)


def test_what_a_failure_tells_the_service_has_no_names_of_files(host: Host, tmp_path: Path) -> None:
    host.back_up()
    blocked = tmp_path / "a-secret-name"
    blocked.write_text("a file where a folder should be")
    with pytest.raises(LocalProblem, match="a-secret-name"):
        host.restore(blocked)
    (told,) = host.peer.restores.values()
    assert told["done"]["status"] == "Failed" and "a-secret-name" not in told["done"]["message"]
    assert not any("a-secret-name" in log for log in host.peer.logs.values())
