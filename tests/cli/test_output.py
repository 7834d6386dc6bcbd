"""What the command line prints of what others said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from undercroft.cli import vaults
from undercroft.cli.management import plain

FORGED = "no record\r\n(!) web02: gone\x1b[1A\x1b[2K\u202e\x9b2J"


class Told:
    """ARM, of one host that is compromised."""

    def id(self, *words: str) -> str:
        return "/v"

    def list(self, *words: str) -> list[dict[str, Any]]:
        seen = {"leg": "backup", "path": "public", "endpoint": None, "fallbacks": 1, "proxy": FORGED}
        properties = {
            "friendlyName": "web01",
            "registrationStatus": "Registered",
            "containerHealthState": "Warning",
            "mabContainerHealthDetails": [{"message": FORGED, "recommendations": ["Link the zones."]}],
            "extendedInfo": {"paths": [seen]},
        }
        return [{"properties": properties}]


def test_a_host_writes_no_line_of_another(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(vaults, "connect", lambda home: Told())
    vaults.containers("safe", group="g", home=tmp_path)
    lines = capsys.readouterr().out.split("\n")
    assert len(lines) == 5 and lines[3].startswith("(!) web01: no record")
    assert all(line.isprintable() for line in lines)


def test_names_in_any_language_are_printed_as_they_are() -> None:
    assert plain("Überträge/日本語 'x'") == "Überträge/日本語 'x'"
