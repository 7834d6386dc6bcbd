"""Whatever is sent, the answer is one of ARM's errors or a success, never a 500 and never a broken connection."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.arm.control_plane import API, Answer, ControlPlane, control_plane

TESTED = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])

SEGMENT = st.one_of(
    st.sampled_from(
        [
            *("subscriptions", "resourceGroups", "resourcegroups", "providers", "resources", "locations", "tenants"),
            *("Microsoft.Authorization", "Microsoft.Resources", "roleAssignments", "roleDefinitions", "operations"),
            *("oauth2", "v2.0", "token", "keys", "discovery", "msgraph", "v1.0", "servicePrincipals", "metadata"),
            *("endpoints", "{scope...}", "~", "%2e%2e", "..", "", ";", "%3B", "rg", "adfs", "*", "\u00fc"),
        ]
    ),
    st.text(max_size=12),
)
METHOD = st.sampled_from(["GET", "PUT", "POST", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE"])
QUERY = st.dictionaries(
    st.one_of(st.sampled_from(["$filter", "$top", "$skiptoken", "$expand", "api-version"]), st.text(max_size=8)),
    st.text(max_size=20),
    max_size=3,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["location", "tags", "properties", "roleDefinitionId", "principalId", "id", "displayName", "ids"]
            )
            | st.text(max_size=5),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
BODY = st.one_of(st.binary(max_size=60), JSON.map(lambda value: json.dumps(value).encode()))


class Runner:
    """Hypothesis is synchronous: one plane and one loop for all its examples."""

    def __init__(self, folder: Path) -> None:
        self._loop = asyncio.new_event_loop()
        self._context = control_plane(folder)
        self.plane: ControlPlane = self._loop.run_until_complete(self._context.__aenter__())

    def send(self, method: str, path: str, **more: Any) -> Answer:
        return self._loop.run_until_complete(self.plane.send(method, path, **more))

    def close(self) -> None:
        self._loop.run_until_complete(self._context.__aexit__(None, None, None))
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    running = Runner(tmp_path_factory.mktemp("plane"))
    yield running
    running.close()


def sound(answer: Answer, method: str = "GET") -> None:
    assert answer.status < 500 or answer.status == 501, answer.text
    if answer.status >= 400 and method != "HEAD":
        assert answer.json["error"], answer.text


@TESTED
@given(method=METHOD, segments=st.lists(SEGMENT, max_size=9), query=QUERY, body=BODY)
def test_any_request(runner: Runner, method: str, segments: list[str], query: dict[str, str], body: bytes) -> None:
    path = "/" + "/".join(quote(segment, safe="*{}~;%") for segment in segments)
    parameters = "&".join(
        f"{quote(name)}={quote(value)}" for name, value in {"api-version": "2024-01-01", **query}.items()
    )
    sound(runner.send(method, f"{path}?{parameters}", data=body), method)


@TESTED
@given(method=METHOD, segments=st.lists(SEGMENT, max_size=6), body=BODY)
def test_anything_below_our_subscription(runner: Runner, method: str, segments: list[str], body: bytes) -> None:
    rest = "/".join(quote(segment, safe="*{}~;%") for segment in segments)
    sound(runner.send(method, f"{runner.plane.subscription}/{rest}?{API}", data=body), method)


@TESTED
@given(body=BODY)
def test_any_body_of_a_group(runner: Runner, body: bytes) -> None:
    sound(runner.send("PUT", f"{runner.plane.subscription}/resourceGroups/rg?{API}", data=body))


@TESTED
@given(body=BODY)
def test_any_body_of_a_role_assignment(runner: Runner, body: bytes) -> None:
    name = "00000000-0000-4000-8000-000000000001"
    path = f"{runner.plane.subscription}/providers/Microsoft.Authorization/roleAssignments/{name}?{API}"
    sound(runner.send("PUT", path, data=body))


@TESTED
@given(
    form=st.dictionaries(
        st.sampled_from(["grant_type", "client_id", "client_secret", "scope", "resource", "client_assertion", "x"]),
        st.one_of(st.text(max_size=20), st.sampled_from(["client_credentials", "a.b.c", "e30.e30.e30", "/.default"])),
        max_size=6,
    )
)
def test_any_form_at_login(runner: Runner, form: dict[str, str]) -> None:
    answer = runner.send("POST", runner.plane.token_path, data=form, token="")
    assert 400 <= answer.status < 500 and answer.json["error_codes"]


@TESTED
@given(body=st.binary(max_size=80))
def test_any_bytes_at_login(runner: Runner, body: bytes) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = runner.send("POST", runner.plane.token_path, data=body, token="", headers=headers)
    assert 400 <= answer.status < 500 and answer.json["error_codes"]


@TESTED
@given(text=st.text(max_size=40))
def test_any_filter(runner: Runner, text: str) -> None:
    for collection in ("resourceGroups", "resources", "providers/Microsoft.Authorization/roleAssignments"):
        sound(runner.send("GET", f"{runner.plane.subscription}/{collection}?{API}&$filter={quote(text)}"))
