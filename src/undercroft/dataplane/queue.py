"""The Queue service: its addresses, names and admission are real; its operations are not built, and refused by name."""

from __future__ import annotations

from collections.abc import Mapping

from undercroft.errors import CapabilityMissing

__all__ = ["refuse"]

_OPERATIONS = {
    ("GET", "messages"): "Get Messages",
    ("POST", "messages"): "Put Message",
    ("PUT", "messages"): "Update Message",
    ("DELETE", "messages"): "Delete Message",
    ("GET", "list"): "List Queues",
    ("PUT", ""): "Create Queue",
    ("DELETE", ""): "Delete Queue",
    ("GET", "metadata"): "Get Queue Metadata",
    ("HEAD", "metadata"): "Get Queue Metadata",
    ("PUT", "metadata"): "Set Queue Metadata",
}


def refuse(method: str, path: str, query: Mapping[str, str]) -> CapabilityMissing:
    what = "messages" if "/messages" in path else query.get("comp", "")
    name = _OPERATIONS.get((method, what), f"{method} {what[:40]}".strip())
    return CapabilityMissing(
        f"The operation '{name}' is not implemented by this service: queues are served in a later version.", target=name
    )
