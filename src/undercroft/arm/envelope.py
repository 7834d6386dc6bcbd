"""The ARM form of a resource: id, name, type, location, tags, etag, properties."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from undercroft.arm.etags import quoted
from undercroft.arm.resources import Resource

__all__ = ["nested", "tracked"]


def tracked(
    resource: Resource[Any], properties: Any, *, type: str | None = None, extra: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A resource with location and tags. ``extra`` are members beside ``properties`` (sku, identity)."""
    shown = nested(resource, properties, type=type, extra=extra)
    shown["location"] = resource.location
    shown["tags"] = dict(resource.tags)
    return shown


def nested(
    resource: Resource[Any], properties: Any, *, type: str | None = None, extra: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A resource inside another one: without location and tags."""
    shown: dict[str, Any] = {
        "id": str(resource.id),
        "name": resource.id.name,
        "type": type or resource.id.type,
        "etag": quoted(resource.etag),
    }
    shown |= dict(extra or {})
    shown["properties"] = properties
    return shown
