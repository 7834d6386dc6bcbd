from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.peer import Peer
from undercroft.agent.credentials import read_credentials
from undercroft.agent.identity import AgentHome
from undercroft.agent.registration import Registered, register
from undercroft.clock import SystemClock


@pytest.fixture(autouse=True)
def no_proxy_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent reads them, and the peer is on loopback."""
    for name in ("https_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def peer() -> Iterator[Peer]:
    with Peer() as running:
        yield running


@pytest.fixture
def home(tmp_path: Path) -> AgentHome:
    return AgentHome(tmp_path / "agent")


@pytest.fixture
def registered(peer: Peer, home: AgentHome, tmp_path: Path) -> Registered:
    """This host is a container of the peer's vault."""
    clock = SystemClock()
    file = read_credentials(peer.credentials(tmp_path / "vault.json"), clock)
    return register(home, file, "web01", peer.names, clock, lambda line: None)
