"""What a person sees while it runs: a bar with the rate on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from undercroft.clock import Clock

__all__ = ["Amounts", "Counting", "Display", "RestoreSummary", "Summary", "megabytes"]

LINE_SECONDS = 5.0
BAR_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Amounts:
    """How far it is. ``read`` are bytes of the source (backup) or bytes written (restore); ``total`` is 0 when unknown."""

    files: int = 0
    read: int = 0
    sent: int = 0
    total: int = 0


class Counting(Protocol):
    def __call__(self) -> Amounts: ...


def megabytes(count: float) -> str:
    """Decimal units, as disks and networks are sold."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"


@dataclass(frozen=True, slots=True)
class Summary:
    """The last line of a backup. ``size`` is what the source holds, ``read`` what had to be read of it, ``stored`` what the
    vault grew by; ``path`` is private, public, or both."""

    files: int
    size: int
    read: int
    sent: int
    stored: int
    seconds: float
    path: str

    def __str__(self) -> str:
        return (
            f"{self.files} files, {megabytes(self.size)}: {megabytes(self.read)} read, {megabytes(self.sent)} sent, "
            f"{megabytes(self.stored)} stored, {self.seconds:.1f} s, {rate(self.size, self.seconds)}, {self.path} path"
        )


@dataclass(frozen=True, slots=True)
class RestoreSummary:
    files: int
    written: int
    received: int
    seconds: float
    path: str

    def __str__(self) -> str:
        return (
            f"{self.files} files, {megabytes(self.received)} received, {megabytes(self.written)} written, "
            f"{self.seconds:.1f} s, {rate(self.written, self.seconds)}, {self.path} path"
        )


def rate(count: int, seconds: float) -> str:
    return f"{count / max(seconds, 1e-3) / 1e6:.1f} MB/s"


class Display:
    """A thread that shows what ``counting`` says until the block ends; asks nothing of who does the work."""

    def __init__(self, title: str, counting: Counting, clock: Clock, stream: TextIO | None = None) -> None:
        self._title = title
        self._counting = counting
        self._clock = clock
        self._stream = stream if stream is not None else sys.stderr
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._show, name="progress", daemon=True)
        self._started = clock.monotonic()

    def __enter__(self) -> Display:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _show(self) -> None:
        try:
            if self._stream.isatty():
                self._bar()
            else:
                while not self._stop.wait(LINE_SECONDS):
                    print(f"{self._title}: {self._line(self._counting())}", file=self._stream, flush=True)
        except OSError:
            pass  # the terminal or the pipe is gone; the work goes on without a display

    def _line(self, now: Amounts) -> str:
        seconds = max(self._clock.monotonic() - self._started, 1e-3)
        text = f"{now.files} files, {megabytes(now.read)}"
        if now.total:
            text += f" of {megabytes(now.total)}"
        if now.sent:
            text += f", {megabytes(now.sent)} over the network"
        return f"{text}, {now.read / seconds / 1e6:.1f} MB/s"

    def _bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[line]}"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=Console(file=self._stream), transient=True, refresh_per_second=4) as bar:
            task = bar.add_task(self._title, total=None, line="")
            while not self._stop.wait(BAR_SECONDS):
                self._update(bar, task)

    def _update(self, bar: Bar, task: TaskID) -> None:
        now = self._counting()
        bar.update(task, total=now.total or None, completed=now.read, line=self._line(now))
