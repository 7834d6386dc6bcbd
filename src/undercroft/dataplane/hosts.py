"""Host names: which service, vault and account a name stands for. Rules about strings, without I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass

from undercroft.names import BACKUP_SERVICES, NameSuffixes

__all__ = ["Host", "Hosts", "without_port"]

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"


@dataclass(frozen=True, slots=True)
class Host:
    name: str
    service: str
    """``backup``, ``blob``, ``queue``, ``login`` or ``management``: what doors say as well."""
    role: str | None = None
    """Of a backup host: fc1 … wbcm1."""
    geo: str | None = None
    vault_id: int | None = None
    """Of a private backup host; None for the public ones."""
    account: str | None = None


def without_port(host: str) -> str:
    """``Host`` in the form names are compared: lower case, no port, no dot at the end."""
    name = host.strip().lower()
    head, colon, port = name.rpartition(":")
    if colon and (port.isdigit() or not port):
        name = head
    return name.rstrip(".")


class Hosts:
    """The names of one deployment. Nothing else is served, whatever DNS may say."""

    def __init__(self, suffixes: NameSuffixes) -> None:
        roles = "|".join(BACKUP_SERVICES)
        backup, storage = re.escape(suffixes.backup.lower()), re.escape(suffixes.storage.lower())
        self._public = re.compile(rf"pod01-({roles})\.({_LABEL})\.{backup}")
        self._private = re.compile(rf"([1-9][0-9]{{0,18}})-ab-pod01-({roles})\.privatelink\.({_LABEL})\.{backup}")
        partitioned = re.escape(suffixes.partitioned.lower()) or "(?!)"
        self._storage = re.compile(
            rf"([a-z0-9]{{3,24}})(?:\.(blob|queue)\.{storage}|\.z[0-9]{{2}}\.(blob)\.{partitioned})"
        )
        self._suffixes = suffixes
        self._fixed = {suffixes.login.lower(): "login", suffixes.management.lower(): "management"}

    def parse(self, name: str) -> Host | None:
        """None: no name of this deployment."""
        if name in self._fixed:
            return Host(name, self._fixed[name])
        if match := self._private.fullmatch(name):
            return Host(name, "backup", role=match[2], geo=match[3], vault_id=int(match[1]))
        if match := self._public.fullmatch(name):
            return Host(name, "backup", role=match[1], geo=match[2])
        if match := self._storage.fullmatch(name):
            account, service = match[1], match[2] or match[3]
            if self._suffixes.storage_member(account, service).lower() == name:  # an account has one name
                return Host(name, service, account=account)
        return None
