"""The programs people really use ask our server."""

from __future__ import annotations

from tests.dns.loopback import BLOB, Serve, run_program, zone

ACCOUNT = "0a1b2c3decs01.blob.core.windows.net"
MEMBER = "8726350008099341699-ab-pod01-id1.privatelink.eus.backup.windowsazure.com"


async def test_nslookup_shows_the_private_address_and_says_when_there_is_none(serve: Serve) -> None:
    first, rest = MEMBER.split(".", 1)
    linked = await serve(
        zone(rest, {(first, "A"): ("10.0.1.10",)}), zone(BLOB, {("0a1b2c3decs01", "A"): ("10.0.1.18",)})
    )
    unlinked = await serve(server=linked.server, network="b")

    text = await run_program("nslookup", f"-port={linked.port}", MEMBER, "127.0.0.1")
    assert "10.0.1.10" in text
    text = await run_program("nslookup", f"-port={linked.port}", ACCOUNT, "127.0.0.1")
    assert f"{ACCOUNT}\tcanonical name = 0a1b2c3decs01.{BLOB}." in text
    assert "10.0.1.18" in text
    text = await run_program("nslookup", f"-port={unlinked.port}", MEMBER, "127.0.0.1")
    assert f"** server can't find {MEMBER}: NXDOMAIN" in text


async def test_dig_sees_the_reason_and_shares_the_cache_despite_its_cookie(serve: Serve) -> None:
    served = await serve(zone(BLOB, {("acct", "A"): ("10.0.1.18",)}))
    for _ in range(3):
        text = await run_program("dig", f"-p{served.port}", "@127.0.0.1", f"acct.{BLOB}")
        assert f"acct.{BLOB}. 10 IN A 10.0.1.18" in " ".join(text.split())
        assert "udp: 1232" in text
    assert len(served.server._networks["a"].cache) == 1
    text = await run_program("dig", f"-p{served.port}", "@127.0.0.1", f"none.{BLOB}")
    assert "status: NXDOMAIN" in text
    assert f"zone {BLOB} is linked to this network and has no such name" in text
    text = await run_program("dig", f"-p{served.port}", "@127.0.0.1", BLOB, "ANY", "+notcp")
    assert "status: REFUSED" in text


async def test_dig_comes_back_by_tcp_for_a_large_answer(serve: Serve) -> None:
    addresses = tuple(f"10.0.2.{n}" for n in range(1, 121))
    served = await serve(zone("contoso.com", {("many", "A"): addresses}))
    text = await run_program("dig", f"-p{served.port}", "@127.0.0.1", "many.contoso.com", "+short")
    lines = text.splitlines()
    assert sorted(line for line in lines if not line.startswith(";")) == sorted(addresses)
    text = await run_program("dig", f"-p{served.port}", "@127.0.0.1", "many.contoso.com", "AXFR")
    assert "Transfer failed" in text
