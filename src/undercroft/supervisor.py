"""Starts the processes of one node and keeps them: the fabric, which holds the privilege, the name server, the data plane, and the node.

The supervisor itself does nothing else, so that it can stay alive while any of them is killed:

    fabric dies       a new one is started; the node notices, tells it the desired state again, and takes new listeners
    name server dies  a new one is started; the node notices, and hands it names and sockets again
    data plane dies   the same; agents repeat what was under way
    node dies         a new one is started; it adopts the running fabric, whose networks and VMs went on, and the other two
    all of us         ``up`` again adopts a fabric that still runs, and starts the rest

All but the fabric end with their supervisor (``PR_SET_PDEATHSIG``): a crash here must not end the users' VMs. A child
that dies more than five times in a minute is not started again: then everything is stopped, and its log is named. One that cannot
be *started* again (a full disk, the other one just dying) is tried again with growing pauses, while the rest goes on.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from undercroft.config import Home, HostInterface
from undercroft.errors import Conflict, LocalProblem, Unavailable
from undercroft.fabric.running import running_fabric

__all__ = ["Supervisor", "running_supervisor"]

_ORDER = ("fabric", "dns", "data", "node")
"""In which they are started; they are stopped in the opposite one."""
_PR_SET_PDEATHSIG = 1
_PR_CAPBSET_DROP = 24
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_PR_SET_NO_NEW_PRIVS = 38
_LAST_CAPABILITY = 63
_RESTARTS = 5
_RESTART_WINDOW = 60.0
_READY_SECONDS = 30.0
_LONGEST_PAUSE = 15.0


@dataclass
class _Child:
    """A process we look after. ``process`` is None for a fabric that we adopted rather than started."""

    name: str
    pid: int
    descriptor: int
    process: subprocess.Popen[bytes] | None


@dataclass
class _Launched:
    """A process that was started and has not said yet that it is ready."""

    name: str
    process: subprocess.Popen[bytes]
    ready: int
    log: Path
    log_start: int


class Supervisor:
    """One per home. ``start`` returns when the node is ready; ``wait`` until it should end; ``stop`` ends everything."""

    def __init__(self, home: Home, port: int, driver: str, host: HostInterface | None = None) -> None:
        """``host``: what the host driver needs to know; others do not look at it."""
        self._home = home
        self._port = port
        self._driver = driver
        self._host = host or HostInterface()
        self._lock: IO[str] | None = None
        self._children: dict[str, _Child] = {}
        self._deaths: dict[str, list[float]] = {}
        self._stop: int | None = None

    def start(self) -> None:
        """Raises ``Conflict`` when the home is in use, ``LocalProblem`` with the child's words when one fails to start."""
        for folder in (self._home.run, self._home.logs, self._home.keys, self._home.vms):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._take_lock()
        try:
            fabric = self._adopt_fabric()
            if fabric is not None:
                self._children["fabric"] = fabric
            self._start_all()
        except BaseException:
            self.stop()
            raise

    def wait(self, stop_descriptor: int) -> None:
        """Look after the children until ``stop_descriptor`` becomes readable (a signal arrived)."""
        self._stop = stop_descriptor
        pause = 0.0
        while True:
            children = list(self._children.values())
            poll = select.poll()
            for descriptor in (stop_descriptor, *(child.descriptor for child in children)):
                poll.register(descriptor, select.POLLIN)
            missing = len(children) < len(_ORDER)
            ready = {descriptor for descriptor, _ in poll.poll(pause * 1000 if missing else None)}
            if stop_descriptor in ready:
                return
            for child in children:
                if child.descriptor in ready:
                    del self._children[child.name]
                    self._bury(child)
            try:
                for name in _ORDER:
                    if name not in self._children:
                        self._children[name] = self._await(self._launch(name))
                pause = 0.0
            except (LocalProblem, OSError) as error:  # OSError: no memory, or no room for another process
                pause = min(max(1.0, pause * 2), _LONGEST_PAUSE)
                said = error.message if isinstance(error, LocalProblem) else f"No process could be started ({error})."
                print(f"undercroft: {said} Trying again in {pause:.0f} s.", file=sys.stderr, flush=True)

    def stop(self) -> None:
        """Node first, so that nobody asks the others for anything while they go."""
        for name in reversed(_ORDER):
            if (child := self._children.pop(name, None)) is not None:
                _end(child)
        if self._lock is not None:
            (self._home.run / "up.pid").unlink(missing_ok=True)
            self._home.connection_file.unlink(missing_ok=True)
            self._lock.close()
            self._lock = None

    # --- children ----------------------------------------------------------------------------------------------------

    def _start_all(self) -> None:
        """At once: what the node imports takes longer than all that the others do. It goes on when they are ready."""
        reader, writer = os.pipe()
        launched: list[_Launched] = []
        try:
            for name in _ORDER:
                if name not in self._children:
                    more = ("--go-fd", str(reader)) if name == "node" else ()
                    launched.append(self._launch(name, *more, pass_fds=(reader,) if more else ()))
            while launched:
                if len(launched) == 1:
                    with contextlib.suppress(
                        BrokenPipeError
                    ):  # a node that has ended already is asked for its words below
                        os.write(writer, b"1")
                child = self._await(launched.pop(0))
                self._children[child.name] = child
        finally:
            os.close(reader)
            os.close(writer)
            for each in launched:
                each.process.kill()
                each.process.wait()
                os.close(each.ready)

    def _command(self, name: str) -> list[str]:
        home = self._home
        if name == "fabric":
            host = self._host
            command = ["--socket", str(home.fabric_socket), "--vms", str(home.vms), "--driver", self._driver]
            if self._driver == "host":
                command += ["--interface", host.interface, "--address", host.address]
                command += ["--probe-seconds", str(host.probe_seconds)]
            return command
        if name in ("dns", "data"):
            return ["--home", str(home.root)]
        return ["--home", str(home.root), "--port", str(self._port)]

    def _launch(self, name: str, *more: str, pass_fds: tuple[int, ...] = ()) -> _Launched:
        arguments = ["-m", f"undercroft.{name}", *self._command(name), *more]
        parent = os.getpid()
        prepare = None if name == "fabric" else lambda: _give_up_privilege(parent)
        log_path = self._home.logs / f"{name}.log"
        reader, writer = os.pipe()
        try:
            with log_path.open("ab") as log:
                start = log.tell()
                process = subprocess.Popen(
                    [sys.executable, "-P", *arguments, "--ready-fd", str(writer)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(writer, *pass_fds),
                    start_new_session=True,
                    preexec_fn=prepare,
                )
        except BaseException:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        return _Launched(name, process, reader, log_path, start)

    def _await(self, launched: _Launched) -> _Child:
        name, process = launched.name, launched.process
        try:
            stop = () if self._stop is None else (self._stop,)
            woken, _, _ = select.select([launched.ready, *stop], [], [], _READY_SECONDS)
            ready = launched.ready in woken
            said = os.read(launched.ready, 1) if ready else b""
        finally:
            os.close(launched.ready)
        if said:
            try:
                return _Child(name, process.pid, os.pidfd_open(process.pid), process)
            except OSError:  # nobody would look after it, and another would be started beside it
                process.kill()
                process.wait()
                raise
        if process.poll() is None and not ready:
            process.kill()
        process.wait()
        raise LocalProblem(
            _last_words(name, launched.log, launched.log_start, timed_out=not woken), code="ProcessDidNotStart"
        )

    def _adopt_fabric(self) -> _Child | None:
        """A fabric that outlived its supervisor, if its socket answers and it runs the driver we want."""
        found = running_fabric(self._home.fabric_socket)
        if found is None:
            return None
        if found.driver != self._driver:
            raise Conflict(
                f"A fabric process (pid {found.pid}) of this home still runs with the driver '{found.driver}', and "
                f"'{self._driver}' was asked for. Run 'undercroft down' first.",
                code="FabricDriverDiffers",
            )
        return _Child("fabric", found.pid, os.pidfd_open(found.pid), None)

    def _bury(self, child: _Child) -> None:
        """Reap a dead child; raises when children die too often to go on."""
        os.close(child.descriptor)
        status = child.process.wait() if child.process is not None else None
        now = time.monotonic()
        deaths = [moment for moment in self._deaths.get(child.name, ()) if now - moment < _RESTART_WINDOW] + [now]
        self._deaths[child.name] = deaths
        print(
            f"undercroft: the {child.name} process ended (status {status}); starting it again",
            file=sys.stderr,
            flush=True,
        )
        if len(deaths) > _RESTARTS:
            log = self._home.logs / f"{child.name}.log"
            raise Unavailable(
                f"The {child.name} process died {len(deaths)} times within a minute; giving up. See {log}.",
                code="ProcessKeepsDying",
            )

    def _take_lock(self) -> None:
        path = self._home.run / "up.pid"
        lock = path.open("a+", encoding="ascii")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            pid = lock.read().strip()
            lock.close()
            raise Conflict(
                f"Undercroft already runs for {self._home.root} (process {pid}). Stop it with 'undercroft down', "
                "or choose another --home.",
                code="AlreadyRunning",
            ) from None
        lock.seek(0)
        lock.truncate()
        lock.write(str(os.getpid()))
        lock.flush()
        self._lock = lock


def running_supervisor(home: Home) -> int | None:
    """The pid of the supervisor that holds this home's lock, or None. A stale file of a killed one does not count."""
    path = home.run / "up.pid"
    try:
        with path.open("r+", encoding="ascii") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(lock.read().strip() or "0") or None
            return None
    except FileNotFoundError:
        return None


def _end(child: _Child, seconds: float = 10.0) -> None:
    try:
        signal.pidfd_send_signal(child.descriptor, signal.SIGTERM)
    except ProcessLookupError:
        pass
    gone, _, _ = select.select([child.descriptor], [], [], seconds)
    if not gone:
        try:
            signal.pidfd_send_signal(child.descriptor, signal.SIGKILL)
        except ProcessLookupError:
            pass
        select.select([child.descriptor], [], [], seconds)
    if child.process is not None:
        child.process.wait()
    os.close(child.descriptor)


def _give_up_privilege(parent: int) -> None:
    """In the child, before exec: end with the parent, and never hold a capability, whoever started us.

    As root it keeps the user id (it owns the home) and loses every capability: the bounding set is emptied, so
    exec grants none (capabilities(7)), and no_new_privs shuts set-uid programs out. An ordinary user who was given capabilities
    (the host driver needs some) keeps them for the fabric: as ambient ones the others would inherit them.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    if os.geteuid() == 0:
        for capability in range(_LAST_CAPABILITY + 1):
            libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _last_words(name: str, log_path: Path, start: int, *, timed_out: bool) -> str:
    """What a child that failed to start said: its last line if it is one of our own errors, else where to look."""
    with log_path.open("rb") as log:
        log.seek(start)
        lines = [line for line in log.read().decode("utf-8", "replace").splitlines() if line.strip()]
    if lines and lines[-1].startswith(f"{name}: "):
        return lines[-1].removeprefix(f"{name}: ")
    why = f"was not ready within {_READY_SECONDS:.0f} s" if timed_out else "ended while starting"
    tail = f": {lines[-1]}" if lines else ""
    return f"The {name} process {why}{tail}. Its log is {log_path}."
