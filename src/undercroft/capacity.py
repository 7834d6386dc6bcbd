"""How many descriptors this process may have open: as many as it could need, where the machine allows it.

A network takes three in the node, four in the name server and three in the fabric, a VM three more in the fabric, and every
connection one. The usual soft limit of 1,024 is for programs that use ``select``; nobody here does, so it is raised as far as
the hard limit allows.
"""

from __future__ import annotations

import errno
import resource

from undercroft.errors import LocalProblem

__all__ = ["exhausted", "raise_descriptor_limit", "scarce"]

_WANTED = 65_536


def scarce(error: OSError) -> bool:
    """Whether this machine or process had no room for a socket: nobody else's fault, and soon over perhaps."""
    return error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def raise_descriptor_limit() -> int:
    """The limit that holds from now on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _WANTED if hard == resource.RLIM_INFINITY else min(_WANTED, hard)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


def exhausted(error: BaseException) -> LocalProblem | None:
    """What to say when it was not enough; None for any other error."""
    if not isinstance(error, OSError) or error.errno not in (errno.EMFILE, errno.ENFILE):
        return None
    if error.errno == errno.ENFILE:
        return LocalProblem(
            "This machine has as many files open as it allows (fs.file-max). Raise it, or close something.",
            code="TooManyOpenFiles",
        )
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return LocalProblem(
        f"The limit of {soft:,} open descriptors is reached; a virtual network takes ten over all processes, a VM three. Raise the hard "
        f"limit, which is {hard:,} (ulimit -Hn, or LimitNOFILE= of the unit), and start Undercroft again.",
        code="TooManyOpenFiles",
    )
