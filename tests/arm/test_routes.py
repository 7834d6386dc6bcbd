from __future__ import annotations

import pytest

from undercroft.arm.call import Call, Reply, Route
from undercroft.arm.paths import named_id, parse_target
from undercroft.arm.routes import RouteTable, resource_types
from undercroft.errors import CapabilityMissing, MethodNotAllowed, NotFound


async def nothing(_call: Call) -> Reply:
    return Reply()


def table(*patterns: str) -> RouteTable:
    pairs = (pattern.split(" ") for pattern in patterns)
    return RouteTable(Route(method, path, None, nothing) for method, path in pairs)


def segments(path: str) -> tuple[str, ...]:
    return parse_target(path)[0]


def test_a_literal_wins_over_a_variable_however_the_routes_are_ordered() -> None:
    routes = table("GET /a/{x}", "GET /a/b", "GET /{y}/b/c", "GET /a/{x}/d")
    assert routes.match("GET", segments("/A/B")).route.pattern == "/a/b"
    assert routes.match("GET", segments("/a/q")).parameters == {"x": "q"}
    assert routes.match("GET", segments("/a/b/d")).parameters == {"x": "b"}
    assert routes.match("GET", segments("/a/b/c")).parameters == {"y": "a"}


def test_a_verb_on_a_shadowed_literal_is_still_found() -> None:
    routes = table("GET /a/b", "PUT /a/{x}")
    assert routes.match("PUT", segments("/a/b")).parameters == {"x": "b"}
    with pytest.raises(MethodNotAllowed, match="GET, PUT"):
        routes.match("DELETE", segments("/a/b"))


def test_an_extension_stands_under_any_scope() -> None:
    routes = table(
        "GET /{scope...}/providers/Microsoft.Authorization/roleAssignments/{name}",
        "GET /subscriptions/{s}/resourceGroups/{g}/providers/Microsoft.Network/virtualNetworks/{v}",
    )
    vnet = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/v"
    for scope in ("", "/subscriptions/s", "/subscriptions/s/resourceGroups/g", vnet):
        match = routes.match("GET", segments(f"{scope}/providers/microsoft.authorization/roleassignments/n"))
        assert match.parameters["name"] == "n"
        assert match.scope == segments(scope)
    assert routes.match("GET", segments(vnet)).scope is None
    with pytest.raises(CapabilityMissing, match="natGateways"):
        routes.match("GET", segments("/subscriptions/s/resourceGroups/g/providers/microsoft.network/natGateways/n"))
    with pytest.raises(NotFound) as refused:
        routes.match("GET", segments("/subscriptions/s/providers/Nope/x"))
    assert refused.value.code == "InvalidResourceNamespace"


def test_two_routes_of_one_pattern_are_a_defect() -> None:
    with pytest.raises(ValueError, match="two routes"):
        table("GET /a/{x}", "GET /A/{y}")


def test_matching_does_not_backtrack_for_ever() -> None:
    routes = table(*(f"GET /{'/'.join(f'{{x{i}}}' if i % 2 else 'a' for i in range(n))}" for n in range(2, 30)))
    with pytest.raises(NotFound):
        routes.match("GET", ("a",) * 200)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/subscriptions/s", "/subscriptions/s"),
        ("/subscriptions/s/resourceGroups", "/subscriptions/s"),
        ("/subscriptions/s/resourcegroups/g", "/subscriptions/s/resourceGroups/g"),
        ("/subscriptions/s/resourceGroups/g/providers/N/t", "/subscriptions/s/resourceGroups/g"),
        ("/subscriptions/s/resourceGroups/g/providers/N/t/n", "/subscriptions/s/resourceGroups/g/providers/N/t/n"),
        ("/subscriptions/s/resourceGroups/g/providers/N/t/n/u", "/subscriptions/s/resourceGroups/g/providers/N/t/n"),
        ("/subscriptions/s/providers/N/t/n", "/subscriptions/s/providers/N/t/n"),
        ("/subscriptions/s/providers/N/register", "/subscriptions/s"),
        ("/tenants", ""),
    ],
)
def test_the_id_that_a_path_names(path: str, expected: str) -> None:
    assert str(named_id(segments(path))) == expected


def test_types_are_read_from_the_routes() -> None:
    routes = table(
        "GET /subscriptions/{s}/resourceGroups/{g}/providers/Microsoft.Network/virtualNetworks/{v}",
        "GET /subscriptions/{s}/resourceGroups/{g}/providers/Microsoft.Network/virtualNetworks/{v}/subnets/{n}",
        "GET /subscriptions/{s}/resourceGroups/{g}/providers/Microsoft.Network/virtualNetworks/{v}/check",
        "GET /subscriptions/{s}/providers/Microsoft.Network/locations/{l}/operations/{o}",
        "GET /subscriptions/{s}/providers/{namespace}",
    ).routes
    assert dict(resource_types(routes)) == {"Microsoft.Network": ("virtualNetworks", "virtualNetworks/subnets")}
