"""dns watch: look, write what changed, have the server told; and go on whatever happens to the service meanwhile.

Files are never emptied or removed because the service is away, or an endpoint is: a resolver that keeps the last known addresses is
better than one that knows none, and the watch says what it could not find out.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from undercroft.cli.kept_files import KeptFiles
from undercroft.clock import Clock
from undercroft.dns.exports.plan import Plan
from undercroft.errors import LocalProblem, UndercroftError

__all__ = ["HOOK_SECONDS", "Watcher"]

HOOK_SECONDS = 60.0


@dataclass(slots=True)
class Watcher:
    """``plan`` asks ARM; it may raise any ``UndercroftError``."""

    files: KeptFiles
    plan: Callable[[], Plan]
    hook: str | None
    clock: Clock
    trouble: str = field(default="", init=False)
    """What the last look failed with; said when it changes, not every few seconds."""

    def look(self) -> None:
        """One look: files first, then the hook, which is due until it succeeds. Raises what was wrong."""
        changes = self.files.update(self.plan())
        if changes is not None:
            self.say(
                f"{self.files.out} written; {len(changes)} lines differ" + "".join(f"\n  {line}" for line in changes)
            )
        if self.files.reload_mark.exists():
            if self.hook is not None:
                self._run_hook(self.hook)
            self.files.reload_mark.unlink(missing_ok=True)

    def run(self, stop: threading.Event, interval: float) -> None:
        """Look until told to stop. The first look may be one too many for a service that is not up yet: that is waited for."""
        while True:
            try:
                self.look()
            except (UndercroftError, OSError) as error:
                text = error.message if isinstance(error, UndercroftError) else str(error)
                if text != self.trouble:
                    hook = isinstance(error, UndercroftError) and error.code == "HookFailed"
                    then = "It is run again" if hook else "The files stay as they are; looking again"
                    self.say(f"{text} {then} every {interval:g} s.")
                self.trouble = text
            else:
                if self.trouble:
                    self.say("Looking works again.")
                self.trouble = ""
            if stop.wait(interval):
                return

    def _run_hook(self, command: str) -> None:
        environment = {**os.environ, "UNDERCROFT_DNS_OUT": str(self.files.out)}
        process = subprocess.Popen(["/bin/sh", "-c", command], env=environment, stdin=subprocess.DEVNULL, stdout=2)
        try:
            status = process.wait(HOOK_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise LocalProblem(
                f"The hook '{command}' did not end within {HOOK_SECONDS:.0f} s and was killed.", code="HookFailed"
            ) from None
        if status:
            raise LocalProblem(
                f"The hook '{command}' ended with status {status}: the server may not know the new names.",
                code="HookFailed",
            )
        self.say(f"hook '{command}' done")

    def say(self, text: str) -> None:
        print(f"{self.clock.now():%Y-%m-%dT%H:%M:%SZ} {text}", flush=True)
