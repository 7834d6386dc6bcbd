"""A process of the node died and the machine has no room for another: the supervisor goes on trying, and ends nobody else."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from undercroft.config import Home
from undercroft.supervisor import Supervisor


def test_a_machine_without_room_for_a_process_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reader, writer = os.pipe()
    tried: list[str] = []

    def launch(name: str) -> None:
        tried.append(name)
        if len(tried) == 2:
            os.write(writer, b"1")
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    supervisor = Supervisor(Home(tmp_path), 0, "loopback")
    monkeypatch.setattr(supervisor, "_launch", launch)
    supervisor.wait(reader)
    assert tried == ["fabric", "fabric"]
    assert "Cannot allocate memory" in capsys.readouterr().err
    os.close(reader)
    os.close(writer)
