"""No space left, on the service's side and on the agent's: said clearly, nothing acknowledged is lost, and it goes on with space."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.deployment import NearDeployment, drivers

pytestmark = [pytest.mark.root, pytest.mark.slow]

MEGABYTE = 1 << 20


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[None]:
    folder.mkdir(parents=True, mode=0o700)
    mount("-t", "tmpfs", "-o", f"size={megabytes}m,mode=700", "tmpfs", str(folder))
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


@pytest.mark.parametrize("driver", drivers())
def test_full_disks(driver: str, tmp_path: Path) -> None:
    deployment = NearDeployment(tmp_path / "home", driver)
    store, narrow = deployment.home / "store", tmp_path / "narrow"
    with small_disk(store, 40), small_disk(narrow, 4):
        try:
            deployment.start()
            files = deployment.furnished(files=5)
            deployment.backup(files)
            acknowledged = deployment.points()

            for number in range(4):
                (files / f"large-{number}").write_bytes(os.urandom(24 * MEGABYTE))
            said = deployment.backup(files, expect=1).err
            assert "InsufficientStorage" in said or "UserErrorStorageFull" in said, said
            assert "space" in said
            assert deployment.points() == acknowledged
            restored = deployment.restore(acknowledged[0]["id"], "restored")
            assert same(restored, files, "big")
            deployment.run("vault", "show", "safe", "-g", "rg")

            mount("-o", "remount,size=200m", str(store))
            deployment.backup(files)
            newest = deployment.points()
            assert newest[1:] == acknowledged

            said = deployment.inside(
                "web01", "agent", "restore", newest[0]["id"], "--to", narrow / "restored", "--passphrase-file",
                deployment.passphrase, expect=1).err  # fmt: skip
            assert "space" in said
            assert str(narrow) in said
            assert same(deployment.restore(newest[0]["id"], "again"), files, "large-3")
        finally:
            deployment.stop()


def same(restored: Path, files: Path, name: str) -> bool:
    return next(restored.rglob(name)).read_bytes() == (files / name).read_bytes()
