"""The fabric process: it alone holds the privilege; everything else asks it over a Unix socket.

Guaranteed:

- **Clients come and go.** Losing a client changes no network and no VM; the next one finds everything. Only the executions that the
  lost client was waiting for are killed, by process group, since nobody can learn how they end; whatever they had put into another
  process group (daemons) stays, and so does what finished executions left running.
- **A clean end** (SIGTERM, or a ``Stop`` call) kills every process in every VM, waits for them, drops the networks and removes the
  socket, the record and the lock. The VMs' folders stay.
- **One at a time.** A lock beside the socket is held for life; a second process for the same socket refuses to start. The
  processes of VMs do not inherit it.
- **After a kill** of this process the kernel keeps the VMs' processes; the next start ends them before it serves anybody
  (``occupants`` says how they are found, and which are not).
- **Addresses on a real interface** (host driver) that a killed process left are taken over by the next one, or taken away
  (``interface``).
- **Changes wait for none but their own network's.** ``Apply`` and ``Remove`` of one network are carried out one after the other, in the
  order in which they came; what takes long in them holds up nothing else.
- **Orphans** of VMs become children of this process (it is their subreaper) and are reaped.

Peers must run as this user or as root; the socket's mode is 0600 besides.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary

import msgspec

from undercroft.capacity import exhausted, raise_descriptor_limit
from undercroft.channel import Arrivals, Channel, Failure, reachable
from undercroft.errors import InvalidInput, LocalProblem, UndercroftError
from undercroft.fabric.driver import Driver, LoopbackDriver, NamespaceDriver
from undercroft.fabric.interface import InterfaceDriver, InterfaceOptions, take_away
from undercroft.fabric.messages import (
    Answer,
    Apply,
    Cancel,
    Cookies,
    Describe,
    Execute,
    Listen,
    Networks,
    Remove,
    Request,
    Stop,
    decode_request,
    encode,
)
from undercroft.fabric.namespace import enter_user_namespace
from undercroft.fabric.nftables import why_missing
from undercroft.fabric.occupants import end_survivors
from undercroft.fabric.specification import Drift, Execution

__all__ = ["clear", "run"]

_PR_SET_CHILD_SUBREAPER = 36


@dataclass(eq=False, slots=True)
class _Running:
    process: subprocess.Popen[bytes]
    client: _Client
    request: int


class _Client:
    """One connection: decodes calls, carries them out, answers."""

    def __init__(self, connected: socket.socket, server: _Server) -> None:
        self._server = server
        self.channel = Channel(connected, self._received, lambda: server.lost(self))

    def _received(self, body: bytes, descriptors: list[int]) -> None:
        try:
            request = decode_request(body)
        except (msgspec.DecodeError, ValueError) as error:
            _close(descriptors)
            print(f"fabric: a client sent what is no request ({error}); its connection is closed.", file=sys.stderr)
            self.channel.close()
            return
        try:
            self._carry_out(request, descriptors)
        except Exception as error:  # the outermost layer: one failed call must not end everybody's networks
            self.answer(Answer(request.id, _failure(request, error)))
        finally:
            _close(descriptors)

    def _carry_out(self, request: Request, descriptors: list[int]) -> None:
        driver = self._server.driver
        match request.call:
            case Describe():
                self.answer(Answer(request.id, capabilities=driver.capabilities))
            case Apply(network):
                self._server.change(network.id, lambda: self._change(request, lambda: driver.apply(network)))
            case Remove(name):
                self._server.change(name, lambda: self._change(request, lambda: driver.remove(name)))
            case Networks():
                self.answer(Answer(request.id, networks=driver.networks()))
            case Cookies():
                self.answer(Answer(request.id, cookies=driver.cookies()))
            case Listen(name, address, port, transport):
                made = driver.listen(name, address, port, transport)
                self.channel.send(encode(Answer(request.id)), [made.detach()])
            case Execute() as call:
                self._execute(request.id, call, descriptors)
            case Cancel(execution):
                self._server.cancel(self, execution)
                self.answer(Answer(request.id))
            case Stop():
                self._server.end()
                self.answer(Answer(request.id))
                self._server.finished.set()

    async def _change(self, request: Request, change: Callable[[], Awaitable[tuple[Drift, ...] | None]]) -> None:
        try:
            self.answer(Answer(request.id, drifts=await change() or ()))
        except Exception as error:  # as for the others
            self.answer(Answer(request.id, _failure(request, error)))

    def _execute(self, id: int, call: Execute, descriptors: list[int]) -> None:
        if len(descriptors) != 3:
            raise InvalidInput(f"An execution needs three descriptors, not {len(descriptors)}.")
        execution = Execution(call.host, call.arguments, call.environment, call.directory, *descriptors)
        started = self._server.driver.spawn(execution)
        if isinstance(started, int):
            self.answer(Answer(id, status=started))
        else:
            self._server.running[started.pid] = _Running(started, self, id)

    def answer(self, answer: Answer) -> None:
        self.channel.send(encode(answer))


def _failure(request: Request, error: Exception) -> Failure:
    if (full := exhausted(error.__cause__ or error)) is not None:  # whatever step it was that met it
        return Failure.of(full)
    if isinstance(error, UndercroftError):
        return Failure.of(error)
    traceback.print_exception(error)
    return Failure.of(LocalProblem(f"The fabric failed at {type(request.call).__name__}: {error}."))


class _Server:
    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self._changes: set[asyncio.Task[None]] = set()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """One per network while somebody holds or awaits it."""
        self.running: dict[int, _Running] = {}
        self.finished = asyncio.Event()
        self._clients: set[_Client] = set()

    def arrived(self, connected: socket.socket) -> None:
        self._clients.add(_Client(connected, self))

    def change(self, network: str, work: Callable[[], Awaitable[None]]) -> None:
        turn = self._turns.setdefault(network, asyncio.Lock())

        async def in_turn() -> None:
            async with turn:
                await work()

        task = asyncio.create_task(in_turn())
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)

    def lost(self, client: _Client) -> None:
        self._clients.discard(client)
        for running in self.running.values():
            if running.client is client:
                _kill_group(running.process.pid)

    def cancel(self, client: _Client, request: int) -> None:
        for running in self.running.values():
            if running.client is client and running.request == request:
                _kill_group(running.process.pid)

    def reap(self) -> None:
        """All children: executions, and orphans of VMs that came to us."""
        while True:
            try:
                process, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not process:
                return
            running = self.running.pop(process, None)
            if running is not None:
                code = os.waitstatus_to_exitcode(status)
                running.process.returncode = code
                running.client.answer(Answer(running.request, status=code if code >= 0 else 128 - code))

    def end(self) -> None:
        for task in self._changes:
            task.cancel()
        self.driver.close()
        self.reap()

    def close(self) -> None:
        for client in list(self._clients):
            client.channel.close()


def _kill_group(leader: int) -> None:
    try:
        os.killpg(leader, signal.SIGKILL)  # not reaped yet, so the id is still its own
    except ProcessLookupError:
        return


def _close(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())


def run(
    path: Path, vms: Path, driver: str, ready: Callable[[], None], interface: InterfaceOptions | None = None
) -> None:
    """Serve until told to stop. ``ready`` is called once the socket accepts. ``interface``: for the host driver. Must be called
    before any thread exists."""
    with ExitStack() as undo:
        _lock(path, undo)
        record = _record(path)
        # Before the user namespace is entered: from outside, its owner has every right over the dead one's processes;
        # from a sibling it has none.
        ended = end_survivors(record)
        if ended:
            print(f"fabric: ended {ended} processes of the last run's VMs.", file=sys.stderr)
        if interface is None:
            if removed := take_away(_addresses(path)):
                print(f"fabric: removed {removed} addresses that the last run left on its interface.", file=sys.stderr)
            chosen = _prepare(driver, vms, record)
        else:
            chosen = InterfaceDriver(interface, _addresses(path))
        undo.callback(record.unlink, missing_ok=True)
        listener = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
        path.unlink(missing_ok=True)
        mask = os.umask(0o177)
        try:
            with reachable(path) as name:
                listener.bind(name)
        finally:
            os.umask(mask)
        undo.callback(path.unlink, missing_ok=True)
        listener.listen(64)
        asyncio.run(_serve(listener, chosen, ready))


def clear(path: Path) -> tuple[int, int]:
    """End what a killed fabric left, without starting another: how many processes, and how many addresses on an interface.
    ``LocalProblem`` if one still serves."""
    with ExitStack() as undo:
        _lock(path, undo)
        ended = end_survivors(_record(path))
        removed = take_away(_addresses(path))
        path.unlink(missing_ok=True)
    return ended, removed


def _addresses(path: Path) -> Path:
    return path.with_name(path.name + ".addresses")


def _record(path: Path) -> Path:
    return path.with_name(path.name + ".record")


def _lock(path: Path, undo: ExitStack) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = path.with_name(path.name + ".lock")
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), lock.stat()):
                break
        except BlockingIOError as error:
            os.close(descriptor)
            raise LocalProblem(f"A fabric process already serves {path}; connect to it, or stop it first.") from error
        except FileNotFoundError:
            pass  # its last holder removed it between our two calls
        os.close(descriptor)
    undo.callback(os.close, descriptor)
    undo.callback(lock.unlink, missing_ok=True)


def _prepare(driver: str, vms: Path, record: Path) -> Driver:
    if driver == "loopback":
        return LoopbackDriver()
    if driver == "rootless":
        try:
            enter_user_namespace()
        except OSError as error:
            raise LocalProblem(
                f"The kernel refused a user namespace ({error.filename}: {error.strerror}); "
                "'undercroft fabric probe' says what to change."
            ) from error
    no_security_groups = why_missing(
        rootless=False
    )  # where networks will be made: already in the user namespace, if any
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    raise_descriptor_limit()
    vms.mkdir(parents=True, exist_ok=True)
    return NamespaceDriver(driver, vms.absolute(), record, no_security_groups)


async def _serve(listener: socket.socket, driver: Driver, ready: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    server = _Server(driver)
    loop.add_signal_handler(signal.SIGCHLD, server.reap)
    loop.add_signal_handler(signal.SIGTERM, server.finished.set)
    # Ctrl-C goes to the whole foreground group; whoever started us decides. Not SIG_IGN: VMs' processes would inherit it.
    loop.add_signal_handler(signal.SIGINT, lambda: None)
    arrivals = Arrivals(listener, server.arrived, lambda text: print(f"fabric: {text}", file=sys.stderr))
    ready()
    try:
        await server.finished.wait()
    finally:
        arrivals.close()
        server.end()
        server.close()
