"""The backup service's messages (protocol.md section 4): what comes is refused when it has an unknown property."""

from __future__ import annotations

import re
from typing import Annotated, TypeVar

import msgspec

from undercroft.errors import InvalidInput, InvalidParameter
from undercroft.vault.points import ItemName, Statistics

__all__ = [
    "AccountNames",
    "BackupSession",
    "BeginBackup",
    "BeginRestore",
    "Commit",
    "Committed",
    "CompleteRestore",
    "ContainerState",
    "ErrorBody",
    "ErrorText",
    "Fail",
    "Grant",
    "Missing",
    "ObjectEntry",
    "ObjectList",
    "Paths",
    "PointEntry",
    "PointList",
    "Progress",
    "Register",
    "Registered",
    "RestoreSession",
    "TakenLeg",
    "decode",
]

T = TypeVar("T")

Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
Short = Annotated[str, msgspec.Meta(max_length=256)]
Id = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")]

_HEX = "[0-9a-f]{32}"  # patterns end in \Z: a line end may stand behind what $ matches
PackName = Annotated[str, msgspec.Meta(pattern=rf"^packs/{_HEX}\Z")]
IndexName = Annotated[str, msgspec.Meta(pattern=rf"^indexes/{_HEX}\Z")]
ManifestName = Annotated[str, msgspec.Meta(pattern=rf"^manifests/{_HEX}\Z")]


class _In(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    pass


class _Out(msgspec.Struct, frozen=True, rename="camel"):
    pass


class Register(_In, frozen=True):
    machine_name: str
    agent_version: Short
    operating_system: Short
    public_key: Annotated[str, msgspec.Meta(max_length=4096)]


class Registered(_Out, frozen=True):
    container_id: str
    container_name: str
    vault_name: str
    server_time: str


class AccountNames(_Out, frozen=True):
    name: str
    purpose: str
    blob_host: str
    queue_host: str | None


class ContainerState(_Out, frozen=True):
    container_id: str
    container_name: str
    vault_name: str
    registration: str
    last_door: str | None
    accounts: tuple[AccountNames, ...]
    pending: int
    missing_addresses: int


class ObjectEntry(_Out, frozen=True):
    name: str
    size: int
    sha256: str


class ObjectList(_Out, frozen=True):
    objects: tuple[ObjectEntry, ...]
    next: str | None


class BeginBackup(_In, frozen=True):
    item: ItemName
    format_version: Annotated[int, msgspec.Meta(ge=0, le=1000)]


class Grant(_Out, frozen=True):
    account: str
    blob_host: str
    container: str
    sas: str
    expires: str


class BackupSession(_Out, frozen=True):
    backup_id: str
    job_id: str
    lease_until: str
    pending: int
    grant: Grant | None
    log_grant: Grant | None
    missing_addresses: int


class Progress(_In, frozen=True):
    files_done: Count
    bytes_read: Count
    bytes_sent: Count


class InStatistics(_In, frozen=True):
    files: Count
    directories: Count
    bytes_read: Count
    bytes_sent: Count
    bytes_stored: Count
    unreadable: Count
    source_bytes: Count

    def value(self) -> Statistics:
        return msgspec.convert(msgspec.to_builtins(self), Statistics)


class Commit(_In, frozen=True):
    manifest: ManifestName
    packs: tuple[PackName, ...]
    indexes: tuple[IndexName, ...]
    statistics: InStatistics


class Committed(_Out, frozen=True):
    recovery_point_id: str
    time: str


class Fail(_In, frozen=True):
    code: Short
    message: Annotated[str, msgspec.Meta(max_length=8192)]


class PointEntry(_Out, frozen=True):
    id: str
    time: str
    item: ItemName
    statistics: Statistics
    format_version: int


class PointList(_Out, frozen=True):
    points: tuple[PointEntry, ...]
    next: str | None


class BeginRestore(_In, frozen=True):
    recovery_point_id: Id


class RestoreSession(_Out, frozen=True):
    restore_id: str
    job_id: str
    point: PointEntry
    manifest: str
    packs: tuple[str, ...]
    indexes: tuple[str, ...]
    pending: int
    grant: Grant | None
    log_grant: Grant | None
    missing_addresses: int


class CompleteRestore(_In, frozen=True):
    status: Annotated[str, msgspec.Meta(pattern=r"^(Completed|CompletedWithWarnings|Failed)\Z")]
    files: Count
    bytes: Count
    message: Annotated[str, msgspec.Meta(max_length=8192)] = ""


class TakenLeg(_In, frozen=True):
    leg: Annotated[str, msgspec.Meta(pattern=r"^(backup|blob|queue|login)\Z")]
    because: Annotated[str, msgspec.Meta(max_length=2048)] = ""
    proxy: Short = ""


class Paths(_In, frozen=True):
    legs: Annotated[tuple[TakenLeg, ...], msgspec.Meta(max_length=4)]
    job_id: Id | None = None

    def __post_init__(self) -> None:
        if len({taken.leg for taken in self.legs}) < len(self.legs):  # each counts as a way that was taken
            raise ValueError("a leg is there twice")


class ErrorText(_Out, frozen=True):
    code: str
    message: str


class ErrorBody(_Out, frozen=True):
    error: ErrorText


class Missing(_Out, frozen=True):
    """The answer of a commit that names what is not there."""

    error: ErrorText
    missing: tuple[str, ...]


def decode(body: bytes, into: type[T]) -> T:
    """Any bytes become the message, or one error that names the place."""
    try:
        return msgspec.json.decode(body, type=into)
    except msgspec.ValidationError as error:
        code = "InvalidParameter"
        place = re.search(r"`\$\.?(.*?)`", str(error))
        raise InvalidParameter(
            f"The request is not valid: {error}.", code=code, target=place[1] if place else None
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"The request is not JSON: {error}.", code="InvalidRequestContent") from error
