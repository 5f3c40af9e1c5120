"""Ended TLS connections: nothing is left of them, and late writes raise nothing."""

from __future__ import annotations

from pathlib import Path
from weakref import ref

import certs
import pytest
from trunkline_edge.transport.tls_transport import TlsTransport

from tests.edge.transport.edge_loopback import accepted, closed, edge_and_link
from tests.support.certificates import Certificates

#: An application's record of 32 bytes that no key has made.
FORGED = b"\x17\x03\x03\x00\x20" + b"z" * 32


@pytest.mark.parametrize("ending", ["close", "write_eof", "abort"])
async def test_what_is_written_after_a_forged_record_is_dropped(tmp_path: Path, ending: str) -> None:
    ours = Certificates(tmp_path)
    async with edge_and_link(tls_cert=ours.edge, tls_key=certs.key_of(ours.edge)) as (edge, link):
        edge.trusting = ours.trusting
        client, number = await accepted(edge, link)
        transport = edge.transport(number).transport
        assert isinstance(transport, TlsTransport)
        # Before the loop can tell that the connection is lost, something is written to it.
        transport.data_received(FORGED)
        transport.write(b"to all")
        getattr(transport, ending)()
        assert transport.is_closing()
        assert edge.runtime.core.counts.protocol_errors == 1
        assert (await link.next("closed")).connection == number
        assert await closed(client) == 1006


async def test_what_tls_needs_much_memory_for_ends_with_the_connection(tmp_path: Path) -> None:
    ours = Certificates(tmp_path)
    async with edge_and_link(tls_cert=ours.edge, tls_key=certs.key_of(ours.edge)) as (edge, link):
        edge.trusting = ours.trusting
        client, number = await accepted(edge, link)
        transport = edge.transport(number).transport
        secrets = ref(transport.get_extra_info("ssl_object"))
        assert secrets() is not None
        await client.close()
        await edge.until(lambda: secrets() is None)
        assert transport.get_extra_info("ssl_object") is None
        transport.write(b"to all")
        transport.close()
