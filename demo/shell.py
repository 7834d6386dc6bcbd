"""Runs commands as a person would type them, shows them with what they answered, and keeps the time of each step."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Failed", "Ran", "Shell"]


class Failed(Exception):
    """A proof did not hold; the journey stops here."""


@dataclass(frozen=True)
class Ran:
    status: int
    out: str
    err: str
    seconds: float

    @property
    def said(self) -> str:
        return self.out + self.err


@dataclass(frozen=True)
class Step:
    heading: str
    seconds: float


class Shell:
    """``undercroft`` is this interpreter's, run in the folder beside the home; the home goes in by environment, as one would
    export it once. Files in that folder are typed by their names."""

    def __init__(self, home: Path) -> None:
        self.steps: list[Step] = []
        self._folder = home.parent
        self._undercroft = [sys.executable, "-m", "undercroft.cli"]
        self.environment = dict(os.environ, UNDERCROFT_HOME=str(home), PYTHONUNBUFFERED="1", COLUMNS="120")
        self._colour = sys.stdout.isatty()

    @contextmanager
    def step(self, heading: str) -> Iterator[None]:
        self.say(f"\n## {heading}", "1;36")
        start = time.monotonic()
        try:
            yield
        finally:
            self.steps.append(Step(heading, time.monotonic() - start))

    def run(
        self, *words: str | Path, expect: int | Sequence[int] = 0, show: bool = True, inside: str | None = None
    ) -> Ran:
        """Run ``undercroft words…`` (``inside``: within that VM), show it, and insist on its exit status."""
        command = [self._named(word) for word in words]
        words_inside = command if command[0] in ("nslookup", "python3", "curl") else ["undercroft", *command]
        typed = shlex.join(["undercroft", *(["vm", "exec", inside, "--", *words_inside] if inside else command)])
        self.say(f"$ {typed}", "1")
        real = [*self._undercroft, *command]
        if inside:
            program = command if words_inside is command else [*self._undercroft, *command]
            real = [*self._undercroft, "vm", "exec", inside, "--", *program]
        start = time.monotonic()
        done = subprocess.run(
            real,
            cwd=self._folder,
            env=self.environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=600,
            check=False,
        )
        ran = Ran(done.returncode, done.stdout, done.stderr, time.monotonic() - start)
        expected = (expect,) if isinstance(expect, int) else tuple(expect)
        if ran.status not in expected:
            self.say(ran.said.rstrip())
            raise Failed(f"'{typed}' ended with status {ran.status}, not {' or '.join(map(str, expected))}")
        if show:
            self.show(ran.said)
        return ran

    def _named(self, word: str | Path) -> str:
        if isinstance(word, Path) and word.is_relative_to(self._folder):
            return str(word.relative_to(self._folder))
        return str(word)

    def show(self, text: str, most: int = 14) -> None:
        lines = text.rstrip().splitlines()
        for line in lines[:most]:
            print(f"  {line}")
        if len(lines) > most:
            print(f"  … {len(lines) - most} more lines")
        sys.stdout.flush()

    def proof(self, text: str, holds: bool) -> None:
        """What this step shows. It must hold, or the journey ends."""
        self.say(f"  {'✔' if holds else '✘'} {text}", "32" if holds else "31")
        if not holds:
            raise Failed(text)

    def say(self, text: str, colour: str = "") -> None:
        print(f"\033[{colour}m{text}\033[0m" if colour and self._colour else text, flush=True)
