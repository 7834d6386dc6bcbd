"""Admission as rules: every combination decided the same way by a second, plainer statement of protocol.md section 2."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undercroft.dataplane.admission import (
    Bearer,
    Caller,
    SignedQuery,
    VaultAudience,
    VaultRule,
    address,
    credential,
    enter,
)
from undercroft.dataplane.hosts import Host, Hosts, without_port
from undercroft.errors import Misdirected, NotAuthenticated, NotAuthorized, RefusedByNetworkRule, UndercroftError
from undercroft.names import NameSuffixes
from undercroft.vnet.doors import Door

SUFFIXES = NameSuffixes()
HOSTS = Hosts(SUFFIXES)
ONE, TWO = 1234567890123456, 6543210987654321
NAMES = [
    SUFFIXES.backup_member(ONE, "fc1", "eus"),
    SUFFIXES.backup_member(ONE, "id1", "eus"),
    SUFFIXES.backup_member(TWO, "fc1", "eus"),
    SUFFIXES.public_backup("fc1", "eus"),
    SUFFIXES.public_backup("fc1", "wus"),
    SUFFIXES.storage_member("0a1b2c3dprot01", "blob"),
    SUFFIXES.storage_member("0a1b2c3decs01", "queue"),
    SUFFIXES.storage_member("0a1b2c3dprot02", "blob"),
    "0a1b2c3dprot02.blob.core.windows.net",
    "0a1b2c3dprot02.z99.blob.storage.azure.net",
    SUFFIXES.login,
    SUFFIXES.management,
    "example.com",
    "pod01-fc1.privatelink.eus.backup.windowsazure.com",
    "0a1b2c3dprot01.blob.core.windows.net.example.com",
    "",
]
SERVICES = ["backup", "blob", "queue", "login", "management"]

doors = st.one_of(
    st.sampled_from([Door("n", service) for service in SERVICES]),
    st.builds(
        lambda fqdn, service, vault: Door("n", service, "pe", f"vault{vault}", vault, fqdn),
        st.sampled_from(NAMES),
        st.sampled_from(SERVICES[:3]),
        st.sampled_from([ONE, TWO]),
    ),
)
names = st.one_of(st.sampled_from(NAMES), st.text(max_size=40))
spellings = st.sampled_from([str.lower, str.upper, lambda text: f"{text}:443", lambda text: f" {text}. "])


@given(doors, st.none() | names, st.none() | names, spellings)
def test_address(door: Door, server_name: str | None, header: str | None, spelling: object) -> None:
    assert callable(spelling)
    sent = None if header is None else spelling(header)
    name = without_port(sent) if sent else ""
    agrees = bool(sent) and server_name is not None and without_port(server_name) == name
    known = HOSTS.parse(name)
    if door.public:
        right = known is not None and known.service == door.service and known.vault_id is None
    else:
        right = known is not None and door.fqdn is not None and door.fqdn.lower() == name
    if agrees and right:
        assert address(door, server_name, sent, HOSTS).name == name
    else:
        with pytest.raises(Misdirected):
            address(door, server_name, sent, HOSTS)


callers = st.builds(
    Caller,
    st.sampled_from(["Container", "VaultCredential", "Sas", "ServicePrincipal"]),
    st.just("p"),
    st.sampled_from(["vault1", "vault2", ""]),
    st.sampled_from(["", f"api://t/RecoveryServiceVault/eus/v/{ONE}", f"api://t/RecoveryServiceVault/eus/v/{TWO}"]),
)
rules = st.none() | st.builds(
    VaultRule,
    st.sampled_from(["vault1", "vault2"]),
    st.sampled_from([ONE, TWO]),
    st.sampled_from(["eus", "wus"]),
    st.booleans(),
    st.sampled_from([None, "eus", "wus"]),
)
entered = st.one_of(
    st.just(Door("n", "backup")),
    st.builds(
        lambda key, far: Door("n", "backup", "pe", key, ONE, "x", far),
        st.sampled_from(["vault1", "vault2"]),
        st.booleans(),
    ),
)
hosts = st.sampled_from([Host("h", "backup", geo="eus"), Host("h", "backup", geo="wus"), Host("h", "blob")])
kinds = st.frozensets(st.sampled_from(["Container", "VaultCredential", "Sas"]))


@given(entered, hosts, callers, rules, kinds)
def test_enter(door: Door, host: Host, caller: Caller, vault: VaultRule | None, allowed: frozenset[str]) -> None:
    expected: type[UndercroftError] | None = None
    if vault is None or vault.key != caller.vault_key or (not door.public and door.vault_key != caller.vault_key):
        expected = NotAuthorized
    elif door.public and not vault.public_access:
        expected = RefusedByNetworkRule
    elif (
        (caller.audience and not caller.audience.endswith(str(vault.vault_id)))
        or (host.geo is not None and host.geo != (vault.paired_geo if door.secondary else vault.geo))
        or caller.kind not in allowed
    ):
        expected = NotAuthorized
    if expected is None:
        enter(door, host, caller, vault, allowed)
    else:
        with pytest.raises(expected) as caught:
            enter(door, host, caller, vault, allowed)
        assert type(caught.value) is expected


@given(st.sampled_from(["backup", "blob", "queue"]), st.none() | st.text(max_size=30), st.booleans())
def test_credential(service: str, authorization: str | None, signed: bool) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    query = {"sig": "x"} if signed else {}
    try:
        found = credential(service, headers, query)
    except UndercroftError as error:
        expected = 400 if service != "backup" and authorization is None and not signed else 401
        assert error.status == expected
    else:
        assert isinstance(found, Bearer if service == "backup" else SignedQuery)
        assert service == "backup" or authorization is None


def test_which_audiences_are_vaults() -> None:
    ours = VaultAudience("t")
    assert "api://t/RecoveryServiceVault/eus/v/1" in ours
    for other in (
        "api://u/RecoveryServiceVault/eus/v/1",
        "https://management.azure.com",
        "api://t/RecoveryServiceVault/eus/v",
        1,
    ):
        assert other not in ours


@given(st.text(max_size=200))
def test_any_text_is_a_host_or_none(text: str) -> None:
    found = HOSTS.parse(without_port(text))
    assert found is None or found.service in SERVICES


def test_without_a_token_is_401_not_403() -> None:
    with pytest.raises(NotAuthenticated):
        credential("backup", {"Authorization": "Basic x"}, {})
