"""The loopback driver: a labelled simulation, for looking around. What it cannot do is refused at once, never pretended."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.deployment import Deployment

pytestmark = [pytest.mark.slow]


def test_a_simulation_says_so_and_refuses_what_it_cannot(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path / "home", "loopback")
    try:
        said = deployment.run("up", "--port", "0", "--detach", "--driver", "loopback").out
        assert "SIMULATION" in said
        assert "fabric probe" in said
        assert deployment.connection["fabric"] == "loopback"
        assert "SIMULATION" in deployment.run("status").out
        deployment.run("group", "create", "rg", "-l", "westeurope")
        deployment.vault("safe")
        refused = deployment.run("vnet", "create", "v", "-g", "rg", expect=1).err
        assert "no virtual networks here" in refused
        assert "NotImplemented" in refused
        assert deployment.run("vnet", "list", "--json").out == "[]\n"
        assert "NotImplemented" in deployment.run("vm", "exec", "web01", "--", "true", expect=1).err
    finally:
        deployment.stop()
    assert "SIMULATION" in deployment.run("fabric", "probe", "--driver", "loopback").out
