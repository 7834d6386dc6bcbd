"""Registration leaves an identity, or nothing; what the service refuses is said in its words and ours."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest

from tests.agent.peer import COMMUNICATION, LOGIN, Peer
from undercroft.agent.credentials import read_credentials
from undercroft.agent.identity import AgentHome
from undercroft.agent.lock import only_one
from undercroft.agent.registration import Registered, open_session, register
from undercroft.clock import SystemClock
from undercroft.errors import (
    Conflict,
    InvalidInput,
    LocalProblem,
    NotAuthenticated,
    NotAuthorized,
    RefusedByNetworkRule,
    Unavailable,
)

CLOCK = SystemClock()


def run(peer: Peer, home: AgentHome, folder: Path, name: str = "web01", *, fallback: bool = True) -> Registered:
    file = read_credentials(peer.credentials(folder / "vault.json"), CLOCK)
    said: list[str] = []
    return register(home, file, name, peer.names, CLOCK, said.append, public_fallback=fallback, account_seconds=1.5)


def test_registration_leaves_an_identity_that_only_its_owner_reads(registered: Registered, home: AgentHome) -> None:
    assert home.load() == registered.identity
    assert stat.S_IMODE(home.identity_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.root.stat().st_mode) == 0o700
    assert registered.accounts == (COMMUNICATION,)
    assert registered.warnings == ()
    ways = home.last_ways()
    assert (ways["backup"].path, ways["backup"].because) == ("private", "")
    assert ways["login"].host.startswith("login.")


def test_registering_again_keeps_the_container_and_replaces_the_key(
    peer: Peer, home: AgentHome, registered: Registered, tmp_path: Path
) -> None:
    again = run(peer, home, tmp_path)
    assert again.identity.container_id == registered.identity.container_id
    assert again.identity.private_key != registered.identity.private_key


def test_the_network_rule_refuses_the_public_path_and_says_why_it_was_taken(
    peer: Peer, home: AgentHome, tmp_path: Path
) -> None:
    peer.hide_private_names()
    peer.public_access = False
    with pytest.raises(RefusedByNetworkRule, match="denies public network access") as caught:
        run(peer, home, tmp_path)
    assert "NXDOMAIN" in caught.value.message and "privatelink" in caught.value.message
    assert not home.identity_file.exists()


def test_by_the_public_path_it_works_when_the_vault_allows_it_and_is_noted(
    peer: Peer, home: AgentHome, tmp_path: Path
) -> None:
    peer.hide_private_names()
    run(peer, home, tmp_path)
    way = home.last_ways()["backup"]
    assert way.path == "public" and "NXDOMAIN" in way.because and way.fallbacks == 1
    (told,) = [leg for leg in peer.told if leg["leg"] == "backup"]
    assert "privatelink" in told["because"]


def test_without_fallback_a_missing_private_name_is_final(peer: Peer, home: AgentHome, tmp_path: Path) -> None:
    peer.hide_private_names()
    with pytest.raises(Unavailable, match="publicFallback is off"):
        run(peer, home, tmp_path, fallback=False)


@pytest.mark.parametrize("how", ["name", "connect"])
def test_an_unreachable_login_endpoint_names_the_articles_requirement(
    peer: Peer, home: AgentHome, tmp_path: Path, how: str
) -> None:
    if how == "name":
        del peer.names.table[LOGIN]
        file = peer.credentials(tmp_path / "v.json")
    else:
        file = peer.credentials(tmp_path / "v.json", loginEndpoint=f"https://{LOGIN}:1")
    with pytest.raises(Unavailable, match="Microsoft Entra ID") as caught:
        register(home, read_credentials(file, CLOCK), "web01", peer.names, CLOCK, lambda line: None)
    assert caught.value.code == "UserErrorCannotConnectToAzureActiveDirectoryService"
    assert LOGIN in caught.value.message


@pytest.mark.parametrize("code", ["UserErrorVaultCredentialsExpired", "UserErrorVaultCredentialsSuperseded"])
def test_credentials_that_the_service_refuses_say_what_to_do(
    peer: Peer, home: AgentHome, tmp_path: Path, code: str
) -> None:
    peer.plan.add("POST /v1/register", 403, code)
    with pytest.raises(NotAuthorized, match="credentials") as caught:
        run(peer, home, tmp_path)
    assert caught.value.code == code


def test_an_unknown_client_gets_no_token(peer: Peer, home: AgentHome, tmp_path: Path) -> None:
    path = peer.credentials(tmp_path / "v.json")
    peer.keys.clear()
    with pytest.raises(NotAuthenticated, match="unknown client"):
        register(home, read_credentials(path, CLOCK), "web01", peer.names, CLOCK, lambda line: None)


def test_a_bad_machine_name_is_the_callers_mistake(peer: Peer, home: AgentHome, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="not a machine name"):
        run(peer, home, tmp_path, "no spaces please")


def test_the_communication_account_is_waited_for(peer: Peer, home: AgentHome, tmp_path: Path) -> None:
    peer.pending["container"] = 2
    assert run(peer, home, tmp_path).accounts == (COMMUNICATION,)


def test_an_account_that_does_not_come_is_a_warning_naming_the_endpoint(
    peer: Peer, home: AgentHome, tmp_path: Path
) -> None:
    peer.pending["container"] = 1000
    (warning,) = run(peer, home, tmp_path).warnings
    assert "did not become ready on this endpoint" in warning and "subnet" in warning
    assert home.identity_file.exists()


def test_account_names_missing_in_a_custom_dns_are_each_named(peer: Peer, home: AgentHome, tmp_path: Path) -> None:
    del peer.names.table[f"{COMMUNICATION}.blob.core.windows.net"]
    del peer.names.table[f"{COMMUNICATION}.queue.core.windows.net"]
    blob, queue = run(peer, home, tmp_path).warnings
    assert f"{COMMUNICATION}.blob.core.windows.net: NXDOMAIN" in blob and "A record" in blob
    assert f"{COMMUNICATION}.queue.core.windows.net: NXDOMAIN" in queue


def test_a_lost_answer_is_asked_for_again(peer: Peer, home: AgentHome, tmp_path: Path) -> None:
    lost = peer.plan.add("POST /v1/register", 0, after=True)
    run(peer, home, tmp_path)
    assert lost.hit == 1 and len(peer.containers) == 1


def test_a_busy_service_is_waited_for_and_its_retry_after_kept(peer: Peer, home: AgentHome, tmp_path: Path) -> None:
    busy = peer.plan.add("POST /v1/register", 503, "ServerBusy", times=2, headers={"Retry-After": "1"})
    start = CLOCK.monotonic()
    run(peer, home, tmp_path)
    assert busy.hit == 2 and CLOCK.monotonic() - start >= 2


def test_a_token_that_is_not_accepted_any_more_is_replaced_once(
    peer: Peer, registered: Registered, home: AgentHome
) -> None:
    session = open_session(home.load(), peer.names, CLOCK)
    try:
        session.fetch("fc1", "/v1/container")
        peer.tokens.clear()
        session.fetch("fc1", "/v1/container")
        peer.plan.add("GET /v1/container", 401, "AuthenticationFailed", times=2)
        with pytest.raises(NotAuthenticated):
            session.fetch("fc1", "/v1/container")
    finally:
        session.close()


def test_tokens_are_kept_until_shortly_before_they_expire(peer: Peer, registered: Registered, home: AgentHome) -> None:
    peer.token_seconds = 2
    session = open_session(home.load(), peer.names, CLOCK)
    try:
        before = len(peer.tokens)
        for _ in range(3):
            session.fetch("fc1", "/v1/container")
        assert len(peer.tokens) == before + 1
        threading.Event().wait(1.1)
        session.fetch("fc1", "/v1/container")
        assert len(peer.tokens) == before + 2
    finally:
        session.close()


def test_connections_are_kept(peer: Peer, registered: Registered, home: AgentHome) -> None:
    session = open_session(home.load(), peer.names, CLOCK)
    try:
        peer.names.asked.clear()
        for _ in range(5):
            session.fetch("fc1", "/v1/container")
        assert len(peer.names.asked) == 2  # login, fc1
    finally:
        session.close()


def test_no_identity_and_a_damaged_one_are_told_apart(home: AgentHome) -> None:
    with pytest.raises(LocalProblem, match="not registered"):
        home.load()
    home.prepare()
    home.identity_file.write_text("{")
    with pytest.raises(LocalProblem, match="damaged"):
        home.load()


def test_only_one_at_a_time(home: AgentHome) -> None:
    home.prepare()
    with (
        only_one(home.lock_file, "agent backup"),
        pytest.raises(Conflict, match=r"agent backup \(process \d+\)"),
        only_one(home.lock_file, "again"),
    ):
        pass
    with only_one(home.lock_file, "agent backup"):
        pass
