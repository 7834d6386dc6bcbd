"""Everything that can go wrong, in one tree.

Each class is named for what happened and carries, as class attributes, the code and the HTTP status that the wires show and
the exit status that the command line returns. The message says what was wrong, where, and what to do next. Exactly one
renderer per wire turns an error into bytes (ARM JSON in ``arm.errors``, Storage XML in ``dataplane.wire``, the backup
service's JSON in ``dataplane.refusals``, text in ``cli.main``); nothing else writes an error body.

    UndercroftError
    ├── InvalidInput            400  the caller must change the request
    │   ├── InvalidParameter    400  one named value is wrong
    │   ├── UnknownField        400  a property, parameter or type we do not know
    │   ├── UnknownRegion       400  not the name of an Azure region
    │   ├── MethodNotAllowed    405  the path is known, this verb on it is not
    │   ├── TooSlow             408  the request did not arrive in time
    │   ├── TooLarge            413  the request is larger than the limit
    │   ├── LengthRequired      411  a body without Content-Length where its size must be known before
    │   ├── RangeNotSatisfiable 416  the asked range lies outside the object
    │   └── CapabilityMissing   501  known, not built (or not possible with this driver): refused by name
    ├── Misdirected             421  server name, Host and door do not belong together
    ├── NotAuthenticated        401  no token, or one that does not verify
    ├── NotAuthorized           403  a good token without the right
    ├── RefusedByNetworkRule    403  the vault's public access is Disabled and the call came by a public door
    ├── NotFound                404  the named thing is not there
    ├── Conflict                409  the state of the thing forbids it
    │   └── PreconditionFailed  412  an etag or condition did not match
    ├── Throttled               429  try again later
    ├── Unavailable             503  a part of the service is down; try again
    │   └── NamesUnavailable    503  the name server is being started again
    ├── PeerMisbehaved          502  the other side broke its protocol (as opposed to us)
    ├── StorageFull             507  no space where the bytes had to go
    ├── DamagedData             500  authenticated data did not verify
    ├── WrongPassphrase         400  the passphrase does not open this container's key
    └── LocalProblem            500  this machine: a port in use, no right, a file not there
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "CapabilityMissing",
    "Conflict",
    "DamagedData",
    "InvalidInput",
    "InvalidParameter",
    "LengthRequired",
    "LocalProblem",
    "MethodNotAllowed",
    "Misdirected",
    "NamesUnavailable",
    "NotAuthenticated",
    "NotAuthorized",
    "NotFound",
    "PeerMisbehaved",
    "PreconditionFailed",
    "RangeNotSatisfiable",
    "RefusedByNetworkRule",
    "StorageFull",
    "Throttled",
    "TooLarge",
    "TooSlow",
    "Unavailable",
    "UndercroftError",
    "UnknownField",
    "UnknownRegion",
    "WrongPassphrase",
]


class UndercroftError(Exception):
    """The root. ``code`` may be narrowed per raise (Azure has hundreds of codes for few kinds of event)."""

    default_code: ClassVar[str] = "InternalError"
    status: ClassVar[int] = 500
    exit_status: ClassVar[int] = 1

    def __init__(
        self, message: str, *, code: str | None = None, target: str | None = None, mentions: tuple[str, ...] = ()
    ) -> None:
        """``mentions``: ids in the message of resources that are perhaps not the caller's: ARM names those that it may read."""
        super().__init__(message)
        self.message = message
        self.mentions = mentions
        self.code = code or self.default_code
        self.target = target
        """The property, parameter, file or resource that the error is about, where there is one."""


class InvalidInput(UndercroftError):
    default_code = "BadRequest"
    status = 400
    exit_status = 2


class InvalidParameter(InvalidInput):
    default_code = "InvalidParameter"


class UnknownField(InvalidInput):
    default_code = "InvalidRequestContent"


class UnknownRegion(InvalidInput):
    default_code = "LocationNotAvailableForResourceType"


class MethodNotAllowed(InvalidInput):
    default_code = "MethodNotAllowed"
    status = 405


class TooSlow(InvalidInput):
    default_code = "RequestTimeout"
    status = 408


class TooLarge(InvalidInput):
    default_code = "RequestContentTooLarge"
    status = 413


class CapabilityMissing(InvalidInput):
    default_code = "NotImplemented"
    status = 501
    exit_status = 1


class LengthRequired(InvalidInput):
    default_code = "MissingContentLengthHeader"
    status = 411


class RangeNotSatisfiable(InvalidInput):
    default_code = "InvalidRange"
    status = 416


class Misdirected(UndercroftError):
    """RFC 9110 section 15.5.20: the connection is not one for this host."""

    default_code = "MisdirectedRequest"
    status = 421


class NotAuthenticated(UndercroftError):
    default_code = "AuthenticationFailed"
    status = 401


class NotAuthorized(UndercroftError):
    default_code = "AuthorizationFailed"
    status = 403


class RefusedByNetworkRule(UndercroftError):
    """A call by a public door to a vault whose public access is Disabled (article: *Deny public network access*)."""

    default_code = "UserErrorPublicNetworkAccessDenied"
    status = 403


class NotFound(UndercroftError):
    default_code = "ResourceNotFound"
    status = 404
    exit_status = 3


class Conflict(UndercroftError):
    default_code = "Conflict"
    status = 409


class PreconditionFailed(Conflict):
    default_code = "PreconditionFailed"
    status = 412


class Throttled(UndercroftError):
    default_code = "TooManyRequests"
    status = 429


class Unavailable(UndercroftError):
    default_code = "ServiceUnavailable"
    status = 503


class NamesUnavailable(Unavailable):
    """The networks themselves are as they were."""


class PeerMisbehaved(UndercroftError):
    default_code = "BadGateway"
    status = 502


class StorageFull(UndercroftError):
    default_code = "InsufficientStorage"
    status = 507


class DamagedData(UndercroftError):
    default_code = "UserErrorDataDamaged"
    status = 500


class WrongPassphrase(UndercroftError):
    default_code = "UserErrorWrongPassphrase"
    status = 400


class LocalProblem(UndercroftError):
    default_code = "LocalProblem"
    status = 500
