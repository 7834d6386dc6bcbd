"""The parts of docs/benchmarks.md are written one by one, and each leaves the others as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.__main__ import PARTS, parts_of, publish
from bench.latency import Percentiles
from bench.networks import Networks, render
from bench.scale import Scale
from bench.soak import section

BACKUP = "# Benchmark\n\nMeasured.\n\n## Data\n\n| set |\n| --- |\n\nA last word.\n"


def test_a_part_takes_its_own_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "benchmarks.md"
    file.write_text(BACKUP, "utf-8")
    publish("networks", "## Networks\n\nfirst\n", file)
    publish("names", "## Names\n\nnames\n", file)
    publish("networks", "## Networks\n\nsecond\n", file)
    text = file.read_text("utf-8")
    assert text == f"{BACKUP}\n## Names\n\nnames\n\n## Networks\n\nsecond\n"
    assert list(parts_of(text)) == list(PARTS)
    publish("soak", section(["2 cores"], ["netns: 5 cycles in 2 s", "rootless: 5 cycles in 2 s"]), file)
    publish("networks", "## Networks\n\nthird\n", file)
    begun, _, soaked = file.read_text("utf-8").partition("\n\nthird\n\n## Soak\n\n")
    assert begun.endswith("## Networks") and soaked.endswith(
        "\n\nnetns: 5 cycles in 2 s\n\nrootless: 5 cycles in 2 s\n"
    )
    publish("backup", "# Benchmark\n\nanew\n", file)
    assert file.read_text("utf-8").startswith("# Benchmark\n\nanew\n\n## Names\n")
    assert "second" in capsys.readouterr().out


def test_percentiles_and_what_was_not_measured() -> None:
    found = Percentiles.of([float(number) for number in range(200)])
    assert (found.half, found.most, found.count) == (100.0, 198.0, 200)
    assert render(Networks()) == []
    scale = Scale(1000, 100, 60, 0.02, 0.03, 0.01, 0.01, 4, 100 << 20, 150 << 20, 1, 2)
    assert "| memory per endpoint, kB | 52.4 |" in render(Networks(scale=scale))
