"""The route table: from a path to a handler, in time that does not grow with the number of routes.

Patterns are compared segment by segment without case. Where a literal and a variable both match, the literal wins, so the longest
literal pattern is found first. A pattern that begins with ``/{scope...}/providers/…`` stands for that provider under any scope
(role assignments are such *extension* resources); it is tried last, at the innermost ``providers`` of the path.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from undercroft.arm.call import Route
from undercroft.errors import CapabilityMissing, MethodNotAllowed, NotFound

__all__ = ["Match", "RouteTable", "resource_types"]

_SCOPE = "{scope...}"


@dataclass(frozen=True, slots=True)
class Match:
    route: Route
    parameters: Mapping[str, str]
    scope: tuple[str, ...] | None
    """For an extension resource: the segments of the scope it stands under; None for all others."""


@dataclass(slots=True)
class _Node:
    literals: dict[str, _Node] = field(default_factory=dict)
    variable: _Node | None = None
    routes: dict[str, tuple[Route, tuple[str, ...]]] = field(default_factory=dict)
    """By verb: the route and the names of its variables in order."""


class RouteTable:
    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes = tuple(routes)
        self._plain = _Node()
        self._extensions = _Node()
        for route in self.routes:
            self._add(route)
        self._types = resource_types(self.routes)
        self._namespaces = {namespace.lower(): namespace for namespace in self._types}

    def _add(self, route: Route) -> None:
        segments = route.pattern.strip("/").split("/")
        node = self._plain
        if segments[0] == _SCOPE:
            node, segments = self._extensions, segments[1:]
        names: list[str] = []
        for segment in segments:
            if segment.startswith("{") and segment.endswith("}"):
                names.append(segment[1:-1])
                node.variable = node.variable or _Node()
                node = node.variable
            else:
                node = node.literals.setdefault(segment.lower(), _Node())
        if route.method in node.routes:
            raise ValueError(f"two routes for {route.method} {route.pattern}")
        node.routes[route.method] = (route, tuple(names))

    def match(self, method: str, segments: tuple[str, ...]) -> Match:
        """The route for this verb and path, or the error that says which of the two is not there."""
        lowered = tuple(segment.lower() for segment in segments)
        allowed: set[str] = set()
        for start in self._starts(lowered):
            root = self._plain if start is None else self._extensions
            offset = start or 0
            for node, values in _walk(root, lowered, segments, offset):
                found = node.routes.get(method)
                if found is not None:
                    route, names = found
                    parameters = dict(zip(names, values, strict=True))
                    if start is not None:
                        parameters["scope"] = "/" + "/".join(segments[:start])
                    return Match(route, MappingProxyType(parameters), None if start is None else segments[:start])
                allowed |= node.routes.keys()
        if allowed:
            raise MethodNotAllowed(
                f"The resource '/{'/'.join(segments)}' does not support {method}; it supports {', '.join(sorted(allowed))}."
            )
        raise self._unknown(method, lowered, segments)

    def _starts(self, lowered: tuple[str, ...]) -> list[int | None]:
        inner = [index for index in range(len(lowered) - 1, -1, -1) if lowered[index] == "providers"]
        return [None, *inner]

    def _unknown(self, method: str, lowered: tuple[str, ...], segments: tuple[str, ...]) -> Exception:
        at = max((index for index, segment in enumerate(lowered) if segment == "providers"), default=None)
        if at is None or at + 1 >= len(segments):
            return NotFound(
                f"There is nothing at '/{'/'.join(segments)}'. Resources are at /subscriptions/{{id}}/resourceGroups/{{name}}/"
                "providers/{namespace}/{type}/{name}.",
                code="InvalidResourceType",
            )
        namespace = self._namespaces.get(lowered[at + 1])
        if namespace is None:
            return NotFound(
                f"The resource namespace '{segments[at + 1]}' is invalid. Namespaces here: {', '.join(sorted(self._types))}.",
                code="InvalidResourceNamespace",
            )
        types = "/".join(segments[at + 2 :: 2]) or "(none)"
        return CapabilityMissing(
            f"{method} of the resource type '{namespace}/{types}' is not implemented.", target=types
        )


def _walk(
    root: _Node, lowered: tuple[str, ...], segments: tuple[str, ...], offset: int
) -> Iterable[tuple[_Node, tuple[str, ...]]]:
    """Every node that the path leads to, literals before variables."""
    stack: list[tuple[_Node, int, tuple[str, ...]]] = [(root, offset, ())]
    while stack:
        node, index, values = stack.pop()
        if index == len(segments):
            if node.routes:
                yield node, values
            continue
        if node.variable is not None:
            stack.append((node.variable, index + 1, (*values, segments[index])))
        literal = node.literals.get(lowered[index])
        if literal is not None:
            stack.append((literal, index + 1, values))


def resource_types(routes: Iterable[Route]) -> Mapping[str, tuple[str, ...]]:
    """Namespace to resource types, as the routes spell them: what this deployment can do."""
    found: dict[str, set[str]] = {}
    for route in routes:
        segments = route.pattern.strip("/").split("/")
        if "providers" not in segments:
            continue
        at = len(segments) - 1 - segments[::-1].index("providers")
        rest = segments[at + 1 :]
        if not rest or rest[0].startswith("{"):
            continue
        types = rest[1::2]
        complete = [kind for kind in types if not kind.startswith("{")]
        known = found.setdefault(rest[0], set())
        if complete and complete == types and "locations" not in types and len(rest) % 2:
            known.add("/".join(types))
    return MappingProxyType({namespace: tuple(sorted(types)) for namespace, types in sorted(found.items())})
