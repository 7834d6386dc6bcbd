"""The command ``undercroft``. Heavy imports stay inside the commands: ``--help`` must be quick."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError
from cyclopts.exceptions import MissingArgumentError

import undercroft
from undercroft.errors import LocalProblem, UndercroftError

__all__ = ["application", "main"]


def application() -> App:
    from undercroft.cli import (
        agent,
        fabric,
        local,
        names,
        network,
        peerings,
        principals,
        security_groups,
        sites,
        vaults,
        vms,
    )

    app = App(
        name="undercroft",
        version=undercroft.__version__,
        help="Recovery Services vaults reached only through private endpoints.",
        result_action="return_value",
    )
    local.mount(app)
    for part in (fabric, network, peerings, security_groups, names, vaults, vms, sites, principals):
        part.mount(app)
    app.command(agent.app)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 failed, 2 usage, 3 not running / not found / partial."""
    try:
        result = application()(
            list(sys.argv[1:] if arguments is None else arguments), exit_on_error=False, print_error=False
        )
    except CycloptsError as error:
        print(f"undercroft: {_usage(error)}", file=sys.stderr)
        return 2
    except UndercroftError as error:
        print(f"undercroft: {error.message} ({error.code})", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("undercroft: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1
    except OSError as error:  # of the machine, not ours: no right, no space, not a folder
        where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        print(f"undercroft: {where}{error.strerror or error} ({LocalProblem.default_code})", file=sys.stderr)
        return LocalProblem.exit_status
    except Exception as error:
        if os.environ.get("UNDERCROFT_DEBUG"):
            raise
        print(f"undercroft: a defect of ours: {type(error).__name__}: {error}. Run it again with", file=sys.stderr)
        print("UNDERCROFT_DEBUG=1 in the environment, and report what it prints.", file=sys.stderr)
        return 1
    return result if isinstance(result, int) else 0


def _usage(error: CycloptsError) -> str:
    """One line: what was wrong, and where to read how it should be."""
    command = " ".join(["undercroft", *(error.command_chain or ())])
    argument = error.argument
    if isinstance(error, MissingArgumentError) and argument is not None:
        if argument.name == "--home":
            return f"which deployment? Give --home DIR, or set UNDERCROFT_HOME. (See '{command} --help'.)"
        positional = not argument.field_info.is_keyword_only
        name = argument.name.lstrip("-").upper() if positional else argument.name
        said = f"{name} is missing."
    else:
        error.verbose = False
        said = " ".join(str(error).split())
    return f"{said} See '{command} --help'."
