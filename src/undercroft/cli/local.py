"""Commands about this machine: up, down, status, reconcile, rebuild."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from undercroft.config import Home
from undercroft.errors import InvalidInput, LocalProblem, NotFound, Unavailable

__all__ = ["HomeOption", "home_of", "mount"]

HomeOption = Annotated[Path, Parameter(name="--home", env_var="UNDERCROFT_HOME", help="The deployment's folder.")]

NOT_RUNNING = 3


def home_of(path: Path) -> Home:
    place = path.expanduser().absolute()
    if place.exists() and not place.is_dir():
        raise InvalidInput(f"--home {place} is not a folder.", target="--home")
    return Home(place)


def up(
    *,
    home: HomeOption,
    port: int = 8443,
    detach: Annotated[bool, Parameter(negative=())] = False,
    driver: str = "auto",
    ready_fd: Annotated[int | None, Parameter(show=False)] = None,
) -> int:
    """Start the service, and stay until SIGTERM (or return when it is ready, with --detach).

    Parameters
    ----------
    port
        Where ARM, cloud metadata and login listen on 127.0.0.1; 0 takes any free port.
    detach
        Go on in the background once everything is ready.
    driver
        How networks are made: netns (root), rootless (an unprivileged user namespace), host (a real interface, see
        docs/drivers.md), loopback (a simulation), or auto.
    """
    place = home_of(home)
    if not 0 <= port <= 65535:
        raise InvalidInput(f"--port {port}: a port is a number from 0 (any free one) to 65535.", target="--port")
    if detach:
        return _detached(place, port, driver)
    from undercroft.cli.up import serve

    return serve(place, port, driver, ready_fd)


def _detached(home: Home, port: int, driver: str) -> int:
    home.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    home.logs.mkdir(mode=0o700, exist_ok=True)
    reader, writer = os.pipe()
    log_path = home.logs / "up.log"
    with log_path.open("wb") as log:
        arguments = ["--home", str(home.root), "--port", str(port), "--driver", driver, "--ready-fd", str(writer)]
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "undercroft.cli.up", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(writer,),
            start_new_session=True,
        )
    os.close(writer)
    ready = os.read(reader, 1)
    os.close(reader)
    said = log_path.read_text("utf-8", "replace").strip()
    if ready:
        print(said)
        return 0
    status = process.wait()
    print(said or f"undercroft: it ended with status {status}; see {log_path}", file=sys.stderr)
    return status or 1


def down(*, home: HomeOption) -> int:
    """Stop the service and everything it made; data stays. Also cleans up after processes that were killed."""
    from undercroft.fabric.process import clear
    from undercroft.fabric.running import running_fabric
    from undercroft.supervisor import running_supervisor

    place = home_of(home)
    pid = running_supervisor(place)
    if pid is not None:
        descriptor = os.pidfd_open(pid)
        signal.pidfd_send_signal(descriptor, signal.SIGTERM)
        gone, _, _ = select.select([descriptor], [], [], 40)
        os.close(descriptor)
        if not gone:
            raise Unavailable(f"Process {pid} did not end within 40 s; see {place.logs}.", code="StillRunning")
        print("Undercroft stopped.")
        return 0
    fabric = running_fabric(place.fabric_socket)
    if fabric is not None:
        descriptor = os.pidfd_open(fabric.pid)
        signal.pidfd_send_signal(descriptor, signal.SIGTERM)
        select.select([descriptor], [], [], 20)
        os.close(descriptor)
        print("A fabric left behind by a killed supervisor was ended.")
    place.connection_file.unlink(missing_ok=True)
    ended, removed = clear(place.fabric_socket) if fabric is None and place.run.exists() else (0, 0)
    if ended:
        print(f"{ended} processes of VMs, left behind by a killed fabric, were ended.")
    if removed:
        print(f"{removed} addresses, left on an interface by a killed fabric, were removed.")
    if fabric is None and not ended and not removed:
        print(f"Undercroft does not run for {place.root}.", file=sys.stderr)
        return NOT_RUNNING
    return 0


def status(
    *, home: HomeOption, as_json: Annotated[bool, Parameter(name="--json", negative=(), help="Print JSON.")] = False
) -> int:
    """Exit 0 and say what runs, or exit 3."""
    from undercroft.control.client import Request, ask

    place = home_of(home)
    try:
        answer: dict[str, Any] = ask(place.control_socket, Request("status"))
    except (NotFound, Unavailable) as error:
        print(json.dumps({"running": False}) if as_json else error.message)
        return NOT_RUNNING
    if as_json:
        print(json.dumps({"running": True, **answer}))
        return 0
    print(f"running: {answer['resourceManager']} (fabric: {answer['fabric']}, process {answer['pid']})")
    print(f"  processes: {', '.join(f'{name} {pid}' for name, pid in sorted(answer['processes'].items()))}")
    for name, value in answer["counts"].items():
        print(f"  {name}: {value}")
    if answer["fabric"] == "loopback":
        print("  *** SIMULATION: no network is built; 'undercroft fabric probe' says why ***")
    last = answer["lastReconcile"]
    if last is not None:
        print(f"  last reconcile: {last['at'][:19]}Z, {last['seconds']:.2f} s, {_networks(last['networks'])}")
    for one in answer["mended"]:
        print(f"  mended {one['at'][:19]}Z: {_short(one['network'])}: {one['what']}")
    for one in last["failing"] if last is not None else ():
        print(f"  failing: {_short(one['network'])}: {one['what']}")
    for problem in answer["problems"]:
        print(f"  problem: {problem}")
    return 0


def reconcile(
    *, home: HomeOption, as_json: Annotated[bool, Parameter(name="--json", negative=(), help="Print JSON.")] = False
) -> int:
    """Compare every network with what it should be, mend it now, and say what was different; 1 if something keeps failing."""
    from undercroft.control.client import Request, ask

    answer: dict[str, Any] = ask(home_of(home).control_socket, Request("reconcile"))
    failing = answer["failing"]
    if as_json:
        print(json.dumps(answer))
        return 1 if failing else 0
    for one in answer["mended"]:
        print(f"mended:  {_short(one['network'])}: {one['what']}")
    for one in failing:
        print(f"failing: {_short(one['network'])}: {one['what']}")
    found = f"{len(answer['mended'])} differences mended, {len(failing)} failing, in {answer['seconds']:.2f} s"
    print(f"{_networks(answer['networks'])} looked at: {found}.")
    return 1 if failing else 0


def _networks(number: int) -> str:
    return f"{number} network{'' if number == 1 else 's'}"


def _short(key: str) -> str:
    """``group/name`` of a network, as people call it."""
    parts = key.split("/")
    return f"{parts[4]}/{parts[-1]}" if len(parts) > 8 else key


def rebuild(*, home: HomeOption) -> int:
    """Make vaults, containers and recovery points anew from the store, after the state database was lost.

    The service must be stopped. Networks, endpoints, zones and role assignments are not in the store: create them again.
    """
    import asyncio

    from undercroft.node import rebuild_from_store
    from undercroft.supervisor import running_supervisor

    place = home_of(home)
    if running_supervisor(place) is not None:
        raise LocalProblem("Stop the service first: 'undercroft down'.", code="StillRunning")
    if not place.store.is_dir():
        raise NotFound(f"There is nothing to rebuild from: {place.store} is not there.", code="NoStore")
    report = asyncio.run(rebuild_from_store(place))
    made = ", ".join(f"{number} {kind}" for kind, number in sorted(report.made.items())) or "nothing that was missing"
    print(f"Rebuilt from {place.store}: {made}.")
    for problem in report.problems:
        print(f"problem: {problem.name}: {problem.what}", file=sys.stderr)
    return 1 if report.problems else 0


def mount(app: App) -> None:
    for command in (up, down, status, reconcile, rebuild):
        app.command(command)
