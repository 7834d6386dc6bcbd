"""Role definitions: Azure's built-in roles and what each allows.

``roles.json`` holds the facts (role ids, names, action lists) of the roles that backup and its networks need. An action is
granted when a permission's ``actions`` match it and its ``notActions`` do not; ``*`` stands for any characters, slashes included,
and case does not matter. Data actions are separate lists with the same rule.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

import msgspec

__all__ = ["OWNER", "Permission", "RoleDefinition", "built_in", "by_id", "by_name"]


class Permission(msgspec.Struct, frozen=True, rename="camel"):
    actions: tuple[str, ...]
    not_actions: tuple[str, ...]
    data_actions: tuple[str, ...]
    not_data_actions: tuple[str, ...]


class RoleDefinition(msgspec.Struct, frozen=True, rename="camel"):
    name: str
    """A GUID, the same in every Azure tenant."""
    role_name: str
    description: str
    permissions: tuple[Permission, ...]

    def allows(self, action: str) -> bool:
        return any(_matches(p.actions, action) and not _matches(p.not_actions, action) for p in self.permissions)

    def allows_data(self, action: str) -> bool:
        return any(
            _matches(p.data_actions, action) and not _matches(p.not_data_actions, action) for p in self.permissions
        )


@cache
def _pattern(patterns: tuple[str, ...]) -> re.Pattern[str]:
    parts = (".*".join(re.escape(piece) for piece in pattern.split("*")) for pattern in patterns)
    return re.compile("|".join(parts) if patterns else r"(?!)", re.IGNORECASE)


def _matches(patterns: tuple[str, ...], action: str) -> bool:
    return _pattern(patterns).fullmatch(action) is not None


@cache
def built_in() -> tuple[RoleDefinition, ...]:
    text = resources.files("undercroft.identity").joinpath("roles.json").read_bytes()
    return msgspec.json.decode(text, type=tuple[RoleDefinition, ...])


@cache
def _by_guid() -> dict[str, RoleDefinition]:
    return {role.name: role for role in built_in()}


def by_id(role_definition_id: str) -> RoleDefinition | None:
    """By GUID, or by the id of a role definition at any scope: the GUID at its end decides."""
    return _by_guid().get(role_definition_id.rstrip("/").rsplit("/", 1)[-1].lower())


def by_name(role_name: str) -> RoleDefinition | None:
    return next((role for role in built_in() if role.role_name.lower() == role_name.lower()), None)


OWNER = "8e3af657-a8ff-443c-a75c-2fe8c4bcb635"
