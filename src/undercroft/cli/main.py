"""The command ``undercroft``. Heavy imports stay inside the commands: ``--help`` must be quick."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError

import undercroft
from undercroft.errors import UndercroftError

__all__ = ["application", "main"]


def application() -> App:
    from undercroft.cli import agent, local, network, principals, vaults, vms

    app = App(
        name="undercroft",
        version=undercroft.__version__,
        help="Recovery Services vaults reached only through private endpoints.",
        result_action="return_value",
    )
    local.mount(app)
    for part in (network, vaults, vms, principals):
        part.mount(app)
    app.command(agent.app)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 failed, 2 usage, 3 not running / not found / partial."""
    try:
        result = application()(list(sys.argv[1:] if arguments is None else arguments), exit_on_error=False)
    except CycloptsError:
        return 2  # it has said what was wrong
    except UndercroftError as error:
        print(f"undercroft: {error.message} ({error.code})", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("undercroft: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1
    except Exception as error:
        if os.environ.get("UNDERCROFT_DEBUG"):
            raise
        print(f"undercroft: a defect of ours: {type(error).__name__}: {error}. Run it again with", file=sys.stderr)
        print("UNDERCROFT_DEBUG=1 in the environment, and report what it prints.", file=sys.stderr)
        return 1
    return result if isinstance(result, int) else 0
