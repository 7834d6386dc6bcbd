"""Descriptors run out: the fabric says which limit it was, keeps what it has, and goes on when there is room again."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from tests.fabric.machine import Machine, drivers, host, network
from undercroft.capacity import exhausted, raise_descriptor_limit
from undercroft.errors import LocalProblem
from undercroft.fabric.specification import Transport

pytestmark = pytest.mark.rootless


@pytest.mark.parametrize(
    "machine", drivers()[:1], indirect=True
)  # root need not have a right over another user's limits
async def test_a_fabric_without_descriptors_says_so_and_goes_on(machine: Machine) -> None:
    async with machine.client() as client:
        await client.apply(network("a", host("web")))
        soft, hard = resource.prlimit(machine.pid, resource.RLIMIT_NOFILE)
        assert soft > 1024 or soft == hard, "it raises its limit itself"
        used = len(list(Path(f"/proc/{machine.pid}/fd").iterdir()))
        resource.prlimit(machine.pid, resource.RLIMIT_NOFILE, (used, hard))
        with pytest.raises(LocalProblem) as refused:
            await client.apply(network("b", host("db")))
        assert refused.value.code == "TooManyOpenFiles", refused.value.message
        assert f"{used:,} open descriptors" in refused.value.message
        with pytest.raises(LocalProblem, match="open descriptors"):
            await client.listen("/vnet/a", None, 443, Transport.TCP)
        resource.prlimit(machine.pid, resource.RLIMIT_NOFILE, (soft, hard))
        await client.apply(network("b", host("db")))
        assert await client.apply(network("a", host("web"))) == (), "what was there was left alone"
        (await client.listen("/vnet/b", None, 443, Transport.TCP)).close()


def test_the_soft_limit_is_raised_as_far_as_the_hard_one_allows() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        assert raise_descriptor_limit() == resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 256
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert exhausted(FileNotFoundError()) is None
    found = exhausted(OSError(23, os.strerror(23)))
    assert found is not None and "fs.file-max" in found.message
