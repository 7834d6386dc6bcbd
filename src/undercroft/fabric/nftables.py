"""nftables through ``libnftables.so.1`` in this process: the ``nft`` program cannot be used by the rootless driver, whose rights over
its namespaces do not survive an exec.

The library is loaded on first use and works in the network namespace of the thread that opens a context, so every call runs in
a thread of the namespace. A text is one transaction: all of it or nothing. A table of several parts is made beside the old one,
which goes in the transaction that makes the new one's hooks: there is no moment without rules, or with some of them. The kernel counts the
transactions of a namespace (the *generation*); a table is read back and compared only when somebody else has made one since ours.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import socket
import struct
from dataclasses import dataclass

from undercroft.errors import CapabilityMissing, LocalProblem
from undercroft.fabric.namespace import CLONE_NEWNET, Namespace, enter_user_namespace, unshare

__all__ = ["LIBRARY", "Table", "why_missing"]

LIBRARY = "libnftables.so.1"
_INSTALL = f"{LIBRARY} is not installed: 'apt-get install libnftables1', as root"
_KERNEL = "Its modules nf_tables, nft_ct and nf_conntrack are needed: 'modprobe nft_ct', as root"
_NETLINK_NETFILTER = 12
_GET_GENERATION, _NEW_GENERATION = 0x0A10, 0x0A0F  # NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN, NFT_MSG_NEWGEN
_NAMES = ("undercroft", "undercroft_other")
"""A table of one part has the first name; one of several parts that which is free."""
_TRIAL = """table ip undercroft {
  set a0 { type ipv4_addr; flags interval; elements = { 10.0.0.1, 10.0.0.8-10.0.0.20 }; }
  set p0 { type inet_service; flags interval; elements = { 1, 3-4 }; }
  chain one { ip saddr @a0 meta l4proto { tcp, udp } th dport @p0 return
  }
  map sends { type ifname : verdict; elements = { "x" : jump one }; }
  chain forward {
    type filter hook forward priority filter; policy accept;
    ct state established,related accept
    iifname vmap @sends
  }
}
"""


@functools.cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise CapabilityMissing(f"Security groups are not possible here: {_INSTALL}.") from error
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_new.argtypes = (ctypes.c_uint32,)
    library.nft_ctx_free.argtypes = (ctypes.c_void_p,)
    library.nft_run_cmd_from_buffer.argtypes = (ctypes.c_void_p, ctypes.c_char_p)
    for name in ("nft_ctx_buffer_output", "nft_ctx_buffer_error"):
        getattr(library, name).argtypes = (ctypes.c_void_p,)
    for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
        getattr(library, name).argtypes = (ctypes.c_void_p,)
        getattr(library, name).restype = ctypes.c_char_p
    return library


@dataclass(frozen=True, slots=True)
class _Result:
    done: bool
    output: str
    error: str


def _run(*texts: str) -> list[_Result]:
    """Each text is a transaction, in the namespace of the calling thread; none is tried after one that failed."""
    library = _library()
    context = library.nft_ctx_new(0)
    if not context:
        raise LocalProblem(f"{LIBRARY} gave no context.")
    try:
        library.nft_ctx_buffer_output(context)
        library.nft_ctx_buffer_error(context)
        results = []
        for text in texts:
            done = library.nft_run_cmd_from_buffer(context, text.encode("ascii")) == 0
            output = library.nft_ctx_get_output_buffer(context) or b""
            error = library.nft_ctx_get_error_buffer(context) or b""
            results.append(_Result(done, output.decode("utf-8", "replace"), error.decode("utf-8", "replace")))
            if not done:
                break
        return results
    finally:
        library.nft_ctx_free(context)


def _gone(name: str) -> str:
    return f"add table ip {name}\ndelete table ip {name}\n"  # whether it is there or not


def _table(name: str, part: str) -> str:
    return f"table ip {name} {{\n{part}\n}}\n"


def _listing(name: str) -> bytes:
    """The digest of the table as the kernel has it."""
    (listed,) = _run(f"list table ip {name}")
    return hashlib.sha256(listed.output.encode()).digest()


class Table:
    """Our table in one namespace. Holds a descriptor while there are rules. One call at a time, in any thread."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._parts: tuple[str, ...] = ()
        self._name = _NAMES[0]
        self._listing = b""
        self._generation = 0
        self._questions: socket.socket | None = None

    @property
    def untouched(self) -> bool:
        """Nobody has changed any table of the namespace since we looked. Costs microseconds; ``apply`` may cost seconds."""
        return not self._parts or self._ask() == self._generation

    def apply(self, parts: tuple[str, ...], where: str) -> bool | None:
        """Make the table so. None when it was; else whether other parts were wanted before (if not, somebody damaged the
        table). Without parts there is no table. When the kernel refuses, the old table stays."""
        changed = parts != self._parts
        if not changed and (self.untouched or self._as_listed()):
            return None
        self._namespace.run(lambda: self._load(parts, where))
        return changed

    def close(self) -> None:
        if self._questions is not None:
            self._questions.close()
            self._questions = None

    def _load(self, parts: tuple[str, ...], where: str) -> None:
        name = _NAMES[0]
        if len(parts) > 1 and self._name == name:
            name = _NAMES[1]
        *before, last = [_table(name, part) for part in parts] or [""]
        texts = [*before, "".join(map(_gone, _NAMES)) + last]
        if before:
            texts = [_gone(name) + before[0], *before[1:], _gone(self._name) + last]
        results = _run(*texts)
        if not results[-1].done:
            if before:
                _run(_gone(name))
            reason = " ".join(results[-1].error.split())[:300]
            raise LocalProblem(f"The kernel refused the security rules of {where}: {reason}.")
        if not parts:
            self.close()
        elif self._questions is None:
            self._questions = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER
            )
            self._questions.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 5, 0))
        self._parts, self._name, self._listing = parts, name, _listing(name) if parts else b""
        self._generation = self._ask()

    def _as_listed(self) -> bool:
        generation = self._ask()
        if self._namespace.run(lambda: _listing(self._name)) != self._listing:
            return False
        self._generation = generation  # somebody changed a table of their own
        return True

    def _ask(self) -> int:
        """The namespace's generation (linux/netfilter/nf_tables.h: NFTA_GEN_ID, in network order)."""
        if self._questions is None:
            return 0
        self._questions.send(struct.pack("=IHHIIBBH", 20, _GET_GENERATION, 0x1, 0, 0, socket.AF_UNSPEC, 0, 0))
        answer = self._questions.recv(4096)
        kind = struct.unpack_from("=H", answer, 4)[0]
        if kind != _NEW_GENERATION:
            raise LocalProblem("The kernel did not say the generation of a network's packet filters.")
        return int(struct.unpack_from("!I", answer, 24)[0])


def why_missing(*, rootless: bool) -> str:
    """Why there can be no security groups here, and what to change; empty when there can. Tried, not guessed, in a child that
    ends with what it made. Must be called from a process without other threads (it forks). ``rootless``: the child enters a
    user namespace of its own first."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        said = "the trial failed"
        try:
            os.close(reader)
            said = _try(rootless)
        finally:
            os.write(writer, said.encode())
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        said = stream.read().decode("utf-8", "replace")
    os.waitpid(child, 0)
    return said


def _try(rootless: bool) -> str:
    try:
        _library()
    except CapabilityMissing:
        return _INSTALL
    try:
        if rootless:
            enter_user_namespace()
        unshare(CLONE_NEWNET)
        (trial,) = _run(_TRIAL)
    except (OSError, LocalProblem) as error:
        return f"the trial failed: {error}"
    return "" if trial.done else f"the kernel refused nftables ({' '.join(trial.error.split())[:200]}). {_KERNEL}"
