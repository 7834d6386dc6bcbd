"""The files of ``dns export`` and ``dns watch`` on disk.

Configuration files are replaced whole, by rename, zone files before the file that names them. A hosts file is written in place instead:
it may be bind-mounted (into a VM, into a container), and a mount follows the inode; only the block between our marks is ours. A
*reload mark* beside the files says that a server has not been told of them yet, so that no crash or failing hook loses a reload.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from undercroft.dns.exports import hosts
from undercroft.dns.exports.formats import SEVERAL_FILES, render
from undercroft.dns.exports.plan import ConfigurationFile, Plan, stamp_in, title_in
from undercroft.errors import Conflict, InvalidInput

__all__ = ["KeptFiles"]

_MARK_OF_OURS = "Undercroft dns export"


@dataclass(frozen=True, slots=True)
class KeptFiles:
    """Where one export goes. ``out`` is a folder, or the file itself where the format has only one."""

    format: str
    out: Path

    def __post_init__(self) -> None:
        if self.format in SEVERAL_FILES and self.out.exists() and not self.out.is_dir():
            raise InvalidInput(f"--out {self.out} is a file; {self.format} needs a folder.", target="--out")

    @property
    def folder(self) -> Path:
        return self.out if self.format in SEVERAL_FILES or self.out.is_dir() else self.out.parent

    def path(self, file: ConfigurationFile) -> Path:
        return self.folder / file.name if self.folder == self.out else self.out

    @property
    def reload_mark(self) -> Path:
        return self.folder / f".{self.out.name}.reload-due"

    def update(self, plan: Plan) -> tuple[str, ...] | None:
        """Make the files say what the plan says. None when they did; else what changed, a line for each, ``+`` or ``-`` first."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return self._update_block(plan) if self.format == "hosts" else self._update_files(plan)

    def _update_files(self, plan: Plan) -> tuple[str, ...] | None:
        files = render(self.format, plan)
        before = {path: _text(path) for path in map(self.path, files)}
        written = stamp_in(before[self.path(files[0])])
        if written is not None and all(
            before[self.path(file)] == file.text for file in render(self.format, plan.at(written))
        ):
            return None
        _check_ours(before, plan.title)
        gone = self._left_over(set(before)) if self.format in SEVERAL_FILES else {}
        self.reload_mark.touch()
        for file in reversed(files):
            _replace(self.path(file), file.text)
        for path in gone:
            path.unlink(missing_ok=True)
        return _changes("".join((*before.values(), *gone.values())), "".join(file.text for file in files))

    def _left_over(self, wanted: set[Path]) -> dict[Path, str]:
        """Zone files of ours whose zone is no longer needed."""
        found = {path: _text(path) for path in sorted(self.folder.glob("db.*")) if path not in wanted}
        return {path: text for path, text in found.items() if _MARK_OF_OURS in text.partition("\n")[0]}

    def _update_block(self, plan: Plan) -> tuple[str, ...] | None:
        descriptor = os.open(self.path(render("hosts", plan)[0]), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        with os.fdopen(descriptor, "r+", encoding="utf-8", errors="surrogateescape", newline="") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # another watch may keep another block of the same file
            before = file.read()
            ours = hosts.block_in(plan, before)
            written = stamp_in(ours)
            if written is not None and render("hosts", plan.at(written))[0].text == ours:
                return None
            block = render("hosts", plan)[0].text
            after = hosts.merged(plan, before, block)
            self.reload_mark.touch()
            file.seek(0)
            file.write(after)
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
        return _changes(ours, block)


def _check_ours(files: Mapping[Path, str], title: str) -> None:
    """``--out /etc/unbound/unbound.conf`` is soon typed, and would be the end of somebody's configuration."""
    for path, text in files.items():
        if text.strip() and stamp_in(text) is None:
            raise Conflict(
                f"{path} has something in it that 'dns export' did not write, and would be replaced. Give another --out and include "
                "that, or move the file away.",
                code="ForeignFile",
                target="--out",
            )
        if (other := title_in(text)) is not None and other != title:
            raise Conflict(
                f"{path} is the export of '{other}', and that of '{title}' would replace it. Give each its own --out, export both at once "
                "(several --endpoint, or --vault), or remove the file if it is no longer needed.",
                code="ExportOfOthers",
                target="--out",
            )


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except FileNotFoundError:
        return ""


def _replace(path: Path, text: str) -> None:
    """Readable by everybody: name servers run as users of their own, and names are no secret."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _changes(before: str, after: str) -> tuple[str, ...]:
    """Lines that say something, gone and come; serials and comments change with every writing."""
    old, new = _statements(before), _statements(after)
    gone = (f"- {line}" for line in old if line not in new)
    return (*gone, *(f"+ {line}" for line in new if line not in old))


def _statements(text: str) -> dict[str, None]:
    lines = (line.strip() for line in text.splitlines())
    return dict.fromkeys(line for line in lines if line and line[0] not in "#;/" and " SOA " not in line)
