"""Bad input by WebSocket and by gRPC: the same error code for both, and no effect on the connection."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.json_format import ParseDict
from trunkline.v1.broadcast_service_pb2 import BroadcastManyRequest, BroadcastRequest
from trunkline.v1.frame_pb2 import ClientFrame, ServerFrame
from trunkline.v1.history_service_pb2 import GetMessageRequest, ListMessagesRequest
from trunkline_client import Backend
from websockets.asyncio.client import connect

from tests.e2e.fleet import Fleet, fleet_of
from tests.e2e.grpc_backend import TIMEOUT_S, GrpcBackend, address, reason_of
from tests.e2e.http_backend import HttpBackend
from tests.e2e.http_backend import reason_of as http_reason_of
from tests.e2e.polling import wait_until
from tests.e2e.recording_client import RecordingClient, position_of
from tests.validators.explicit import explicit
from tests.validators.history import History

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

TEXT = [{"type": "text", "text": "x"}]
BAD_IDS = {"slash": "a/b", "colon": "a:b", "NUL": "a\0b", "space": "a b", "long": "x" * 10_000, "none": ""}
MAX_UINT64 = 2**64 - 1


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet_of(tmp_path_factory.mktemp("bad")) as started:
        yield started


@pytest.fixture
async def ann(fleet: Fleet) -> AsyncIterator[RecordingClient]:
    async with RecordingClient(History(), "demo/ann", fleet.processes[1].address, agent="nobody") as recorder:
        yield recorder
        await assert_still_served(recorder)
        assert not list(explicit(recorder.history))


@pytest.fixture
def backend(fleet: Fleet) -> Iterator[GrpcBackend]:
    with GrpcBackend(fleet.router.address) as calling:
        yield calling


async def assert_still_served(recorder: RecordingClient) -> None:
    """Check that the connection is still served."""
    await recorder.send({"type": "history", "id": "still here", "limit": 1})
    await recorder.next("history", id="still here")
    assert not recorder.closed


async def refusal(recorder: RecordingClient, frame: dict[str, Any] | str | bytes) -> str:
    await recorder.send(frame)
    error = await recorder.next("error")
    if isinstance(frame, dict) and isinstance(frame.get("id"), str) and len(frame["id"]) <= 128:
        assert error.get("id", "") == frame["id"]
    assert error["message"]
    assert error["retryable"] is False
    return str(error["code"])


def rpc_refusal(call: Any, request: Any) -> str:
    with pytest.raises(grpc.RpcError) as error:
        call(request, timeout=TIMEOUT_S)
    return reason_of(error.value)


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        ("not json", "MALFORMED_FRAME"),
        ("", "MALFORMED_FRAME"),
        ("[1]", "MALFORMED_FRAME"),
        ('"text"', "MALFORMED_FRAME"),
        ("null", "MALFORMED_FRAME"),
        ("{}", "MALFORMED_FRAME"),
        (b"\xff\xfe", "MALFORMED_FRAME"),
        ("[" * 5000, "MALFORMED_FRAME"),
        ("[" * 100_000, "INVALID_ARGUMENT"),
        ('{"type":' * 5000, "MALFORMED_FRAME"),
        ('{"type":' * 50_000, "INVALID_ARGUMENT"),
        ('{"type":5}', "MALFORMED_FRAME"),
        ('{"type":"dance","id":"m1"}', "UNKNOWN_FRAME_TYPE"),
        ('{"type":"connected"}', "UNKNOWN_FRAME_TYPE"),
        ('{"type":"ping","id":"p","more":1}', "MALFORMED_FRAME"),
        ('{"type":"ping","id":5}', "MALFORMED_FRAME"),
        ('{"type":"message","id":"m1","parts":"text"}', "MALFORMED_FRAME"),
        ('{"type":"message","id":"m1","parts":[{"type":"poem"}]}', "MALFORMED_FRAME"),
        ('{"type":"subscribe","id":"s1","conversation":{"kind":"room","id":"a"}}', "MALFORMED_FRAME"),
        ('{"type":"read","position":{"epoch":"e","seq":-1}}', "MALFORMED_FRAME"),
        ('{"type":"read","position":{"epoch":"e","seq":18446744073709551616}}', "MALFORMED_FRAME"),
        ('{"type":"read","position":{"epoch":"e","seq":1.5}}', "MALFORMED_FRAME"),
        ('{"type":"signal","name":"n","data":{"a":1e999}}', "MALFORMED_FRAME"),
        ('{"type":"resume","positions":[]}', "UNEXPECTED_FRAME"),
    ],
)
async def test_an_undecodable_frame_is_rejected(
    ann: RecordingClient, payload: str | bytes, code: str
) -> None:
    assert await refusal(ann, payload) == code


def message(**fields: Any) -> dict[str, Any]:
    return {"type": "message", "id": "m1", "parts": TEXT} | fields


@pytest.mark.parametrize(
    ("frame", "request_fields"),
    [
        pytest.param(message(parts=[]), {"parts": []}, id="no parts"),
        pytest.param(message(parts=TEXT * 65), {"parts": [{"text": {"text": "x"}}] * 65}, id="65 parts"),
        pytest.param(
            message(parts=[{"type": "text", "text": "x" * 262_145}]),
            {"parts": [{"text": {"text": "x" * 262_145}}]},
            id="a long text",
        ),
        pytest.param(
            message(attributes={"k": "v" * 1025}), {"attributes": {"k": "v" * 1025}}, id="a long attribute"
        ),
        pytest.param(
            message(attributes={str(n): "" for n in range(33)}),
            {"attributes": {str(n): "" for n in range(33)}},
            id="33 attributes",
        ),
        pytest.param(message(attributes={"": "v"}), {"attributes": {"": "v"}}, id="an empty attribute name"),
        pytest.param(message(reply_to="x" * 129), {"reply_to": "x" * 129}, id="a long reply_to"),
        pytest.param(message(id="a\0b"), {"idempotency_key": "a\0b"}, id="NUL in the id"),
        pytest.param(message(id="x" * 10_000), {"idempotency_key": "x" * 10_000}, id="a long id"),
        pytest.param(
            message(parts=[{"type": "mention", "user": "a/b"}]),
            {"parts": [{"mention": {"user": "a/b"}}]},
            id="a mention of no user",
        ),
    ],
)
async def test_an_invalid_message_is_rejected_with_the_same_code_from_clients_and_backends(
    ann: RecordingClient, backend: GrpcBackend, frame: dict[str, Any], request_fields: dict[str, Any]
) -> None:
    assert await refusal(ann, frame) == "INVALID_ARGUMENT"
    request = ParseDict({"parts": [{"text": {"text": "x"}}]} | request_fields, BroadcastRequest())
    request.address.CopyFrom(address("demo"))
    assert rpc_refusal(backend.broadcast_stub.Broadcast, request) == "INVALID_ARGUMENT"
    batch = BroadcastManyRequest()
    batch.requests.add(number=7, request=request)
    (answer,) = backend.broadcast_stub.BroadcastMany(iter([batch]), timeout=TIMEOUT_S)
    assert [(result.number, result.error.code) for result in answer.results] == [(7, "INVALID_ARGUMENT")]


@pytest.mark.parametrize("ident", BAD_IDS.values(), ids=BAD_IDS.keys())
async def test_an_invalid_id_is_rejected_with_the_same_code(
    ann: RecordingClient, backend: GrpcBackend, ident: str
) -> None:
    conversation = {"kind": "group", "id": ident}
    subscribe = {"type": "subscribe", "id": "s1", "conversation": conversation}
    assert await refusal(ann, subscribe) == "INVALID_ARGUMENT"
    assert await refusal(ann, message(conversation=conversation)) == "INVALID_ARGUMENT"
    target = address("demo/echo/web/group:x")
    target.conversation.id = ident
    request = BroadcastRequest(address=target)
    request.parts.add().text.text = "x"
    assert rpc_refusal(backend.broadcast_stub.Broadcast, request) == "INVALID_ARGUMENT"
    listing = ListMessagesRequest(address=target)
    assert rpc_refusal(backend.history_service.ListMessages, listing) == "INVALID_ARGUMENT"


async def test_a_cursor_of_another_topic_is_rejected_with_the_same_code(
    ann: RecordingClient, backend: GrpcBackend
) -> None:
    await ann.next("ack", id=await ann.say("here"))
    other = backend.broadcast("demo/echo", "elsewhere").position
    wrong = [{"epoch": other.epoch, "seq": 1}, {"epoch": ann.positions[ann.home][1].epoch, "seq": 99}]
    wrong += [{"epoch": ann.positions[ann.home][1].epoch, "seq": MAX_UINT64}, {"seq": 1}]
    for position in wrong:
        for cursor in ("before", "after"):
            frame = {"type": "history", "id": "h1", cursor: position}
            listing = ParseDict({cursor: position}, ListMessagesRequest(address=address(ann.home)))
            assert await refusal(ann, frame) == "CURSOR_MISMATCH", (cursor, position_of(position))
            assert rpc_refusal(backend.history_service.ListMessages, listing) == "CURSOR_MISMATCH"
        assert await refusal(ann, {"type": "read", "position": position}) == "CURSOR_MISMATCH"


async def test_unknown_positions_recover_nothing(ann: RecordingClient) -> None:
    for seq in (0, 1, MAX_UINT64):
        position = {"epoch": "nowhere", "seq": seq}
        frame = {"type": "subscribe", "id": f"s{seq}", "position": position}
        await ann.send(frame | {"conversation": {"kind": "group", "id": f"g{seq}"}})
        assert not (await ann.next("subscribed", id=f"s{seq}")).get("recovered")


async def test_a_page_over_the_limit_is_rejected_with_the_same_code(
    ann: RecordingClient, backend: GrpcBackend
) -> None:
    assert await refusal(ann, {"type": "history", "id": "h1", "limit": 501}) == "INVALID_ARGUMENT"
    listing = ListMessagesRequest(address=address(ann.home), limit=501)
    assert rpc_refusal(backend.history_service.ListMessages, listing) == "INVALID_ARGUMENT"


def test_invalid_addresses_are_rejected(backend: GrpcBackend) -> None:
    def call(to: str) -> str:
        request = BroadcastRequest(address=address(to))
        request.parts.add().text.text = "x"
        return rpc_refusal(backend.broadcast_stub.Broadcast, request)

    assert call("") == "INVALID_ARGUMENT"
    assert call("/echo") == "INVALID_ARGUMENT"
    assert call("nobody") == "UNKNOWN_TENANT"
    assert call("demo//web") == "INVALID_ARGUMENT"
    assert call("demo/group:team") == "INVALID_ARGUMENT"
    assert call("demo/echo/user:ann") == "INVALID_ARGUMENT"
    assert rpc_refusal(backend.broadcast_stub.Broadcast, BroadcastRequest()) == "INVALID_ARGUMENT"


@pytest.mark.parametrize("ident", ["x", "e-", "-1", "e-99999999999999999999", "e-١", "a\tb" * 9, "é-1"])
def test_an_unknown_message_id_is_not_found(backend: GrpcBackend, ident: str) -> None:
    expected = "INVALID_ARGUMENT" if "\t" in ident else "MESSAGE_NOT_FOUND"
    request = GetMessageRequest(tenant="demo", message_id=ident)
    assert rpc_refusal(backend.history_service.GetMessage, request) == expected


@pytest.mark.parametrize(
    ("query", "code", "reason"),
    [
        ("agent=a&platform=web", 4503, "INVALID_ADDRESS"),
        ("tenant=demo&platform=web", 4503, "INVALID_ADDRESS"),
        ("tenant=nobody&agent=a&platform=web", 4504, "UNKNOWN_TENANT"),
        ("tenant=demo&agent=a%2Fb&platform=web", 4503, "INVALID_ADDRESS"),
        ("tenant=demo&agent=a&platform=web&user=a%00b", 4503, "INVALID_ADDRESS"),
        ("tenant=demo&agent=a&platform=web&user=" + "x" * 5_000, 4503, "INVALID_ADDRESS"),
        ("tenant=demo&agent=a&platform=web&conversation=room:x", 4503, "INVALID_ADDRESS"),
        ("tenant=demo&agent=a&platform=web&conversation=person:a:b", 4503, "INVALID_ADDRESS"),
        ("tenant=demo&agent=a&platform=web&what=1", 4503, "INVALID_ADDRESS"),
        ("tenant=demo&agent=a&platform=web&resume=!!!", 4503, "INVALID_ADDRESS"),
        ("tenant=demo&agent=%ff&platform=web", 4503, "INVALID_ADDRESS"),
        ("", 4503, "INVALID_ADDRESS"),
    ],
)
@pytest.mark.parametrize("protocol", ["trunkline.v1.json", "trunkline.v1.proto"])
async def test_an_invalid_connect_request_is_closed_with_a_reason(
    fleet: Fleet, query: str, code: int, reason: str, protocol: str
) -> None:
    url = f"ws://{fleet.processes[1].address}/v1/connect?{query}"
    async with connect(url, compression=None, subprotocols=[protocol]) as ws:  # type: ignore[list-item]
        first = await ws.recv()
        await ws.wait_closed()
        assert ws.close_code == code
    if isinstance(first, str):
        closing = json.loads(first)
        assert (closing["type"], closing["code"], closing["reason"]) == ("closing", code, reason)
    else:
        frame = ServerFrame.FromString(first).closing
        assert (frame.code, frame.reason) == (code, reason)


async def test_half_an_emoji_arrives_as_a_replacement_character(ann: RecordingClient) -> None:
    text = r'{"type":"message","id":"%s","parts":[{"type":"text","text":"cut \ud83d"}]}'
    await ann.send(text % "half")
    await ann.next("ack", id="half")
    await ann.send({"type": "history", "id": "h1", "limit": 1})
    (stored,) = (await ann.next("history", id="h1"))["messages"]
    assert stored["parts"] == [{"type": "text", "text": "cut \ufffd"}]


async def test_an_emoji_cut_between_two_writes_of_a_backend_arrives_whole(
    fleet: Fleet, ann: RecordingClient
) -> None:
    async with (
        Backend(fleet.router.address) as backend,
        backend.open_message(address(ann.home)) as out,
    ):
        await out.write("a\ud83d")
        await out.write("\ude00b\ud83d")
    await ann.send({"type": "history", "id": "h1", "limit": 1})
    (stored,) = (await ann.next("history", id="h1"))["messages"]
    assert stored["parts"] == [{"type": "text", "text": "a\U0001f600b\ufffd"}]
    assert stored["state"] == "complete"


#: A second of CPU and more per MB to build.
VALUES = b'{"a":[%b]}' % b",".join([b"[[[[1]]]]"] * 80_000)


async def test_a_frame_of_too_many_values_is_rejected_by_its_id(ann: RecordingClient) -> None:
    part = b'{"type":"custom","name":"n","data":%b}' % VALUES
    await ann.send((b'{"type":"message","id":"m1","parts":[%b]}' % part).decode())
    error = await ann.next("error", id="m1")
    assert (error["code"], error["retryable"]) == ("INVALID_ARGUMENT", False)
    assert "at most 8192 are allowed" in error["message"]


def test_a_body_of_too_many_values_is_rejected(fleet: Fleet) -> None:
    with HttpBackend(fleet.processes[1].address) as http:
        body = b'{"parts":[{"custom":{"name":"n","data":%b}}]}' % VALUES
        refused = http.http.post("/messages", content=body, headers={"content-type": "application/json"})
        assert (refused.status_code, http_reason_of(refused)) == (400, "INVALID_ARGUMENT")
        assert http.post("/messages", parts=[{"text": {"text": "still served"}}])["messageId"]


def test_a_call_with_too_many_values_is_rejected(backend: GrpcBackend) -> None:
    request = BroadcastRequest(address=address("demo"))
    custom = request.parts.add().custom
    custom.name = "n"
    custom.data["a"] = [1.0] * 4096
    assert rpc_refusal(backend.broadcast_stub.Broadcast, request) == "INVALID_ARGUMENT"
    del custom.data["a"][-1]  # type: ignore[union-attr,index]
    assert backend.broadcast_stub.Broadcast(request, timeout=TIMEOUT_S).message_id


async def test_an_oversized_frame_closes_with_its_code(fleet: Fleet) -> None:
    async with RecordingClient(History(), "demo/big", fleet.processes[1].address) as big:
        await big.send("x" * ((1 << 20) + 1))
        await wait_until(lambda: big.closed, "the connection is closed")
        assert big.closed is not None
        assert (big.closed.code, big.closed.reason) == (1009, "FRAME_TOO_LARGE")


def test_an_oversized_message_of_a_backend_is_rejected(backend: GrpcBackend) -> None:
    request = BroadcastRequest(address=address("demo"))
    for _ in range(51):
        request.parts.add().text.text = "x" * 250_000
    assert rpc_refusal(backend.broadcast_stub.Broadcast, request) == "INVALID_ARGUMENT"


@pytest.mark.parametrize("payload", [b"\xff\xff\xff", b"", b"\x0a\x05", "{}"])
async def test_bytes_that_are_not_a_protobuf_frame_are_rejected(fleet: Fleet, payload: bytes | str) -> None:
    url = f"ws://{fleet.processes[1].address}/v1/connect?tenant=demo&agent=nobody&platform=web&user=pat"
    async with connect(url, compression=None, subprotocols=["trunkline.v1.proto"]) as ws:  # type: ignore[list-item]
        assert ServerFrame.FromString(await ws.recv(decode=False)).HasField("connected")
        await ws.send(payload)
        error = ServerFrame.FromString(await ws.recv(decode=False)).error
        assert error.code in ("MALFORMED_FRAME", "UNKNOWN_FRAME_TYPE")
        ping = ClientFrame()
        ping.ping.id = "p1"
        await ws.send(ping.SerializeToString())
        assert ServerFrame.FromString(await ws.recv(decode=False)).pong.id == "p1"
