"""Damage: found, named, and limited to what it hit."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.engine.workbench import SMALL_PACKS, Bench, described, noise, plant
from undercroft.agent.sources.files_target import FilesTarget
from undercroft.engine.backup import BackupResult
from undercroft.engine.check import check_point, check_public
from undercroft.engine.index import read_public
from undercroft.engine.repair import rebuild_index
from undercroft.engine.restore import RestoreResult, restore
from undercroft.errors import CapabilityMissing, DamagedData


def _flip(path: Path, place: int) -> None:
    body = bytearray(path.read_bytes())
    body[place] ^= 0x40
    path.write_bytes(body)


def _restored_or_refused(bench: Bench, result: BackupResult, into: Path) -> RestoreResult | None:
    try:
        return restore(bench.depot, bench.keys, result.manifest, result.packs, result.indexes, FilesTarget(into))
    except (DamagedData, CapabilityMissing) as error:
        assert str(error)
        return None


@pytest.mark.parametrize("kind", ["packs", "indexes", "manifests"])
@pytest.mark.parametrize("place", ["magic", "version", "id", "first", "middle", "tag", "table", "end"])
def test_a_flipped_byte_is_found_and_named(bench: Bench, kind: str, place: str) -> None:
    plant(bench.source)
    result = bench.back_up(tuning=SMALL_PACKS)
    name = {"packs": result.packs[0], "indexes": result.indexes[0], "manifests": result.manifest}[kind]
    path = bench.depot.folder / name
    size = path.stat().st_size
    places = {
        "magic": 0,
        "version": 5,
        "id": 12,
        "first": 26,
        "middle": size // 2,
        "tag": 30,
        "table": size - 60,
        "end": size - 1,
    }
    _flip(path, places[place])
    report = check_point(bench.depot, bench.keys, result.manifest, result.packs, result.indexes)
    assert not report.whole
    assert any(finding.object == name or name in finding.reason for finding in report.findings) or any(
        name in (damage.pack, damage.frame) for damage in report.damaged_files
    )
    expected = described(bench.source)
    into = bench.folder / "restored"
    restored = _restored_or_refused(bench, result, into)
    if restored is not None:
        assert all(damage.frame for damage in restored.damaged)
        for path_, what in described(into).items():
            if path_ in expected and what[0] == 0o100000:
                assert what == expected[path_], "changed bytes were returned as data"
        if not restored.partial:
            assert described(into) == expected


@pytest.mark.parametrize("kind", ["packs", "indexes", "manifests"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.95])
def test_a_truncated_object_is_found_and_named(bench: Bench, kind: str, share: float) -> None:
    plant(bench.source)
    result = bench.back_up(tuning=SMALL_PACKS)
    name = {"packs": result.packs[0], "indexes": result.indexes[0], "manifests": result.manifest}[kind]
    path = bench.depot.folder / name
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    assert not check_public(bench.depot, result.manifest, result.packs, result.indexes).whole
    restored = _restored_or_refused(bench, result, bench.folder / "restored")
    assert restored is None or restored.partial or share == 0.95
    path.unlink()
    assert not check_public(bench.depot, result.manifest, result.packs, result.indexes).whole


def test_other_files_are_restored_and_damage_is_listed(bench: Bench) -> None:
    plant(bench.source)
    result = bench.back_up(tuning=SMALL_PACKS)
    (bench.source / "new").write_bytes(noise(300_000, 9))
    second = bench.back_up(tuning=SMALL_PACKS)
    for pack, rows in (
        found for name in result.indexes for found in read_public(name, bench.depot.get(name)) if len(found[1]) > 0
    ):
        _flip(bench.depot.folder / pack, rows[0].offset + rows[0].length // 2)
        restored = restore(
            bench.depot, bench.keys, second.manifest, second.packs, second.indexes, FilesTarget(bench.folder / "some")
        )
        assert restored.partial
        assert {(damage.pack, damage.frame) for damage in restored.damaged} == {(pack, rows[0].name)}
        lost = {damage.path for damage in restored.damaged}
        left, before = described(bench.folder / "some"), described(bench.source)
        if b"" not in lost:
            assert set(before) - set(left) == lost
            assert all(left[path] == before[path] for path in left)
        assert not any(b".undercroft-" in path for path in left), "a half file stayed"
        shutil.rmtree(bench.folder / "some")
        _flip(bench.depot.folder / pack, rows[0].offset + rows[0].length // 2)


def test_a_lost_pack_that_the_commit_reports_is_sent_again(bench: Bench) -> None:
    plant(bench.source)
    for number in range(4):
        (bench.source / f"more{number}").write_bytes(noise(900_000, number))
    first = bench.back_up(tuning=SMALL_PACKS)
    gone = first.packs[:2]
    for name in gone:
        (bench.depot.folder / name).unlink()
    stale = bench.back_up(tuning=SMALL_PACKS, check=False)
    missing = [name for name in (*stale.packs, *stale.indexes) if not (bench.depot.folder / name).exists()]
    assert sorted(missing) == sorted(gone)
    repaired = bench.back_up(tuning=SMALL_PACKS, missing=missing)
    assert not set(repaired.packs) & set(gone)
    assert repaired.statistics.bytes_read < first.statistics.bytes_read
    bench.assert_restores(repaired)
    again = bench.back_up(tuning=SMALL_PACKS)
    assert not set(again.packs) & set(gone)
    assert again.statistics.new_chunks == 0


def test_a_damaged_index_is_not_used_and_its_content_is_sent_again(bench: Bench) -> None:
    plant(bench.source)
    result = bench.back_up(tuning=SMALL_PACKS)
    shutil.rmtree(bench.cache)
    _flip(bench.depot.folder / result.indexes[0], -1)
    again = bench.back_up(tuning=SMALL_PACKS)
    assert any("index object" in problem.reason for problem in again.problems)
    assert again.statistics.unreadable == 0
    bench.assert_restores(again)


def test_damaged_local_files_cost_time_only(bench: Bench) -> None:
    plant(bench.source)
    bench.back_up(tuning=SMALL_PACKS)
    for path in bench.cache.iterdir():
        if path.name != "lock":
            _flip(path, path.stat().st_size // 2)
    again = bench.back_up(tuning=SMALL_PACKS)
    assert again.statistics.new_chunks == 0
    bench.assert_restores(again)
    for path in bench.cache.iterdir():
        if path.name != "lock":
            path.write_bytes(path.read_bytes()[:-5])
    bench.assert_restores(bench.back_up(tuning=SMALL_PACKS))


def test_lost_indexes_are_made_again_from_packs_and_key(bench: Bench) -> None:
    plant(bench.source)
    result = bench.back_up(tuning=SMALL_PACKS)
    for name in result.indexes:
        (bench.depot.folder / name).unlink()
    index, lost = rebuild_index(bench.depot, bench.keys, result.packs)
    assert not lost
    assert check_point(bench.depot, bench.keys, result.manifest, result.packs, [index]).whole
    into = bench.folder / "restored"
    assert not restore(bench.depot, bench.keys, result.manifest, result.packs, [index], FilesTarget(into)).partial
    assert described(into) == described(bench.source)
    shutil.rmtree(bench.cache)
    assert bench.back_up(tuning=SMALL_PACKS).statistics.new_chunks == 0


def test_a_damaged_frame_is_left_out_of_a_rebuilt_index(bench: Bench) -> None:
    plant(bench.source)
    result = bench.back_up(tuning=SMALL_PACKS)
    pack, rows = read_public(result.indexes[0], bench.depot.get(result.indexes[0]))[0]
    _flip(bench.depot.folder / pack, rows[0].offset)
    _, lost = rebuild_index(bench.depot, bench.keys, [*result.packs, "packs/" + "0" * 32])
    assert any(rows[0].name in reason for reason in lost)
    assert any("0" * 32 in reason for reason in lost)
