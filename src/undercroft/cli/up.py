"""What ``undercroft up`` does once its command line is read. ``--detach`` runs this module by itself: the supervisor stays as long as the
service, and need not keep a command line's parser in memory.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from ipaddress import IPv4Address
from pathlib import Path

from undercroft.config import Home, Settings
from undercroft.errors import LocalProblem, UndercroftError
from undercroft.fabric.interface import InterfaceOptions
from undercroft.fabric.probe import choose_driver
from undercroft.supervisor import Supervisor

__all__ = ["interface_of", "main", "serve"]


def interface_of(settings: Settings) -> InterfaceOptions | None:
    """What the host driver would use; None without ``host.interface``."""
    host = settings.host
    return InterfaceOptions(host.interface, IPv4Address(host.address), host.probe_seconds) if host.interface else None


def serve(place: Home, port: int, driver: str, ready_fd: int | None) -> int:
    """Until a signal ends it. ``ready_fd`` hears a byte when everything is ready."""
    settings = place.settings()  # a wrong setting is told here, before any process starts
    place.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    chosen = choose_driver(driver, interface_of(settings))
    supervisor = Supervisor(place, port, chosen.driver, settings.host)
    stop_reader, stop_writer = os.pipe()
    os.set_blocking(stop_writer, False)
    signal.set_wakeup_fd(stop_writer)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    supervisor.start()
    try:
        _greet(place)
        if ready_fd is not None:
            os.write(ready_fd, b"1")
            os.close(ready_fd)
        supervisor.wait(stop_reader)
    finally:
        supervisor.stop()
    return 0


def _greet(home: Home) -> None:
    connection = json.loads(home.connection_file.read_text("utf-8"))
    arm = connection["resourceManager"]
    print(f"Undercroft is ready: {arm} (fabric: {connection['fabric']})")
    if connection["fabric"] == "loopback":
        print("*** SIMULATION: this kernel forbids network namespaces; nothing here is a private network. ***")
        print("*** Run 'undercroft fabric probe' to see why, and what to change.                      ***")
    print("To use the Azure CLI with it:")
    print(f"  export REQUESTS_CA_BUNDLE={connection['caBundle']} AZURE_CORE_INSTANCE_DISCOVERY=false")
    print(f"  az cloud register -n Undercroft --endpoint-resource-manager {arm} && az cloud set -n Undercroft")
    print(
        f"  az login --service-principal -u {connection['clientId']} --tenant {connection['tenantId']} "
        f'-p "$(python3 -c \'import json; print(json.load(open("{home.connection_file}"))["clientSecret"])\')"',
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m undercroft.cli.up", allow_abbrev=False)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--driver", required=True)
    parser.add_argument("--ready-fd", type=int)
    chosen = parser.parse_args()
    try:
        return serve(Home(chosen.home), chosen.port, chosen.driver, chosen.ready_fd)
    except UndercroftError as error:
        print(f"undercroft: {error.message} ({error.code})", file=sys.stderr)
        return error.exit_status
    except OSError as error:  # of the machine, not ours: no right, no space, not a folder
        where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        print(f"undercroft: {where}{error.strerror or error} ({LocalProblem.default_code})", file=sys.stderr)
        return LocalProblem.exit_status


if __name__ == "__main__":
    sys.exit(main())
