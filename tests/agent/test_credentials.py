"""Every fault of a vault credentials file is named; the server decides whether a good file is still good."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest

from tests.agent.peer import Peer
from undercroft.agent.credentials import read_credentials
from undercroft.clock import ManualClock, SystemClock
from undercroft.errors import InvalidInput, LocalProblem


def test_a_good_file_is_read_without_warnings(peer: Peer, tmp_path: Path) -> None:
    file = read_credentials(peer.credentials(tmp_path / "v.json"), SystemClock())
    assert file.vault.vault_name == "vault1"
    assert file.warnings == ()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "not JSON"),
        (b"<xml/>", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[1]", "not an object"),
        (b"{}", "has no version"),
        (b'{"version":2}', "has version 2"),
        (b'{"version":true}', "has version True"),
        (b'{"version":1}', "vaultName"),
        (b" " * 300_000, "larger than 256 KiB"),
    ],
)
def test_what_is_not_a_credentials_file_is_refused_by_name(tmp_path: Path, content: bytes, named: str) -> None:
    path = tmp_path / "v.json"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=named) as caught:
        read_credentials(path, SystemClock())
    assert str(path) in caught.value.message
    assert "Download a new file" in caught.value.message


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"vaultId": "12a"}, "vaultId '12a'"),
        ({"vaultId": 12}, "vaultId"),
        ({"privateHost": "host.without.place"}, "privateHost"),
        ({"publicHost": "https://{svc}/x"}, "publicHost"),
        ({"loginEndpoint": "http://login"}, "loginEndpoint"),
        ({"privateKey": "nothing"}, "privateKey"),
        ({"certificate": "nothing"}, "certificate"),
        ({"caBundle": "nothing"}, "caBundle"),
        ({"issued": "yesterday"}, "issued"),
        ({"surprise": 1}, "surprise"),
        ({"audience": None}, "audience"),
    ],
)
def test_each_wrong_field_is_named(peer: Peer, tmp_path: Path, changes: dict[str, object], named: str) -> None:
    path = peer.credentials(tmp_path / "v.json", **changes)
    with pytest.raises(InvalidInput, match=named):
        read_credentials(path, SystemClock())


def test_a_key_of_another_certificate_is_refused(peer: Peer, tmp_path: Path) -> None:
    other = json.loads(peer.credentials(tmp_path / "other.json").read_text())
    path = peer.credentials(tmp_path / "v.json", privateKey=other["privateKey"])
    with pytest.raises(InvalidInput, match="does not belong"):
        read_credentials(path, SystemClock())


def test_a_missing_file_and_a_folder_are_local_problems(tmp_path: Path) -> None:
    with pytest.raises(LocalProblem, match="No such file"):
        read_credentials(tmp_path / "absent", SystemClock())
    with pytest.raises(LocalProblem, match="directory"):
        read_credentials(tmp_path, SystemClock())


def test_a_file_that_others_can_read_is_warned_of(peer: Peer, tmp_path: Path) -> None:
    path = peer.credentials(tmp_path / "v.json")
    path.chmod(0o644)
    (warning,) = read_credentials(path, SystemClock()).warnings
    assert "0644" in warning and "chmod 600" in warning


def test_an_old_file_is_a_warning_with_its_age_and_vault(peer: Peer, tmp_path: Path) -> None:
    clock = ManualClock(SystemClock().now())
    path = peer.credentials(tmp_path / "v.json")
    clock.advance(timedelta(hours=51))
    (warning,) = read_credentials(path, clock).warnings
    assert "51 hours ago" in warning and "vault1" in warning and "service decides" in warning
