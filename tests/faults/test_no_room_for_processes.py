"""A process of the node died and the machine has no room for another: the supervisor goes on trying, and ends nobody else."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from undercroft.config import Home
from undercroft.errors import Unavailable
from undercroft.supervisor import Supervisor, _Child


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


def test_the_child_that_keeps_dying_is_the_one_that_is_counted(tmp_path: Path) -> None:
    supervisor = Supervisor(Home(tmp_path), 0, "loopback")
    for name in ("fabric", "dns", "data", "node") * 5:
        supervisor._bury(_Child(name, 0, os.open(os.devnull, os.O_RDONLY), None))
    with pytest.raises(Unavailable, match="dns process died 6 times"):
        supervisor._bury(_Child("dns", 0, os.open(os.devnull, os.O_RDONLY), None))
