"""``python -m undercroft.fabric --socket PATH --vms DIR --driver netns|rootless|loopback [--ready-fd N]``; for the driver ``host``
also ``--interface NAME --address ADDRESS --probe-seconds N``.

``PATH.record`` and ``PATH.lock`` lie beside the socket. A line is written to the ready descriptor, and it is closed, when the
socket accepts connections. Exit status: 0 after a clean end, 1 when it cannot start (one line on standard error), 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import os
import sys
from ipaddress import IPv4Address
from pathlib import Path

from undercroft.errors import UndercroftError
from undercroft.fabric.capabilities import DRIVERS
from undercroft.fabric.interface import InterfaceOptions
from undercroft.fabric.process import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m undercroft.fabric", allow_abbrev=False)
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--vms", type=Path, required=True)
    parser.add_argument("--driver", choices=DRIVERS, required=True)
    parser.add_argument("--interface")
    parser.add_argument("--address", type=IPv4Address)
    parser.add_argument("--probe-seconds", type=float)
    parser.add_argument("--ready-fd", type=int)
    arguments = parser.parse_args()
    interface = None
    if arguments.driver == "host":
        options = arguments.interface, arguments.address, arguments.probe_seconds
        if None in options:
            parser.error("the driver host needs --interface, --address and --probe-seconds")
        interface = InterfaceOptions(*options)

    def ready() -> None:
        if arguments.ready_fd is not None:
            os.write(arguments.ready_fd, b"ready\n")
            os.close(arguments.ready_fd)

    try:
        run(arguments.socket.absolute(), arguments.vms.absolute(), arguments.driver, ready, interface)
    except UndercroftError as error:
        print(f"fabric: {error.message}", file=sys.stderr)
        return error.exit_status
    except OSError as error:
        print(f"fabric: cannot start: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
