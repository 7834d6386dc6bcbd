"""Many backups with random changes between, against a dict: every point restores to what it was."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace

import pytest

from tests.engine.workbench import SMALL_PACKS, Bench, described, noise
from undercroft.clock import SystemClock
from undercroft.engine.backup import BackupResult


def _change(bench: Bench, chance: random.Random) -> None:
    """A few random changes of the source."""
    for _ in range(chance.randint(1, 8)):
        name = bench.source / f"d{chance.randint(0, 3)}" / f"f{chance.randint(0, 9)}"
        match chance.choice(
            ("write", "write", "append", "insert", "delete", "chmod", "rename", "link", "symlink", "folder")
        ):
            case "write":
                if name.is_dir() and not name.is_symlink():
                    shutil.rmtree(name)
                name.parent.mkdir(exist_ok=True)
                name.unlink(missing_ok=True)
                name.write_bytes(chance.randbytes(chance.choice((0, 1, 1000, 300_000, 1_500_000))))
            case "append" if name.is_file():
                with name.open("ab") as file:
                    file.write(chance.randbytes(chance.randint(1, 5000)))
            case "insert" if name.is_file():
                content = name.read_bytes()
                place = chance.randint(0, len(content))
                name.write_bytes(content[:place] + b"inserted" + content[place:])
            case "delete" if name.is_file():
                name.unlink()
            case "chmod" if name.is_file() and not name.is_symlink():
                name.chmod(chance.choice((0o600, 0o644, 0o755)))
            case "rename" if name.is_file():
                name.rename(name.with_name(f"f{chance.randint(0, 9)}-renamed"))
            case "link" if name.is_file() and not name.is_symlink():
                other = name.with_name(f"l{chance.randint(0, 999)}")
                if not other.exists():
                    other.hardlink_to(name)
            case "symlink" if name.parent.is_dir():
                other = name.with_name(f"s{chance.randint(0, 999)}")
                if not other.is_symlink():
                    other.symlink_to(name.name)
            case "folder":
                (bench.source / f"d{chance.randint(0, 3)}" / f"sub{chance.randint(0, 3)}").mkdir(
                    parents=True, exist_ok=True
                )


@pytest.mark.parametrize("seed", range(3))
def test_every_point_restores_to_what_it_was(bench: Bench, seed: int) -> None:
    chance = random.Random(seed)
    points: list[tuple[BackupResult, dict[bytes, object]]] = []
    for _ in range(8):
        _change(bench, chance)
        if chance.random() < 0.2 and bench.cache.exists():
            shutil.rmtree(bench.cache)
        if chance.random() < 0.2:
            bench.parent = None
        # The real clock: changes right after a backup must be seen, though times may be the same.
        points.append((bench.back_up(tuning=SMALL_PACKS, clock=SystemClock()), described(bench.source)))
    for result, expected in points:
        bench.assert_restores(result, expected)
    last = points[-1][0]
    bench.parent = last.manifest
    same = bench.back_up(tuning=SMALL_PACKS)
    assert set(same.packs) >= set(last.packs) or same.statistics.new_chunks <= 2


def test_a_long_history_needs_few_indexes(bench: Bench) -> None:
    """Every backup adds an index object; a point that needs many of them gets one instead, and older points keep theirs."""
    tuning = replace(SMALL_PACKS, indexes_per_point=3)
    results = []
    for number in range(10):
        (bench.source / f"file{number}").write_bytes(noise(20_000, number))
        result = bench.back_up(tuning=tuning)
        assert len(result.indexes) <= 3
        results.append((result, described(bench.source)))
    for result, expected in results:
        bench.assert_restores(result, expected)
    shutil.rmtree(bench.cache)
    again = bench.back_up(tuning=tuning)
    assert again.statistics.new_chunks == 0
    bench.assert_restores(again)
