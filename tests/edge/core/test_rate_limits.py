"""Rate limits of connections and tenants."""

from __future__ import annotations

import json

import pytest
from trunkline.v1.catalogue import Refused
from trunkline.v1.edge_service_pb2 import ConnectionOpened
from trunkline.v1.frame_pb2 import ClientFrame, SignalFrame
from trunkline.v1.tenant_pb2 import TenantLimits
from trunkline_edge.core.connection import Connection
from trunkline_edge.core.edge import EdgeCore
from trunkline_edge.core.rate_limits import VALUES_PER_MESSAGE, ConnectionRateLimiter, TenantRateLimiter
from trunkline_edge.core.read_control import BATCHES_PER_S, MIN_BATCH
from trunkline_edge.dialects.native.handshake import CODECS
from trunkline_edge.dialects.native.json_codec import NativeJson

from tests.edge.core.core_harness import (
    JSON,
    ack,
    connected,
    deliver,
    forwarded,
    group,
    heard,
    join,
    linked_core,
    paused,
    resumed,
    say,
    send,
    signal,
    topic,
)


def limits(**more: int) -> TenantLimits:
    return TenantLimits(frame_bytes=1 << 20, **more)


def paced(core: EdgeCore, pace: TenantRateLimiter) -> Connection:
    client = core.sessions.open(JSON, ConnectionOpened(address=group("team")), 0, ConnectionRateLimiter(pace))
    deliver(core, topic(client.number, "team"), connected(client), join(client, client.number))
    client.pending.clear()
    forwarded(core)
    return client


def error(connection: Connection) -> dict[str, object]:
    [data] = connection.pending
    connection.pending.clear()
    fields: dict[str, object] = json.loads(data[data.index(b"{") :])
    return fields


def test_a_frame_too_many_is_refused_by_its_id_and_its_sender_is_not_read_from_for_a_while() -> None:
    core = linked_core()
    client = paced(core, TenantRateLimiter("t", limits(connection_messages_per_s=2)))
    for ident in ("m1", "m2", "m3"):
        core.client_frames.received(client, say(ident), now=10)
    assert forwarded(core) == ["frame 1 m1", "frame 1 m2"]
    refused = error(client)
    assert (refused["id"], refused["code"], refused["retry_after_ms"]) == ("m3", "RATE_LIMITED", 500)
    assert paused(core) == {client}
    # An answer meanwhile does not resume it.
    deliver(core, ack(client, "m1"))
    assert client.reading_paused
    core.client_frames.unthrottle_next(10.5)
    assert resumed(core) == {client}
    core.client_frames.received(client, say("m3"), now=10.5)
    assert forwarded(core) == ["frame 1 m3"]
    assert core.counts.refused_by == {"RATE_LIMITED": 1}


def test_bytes_are_limited_too() -> None:
    core = linked_core()
    client = paced(core, TenantRateLimiter("t", limits(connection_bytes_per_s=20 << 20)))
    large = say("m1", "x" * (12 << 20))
    core.client_frames.received(client, large, now=10)
    core.client_frames.received(client, large.replace(b"m1", b"m2"), now=10)
    assert forwarded(core) == ["frame 1 m1"]
    assert error(client)["code"] == "RATE_LIMITED"


def test_the_clients_of_a_tenant_share_its_rate_and_others_do_not() -> None:
    core = linked_core()
    pace = TenantRateLimiter("t", limits(messages_per_s=3))
    one, two, other = (
        paced(core, pace),
        paced(core, pace),
        paced(core, TenantRateLimiter("u", limits(messages_per_s=3))),
    )
    for client in (one, two, one, two, other):
        core.client_frames.received(client, signal(), now=10)
    assert forwarded(core) == [f"frame {number} signal" for number in (1, 2, 1, 3)]
    assert "the clients of tenant t" in str(error(two)["message"])
    assert not other.pending


def test_what_the_tenant_is_refused_does_not_count_for_the_connection() -> None:
    core = linked_core()
    pace = TenantRateLimiter("t", limits(messages_per_s=1, connection_messages_per_s=2))
    one, two = paced(core, pace), paced(core, pace)
    core.client_frames.received(one, signal(), now=10)
    core.client_frames.received(two, signal(), now=10)
    assert heard(two) == ["error RATE_LIMITED"]
    pace.set(limits(messages_per_s=1000, connection_messages_per_s=2))
    core.client_frames.received(two, signal(), now=10.01)
    core.client_frames.received(two, signal(), now=10.01)
    assert not two.pending


def test_limits_that_change_count_at_once_for_those_who_are_connected() -> None:
    core = linked_core()
    pace = TenantRateLimiter("t", limits(connection_messages_per_s=1))
    client = paced(core, pace)
    core.client_frames.received(client, signal(), now=10)
    core.client_frames.received(client, signal(), now=10)
    assert heard(client) == ["error RATE_LIMITED"]
    pace.set(limits(connection_messages_per_s=100))
    core.client_frames.received(client, signal(), now=10.01)
    assert not client.pending


def test_a_client_is_told_its_limits() -> None:
    core = linked_core()
    pace = TenantRateLimiter(
        "t", TenantLimits(connection_messages_per_s=7, connection_bytes_per_s=9, frame_bytes=2048)
    )
    client = core.sessions.open(JSON, ConnectionOpened(address=group("team")), 0, ConnectionRateLimiter(pace))
    deliver(core, topic(1, "team"), connected(client))
    sent = error(client)["limits"]
    assert sent == {
        "frame_bytes": 2048,
        "unanswered": 64,
        "messages_per_s": 7,
        "bytes_per_s": 9,
    }


def test_what_was_read_together_with_too_much_waits_for_its_turn_in_order() -> None:
    core = linked_core()
    client = paced(core, TenantRateLimiter("t", limits(connection_messages_per_s=2)))
    for ident in ("m1", "m2", "m3", "m4", "m5"):
        core.client_frames.received(client, say(ident), now=10)
    # Only the first frame over the limit is rejected; the others are not decoded.
    assert heard(client) == ["error RATE_LIMITED"]
    assert core.counts.frames_in == 3
    # Frames to the client meanwhile do not resume it.
    deliver(core, ack(client, "m1"))
    assert forwarded(core) == ["frame 1 m1", "frame 1 m2"]
    client.pending.clear()
    core.client_frames.unthrottle_next(10.5)
    assert forwarded(core) == ["frame 1 m4"]
    assert error(client)["id"] == "m5"
    assert client.reading_paused
    core.client_frames.unthrottle_next(11)
    assert resumed(core) == {client}
    assert not client.buffered_input


def test_those_who_rest_have_their_turn_within_a_second_and_never_all_at_once() -> None:
    core = linked_core()
    pace = TenantRateLimiter("t", limits(messages_per_s=1))
    # The tenant's bucket holds one frame: the first client takes it, the others are throttled.
    clients = [paced(core, pace) for _ in range(1 + 3 * MIN_BATCH)]
    for client in clients:
        core.client_frames.received(client, signal(), now=10)
    turns = 0
    while core.throttle.next_due is not None:
        core.client_frames.unthrottle_next(10.1)
        turns += 1
    assert turns == 3
    many = [paced(core, pace) for _ in range(3 * BATCHES_PER_S * MIN_BATCH)]
    for client in many:
        core.client_frames.received(client, signal(), now=10.1)
    for _ in range(BATCHES_PER_S):
        assert core.throttle.next_due is not None
        core.client_frames.unthrottle_next(10.2)
    assert not core.throttle.next_due is not None
    assert resumed(core) >= set(many)


def test_one_that_is_closed_while_it_rests_is_read_from_for_its_side_of_the_closing() -> None:
    core = linked_core()
    client = paced(core, TenantRateLimiter("t", limits(connection_messages_per_s=1)))
    core.client_frames.received(client, signal(), now=10)
    core.client_frames.received(client, signal(), now=10)
    core.effects.clear()
    core.backpressure.close_slow(client)
    assert resumed(core) == {client}
    core.gone(client)
    core.effects.clear()
    core.client_frames.unthrottle_next(11)
    assert not resumed(core)


def test_connects_are_limited_by_the_second() -> None:
    pace = TenantRateLimiter("t", limits(connects_per_s=2))
    pace.connect(10)
    pace.connect(10)
    with pytest.raises(Refused) as refused:
        pace.connect(10)
    assert (refused.value.entry.code, refused.value.retry_after_ms) == ("TOO_MANY_CONNECTS", 500)
    pace.connect(10.5)


class CountingCodec(NativeJson):
    """Counts the frames that it decodes."""

    def __init__(self) -> None:
        self.decoded = 0

    def decode(self, payload: bytes, binary: bool = False) -> ClientFrame:
        self.decoded += 1
        return super().decode(payload, binary)


def test_a_frame_over_the_limit_is_not_decoded_and_refused_by_its_id() -> None:
    core = linked_core()
    client = paced(core, TenantRateLimiter("t", limits(connection_messages_per_s=1)))
    codec = client.codec = CountingCodec()
    core.client_frames.received(client, say("m1"), now=10)
    core.client_frames.received(client, say("m2"), now=10)
    assert (codec.decoded, error(client)["id"]) == (1, "m2")


@pytest.mark.parametrize("codec", ["trunkline.v1.json", "trunkline.v1.proto"])
def test_a_frame_of_many_values_costs_more_messages(codec: str) -> None:
    core = linked_core()
    client = paced(core, TenantRateLimiter("t", limits(connection_messages_per_s=1000)))
    frame = ClientFrame(signal=SignalFrame(name="n", data={"a": [True] * 3200}))
    payload = frame.SerializeToString()
    if codec == "trunkline.v1.json":
        payload = b'{"type":"signal","name":"n","data":{"a":[%b]}}' % b",".join([b"1"] * 1280)
    client.codec = CODECS[codec]
    taken = 0
    while not client.reading_paused:
        core.client_frames.received(client, payload, now=10)
        taken += 1
    # A second's messages pay for so many, and the last one that began within it.
    values = 1284 if codec == "trunkline.v1.json" else 3201
    assert taken - 1 == pytest.approx(1000 / (1 + values / VALUES_PER_MESSAGE), abs=1)


def test_a_refused_frame_pays_for_its_values_and_owes_a_second_at_most() -> None:
    core = linked_core()
    client = paced(core, TenantRateLimiter("t", limits(connection_messages_per_s=10)))
    core.client_frames.received(
        client, b'{"type":"ping","id":"p","a":[%b]}' % b",".join([b"1"] * 99_999), now=10
    )
    assert (error(client)["code"], error_of(core, client, 10)) == ("INVALID_ARGUMENT", "RATE_LIMITED")
    core.client_frames.unthrottle_next(11.2)
    core.client_frames.received(client, say("m1"), now=11.2)
    assert forwarded(core) == ["frame 1 m1"]


def test_a_page_of_many_values_is_charged_to_the_connection_that_asked() -> None:
    core = linked_core()
    client = paced(core, TenantRateLimiter("t", limits(connection_messages_per_s=1000)))
    page = send(client)
    for _ in range(8):
        part = page.send.frame.history.messages.add().parts.add()
        part.custom.data["a"] = [True] * 4000
    deliver(core, page, now=10)
    client.pending.clear()
    assert error_of(core, client, 10) == "RATE_LIMITED"
    core.client_frames.unthrottle_next(12)
    text = send(client)
    text.send.frame.history.messages.add().parts.add().text.text = "x" * 100_000
    deliver(core, text, now=12)
    core.client_frames.received(client, say("m1"), now=12)
    assert forwarded(core) == ["frame 1 m1"]


def error_of(core: EdgeCore, client: Connection, now: float) -> object:
    core.client_frames.received(client, say("m0"), now=now)
    return error(client)["code"]


@pytest.mark.parametrize("codec", ["trunkline.v1.json", "trunkline.v1.proto"])
def test_a_signal_over_the_routers_limit_is_refused_before_the_link(codec: str) -> None:
    core = linked_core()
    client = paced(core, TenantRateLimiter("t", limits()))
    client.codec = CODECS[codec]
    for size, fits in ((16_300, True), (16_400, False)):
        frame = ClientFrame(signal=SignalFrame(name="n", data={"a": "x" * size}))
        payload = frame.SerializeToString()
        if codec == "trunkline.v1.json":
            payload = b'{"type":"signal","name":"n","data":{"a":"%b"}}' % (b"x" * size)
        core.client_frames.received(client, payload, now=10)
        assert len(forwarded(core)) == fits
    assert core.counts.refused_by == {"INVALID_ARGUMENT": 1}
