"""SAS: our signatures are Azure's, any text is a SAS or one error, and nothing signed may change."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl

import pytest
from azure.storage.blob import BlobSasPermissions, ContainerSasPermissions, generate_blob_sas, generate_container_sas
from hypothesis import given
from hypothesis import strategies as st

from undercroft.dataplane import sas
from undercroft.errors import CapabilityMissing, NotAuthenticated

KEY = bytes(range(64))
NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)


def query(text: str) -> dict[str, str]:
    return dict(parse_qsl(text, keep_blank_values=True))


def test_azures_signer_and_ours_agree() -> None:
    key = base64.b64encode(KEY).decode()
    container = generate_container_sas(
        "acc", "con", account_key=key, permission=ContainerSasPermissions(read=True, list=True), expiry=LATER, start=NOW
    )
    found = sas.parse(query(container))
    sas.verify(found, "acc", KEY, "con", "packs/x", NOW)
    sas.verify(found, "acc", KEY, "con", None, NOW)
    blob = generate_blob_sas(
        "acc", "con", "packs/x", account_key=key, permission=BlobSasPermissions(read=True), expiry=LATER
    )
    sas.verify(sas.parse(query(blob)), "acc", KEY, "con", "packs/x", NOW)
    for other in ("packs/y", None):
        with pytest.raises(NotAuthenticated):
            sas.verify(sas.parse(query(blob)), "acc", KEY, "con", other, NOW)


GRANT = query(sas.grant("acc", KEY, "con", "c", NOW, LATER))


@pytest.mark.parametrize(
    ("account", "container", "key", "now"),
    [
        ("other", "con", KEY, NOW),
        ("acc", "other", KEY, NOW),
        ("acc", "con", KEY[::-1], NOW),
        ("acc", "con", KEY, NOW - timedelta(seconds=1)),
        ("acc", "con", KEY, LATER),
    ],
)
def test_a_grant_is_good_where_and_when_it_says(account: str, container: str, key: bytes, now: datetime) -> None:
    sas.verify(sas.parse(GRANT), "acc", KEY, "con", "packs/x", LATER - timedelta(seconds=1))
    with pytest.raises(NotAuthenticated):
        sas.verify(sas.parse(GRANT), account, key, container, "packs/x", now)


@given(st.sampled_from(sorted(GRANT)), st.text(max_size=40))
def test_no_parameter_may_change(name: str, value: str) -> None:
    changed = GRANT | {name: value}
    try:
        found = sas.parse(changed)
        sas.verify(found, "acc", KEY, "con", "packs/x", NOW)
    except NotAuthenticated:
        return
    assert value == GRANT[name] or (name == "sig" and found.signature == sas.parse(GRANT).signature)


@given(st.dictionaries(st.sampled_from([*sorted(sas.PARAMETERS), "si", "sip", "x"]), st.text(max_size=30)))
def test_any_query_is_a_sas_or_one_error(given_query: dict[str, str]) -> None:
    try:
        sas.parse(given_query)
    except (NotAuthenticated, CapabilityMissing):
        pass
