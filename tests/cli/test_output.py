"""What the command line prints of what others said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from undercroft.cli import vaults, vms
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


class Listed:
    """ARM, of two hosts and the interfaces of a host and an endpoint."""

    def id(self, *words: str) -> str:
        return "/s"

    def list(self, path: str, kind: str) -> list[dict[str, Any]]:
        if kind.endswith("/virtualMachines"):
            return [{"id": f"/subscriptions/s/resourceGroups/RG/x/{name}", "name": name} for name in ("Web01", "web02")]
        configurations = [{"properties": {"privateIPAddress": f"10.1.1.{last}"}} for last in (4, 5)]
        of_vm = {
            "virtualMachine": {"id": "/subscriptions/s/resourcegroups/rg/x/web01"},
            "ipConfigurations": configurations,
        }
        return [{"properties": of_vm}, {"properties": {"ipConfigurations": configurations}}]


def test_vms_are_listed_with_their_addresses(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(vms, "connect", lambda home: Listed())
    vms.list_(home=tmp_path)
    header, _, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == ["Name", "Resource", "group", "Location", "Addresses"]
    assert first.split() == ["Web01", "RG", "10.1.1.4,", "10.1.1.5"] and second.split() == ["web02", "RG"]
