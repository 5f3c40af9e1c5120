"""Edits, recalls and receipts, live and after a reconnect; messages streamed by backends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
import pytest
from trunkline.v1.broadcast_service_pb2 import (
    CancelMessageRequest,
    EndMessageRequest,
    ExtendMessageRequest,
    OpenMessageRequest,
)
from trunkline.v1.history_service_pb2 import EditMessageRequest, ListReceiptsRequest, RecallMessageRequest
from trunkline.v1.message_pb2 import Delta, Part, TextPart

from tests.e2e.fleet import Fleet, fleet_of
from tests.e2e.grpc_backend import GrpcBackend, address, reason_of, text_of
from tests.e2e.polling import wait_until
from tests.e2e.promise_checks import assert_promises_kept
from tests.e2e.recording_client import RecordingClient, frame_text
from tests.e2e.streaming_worker import StreamingWorker
from tests.validators.history import History

if TYPE_CHECKING:
    from collections.abc import Iterator

TEAM = "demo/echo/web/group:team"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet_of(tmp_path_factory.mktemp("changes"), TRUNKLINE_REPLY_LEASE_S="1") as started:
        yield started


@pytest.fixture
def team(fleet: Fleet) -> str:
    with GrpcBackend(fleet.router.address) as backend:
        backend.reset(TEAM)
    return next(process.address for process in fleet.processes if process.name == "edge")


def text(words: str) -> list[Part]:
    return [Part(text=TextPart(text=words))]


async def test_an_edit_and_a_recall_reach_live_and_resuming_clients(fleet: Fleet, team: str) -> None:
    history = History()
    async with (
        RecordingClient(history, "demo/ann", team) as ann,
        RecordingClient(history, "demo/bob", team) as bob,
    ):
        first = await ann.next("ack", id=await ann.say("helo"))
        second = await ann.next("ack", id=await ann.say("a secret"))
        await wait_until(lambda: bob.seq() == 2, "bob has received both")
        await bob.leave()
        edit = {"type": "edit", "id": "e", "message_id": first["message_id"]}
        await ann.send(edit | {"parts": [{"type": "text", "text": "hello"}]})
        assert (await ann.next("ack", id="e"))["position"]["seq"] == 3
        await ann.send({"type": "recall", "id": "r", "message_id": second["message_id"]})
        assert (await ann.next("ack", id="r"))["position"]["seq"] == 4
        assert (await bob.connect(resume=True))["recovered"]
        edited = await bob.next("change", kind="edited")
        assert frame_text(edited["message"]) == "hello"
        assert (await bob.next("change", kind="recalled"))["message_id"] == second["message_id"]
        assert bob.texts.text[first["message_id"]] == "hello"
        with GrpcBackend(fleet.router.address) as backend:
            assert [text_of(message) for message in backend.messages(TEAM)] == ["hello", ""]
        # Only the author may change a message, and a recalled message is final.
        await bob.send(edit | {"id": "e2", "parts": [{"type": "text", "text": "mine"}]})
        assert (await bob.next("error", id="e2"))["code"] == "NOT_THE_AUTHOR"
        await ann.send(edit | {"id": "e3", "message_id": second["message_id"], "parts": [_part("again")]})
        assert (await ann.next("error", id="e3"))["code"] == "MESSAGE_RECALLED"


async def test_a_recalled_question_is_not_answered(fleet: Fleet, team: str) -> None:
    async with RecordingClient(History(), "demo/ann", team) as ann:
        sent = await ann.next("ack", id=await ann.say("oops"))
        await ann.send({"type": "recall", "id": "r2", "message_id": sent["message_id"]})
        await ann.next("ack", id="r2")
        await ann.say("well")
        async with StreamingWorker(fleet.router.address) as worker:
            delivery = await worker.wait_for_delivery("well")
            await worker.settle(delivery.delivery_id)
            assert len(worker.deliveries) == 1


async def test_receipts_are_delivered_stored_and_listed(fleet: Fleet, team: str) -> None:
    history = History()
    async with (
        RecordingClient(history, "demo/ann", team) as ann,
        RecordingClient(history, "demo/bob", team) as bob,
    ):
        sent = await ann.next("ack", id=await ann.say("hello"))
        await bob.next("message", id=sent["message_id"])
        await bob.send({"type": "delivered", "position": sent["position"]})
        delivered = await ann.next("delivered", user="bob")
        assert delivered["position"] == sent["position"]
        await bob.send({"type": "read", "position": sent["position"]})
        for each in (ann, bob):
            read = await each.next("read", user="bob")
            assert (read["position"], read["at"]["seq"]) == (sent["position"], 2)
        # A repeated receipt is not logged.
        await bob.send({"type": "read", "position": sent["position"]})
        assert "at" not in await bob.next("read", user="bob")
        with GrpcBackend(fleet.router.address) as backend:
            (receipt,) = backend.history_service.ListReceipts(
                ListReceiptsRequest(address=address(TEAM))
            ).receipts
            assert (receipt.user, receipt.delivered.seq, receipt.read.seq) == ("bob", 1, 1)
        assert_promises_kept(fleet, history, [ann, bob])


async def test_a_backend_streams_a_message(fleet: Fleet, team: str) -> None:
    history = History()
    async with RecordingClient(history, "demo/ann", team) as ann:
        with GrpcBackend(fleet.router.address) as backend:
            stub = backend.broadcast_stub
            opened = stub.OpenMessage(OpenMessageRequest(address=address(TEAM), key="k", producer="one"))
            about = {"tenant": "demo", "message_id": opened.message.id}
            deltas = [Delta(index=0, text="one "), Delta(index=1, text="two ")]
            extended = stub.ExtendMessage(ExtendMessageRequest(**about, epoch=opened.epoch, deltas=deltas))
            assert extended.next_index == 2
            skipped = [Delta(index=5, text="x")]
            with pytest.raises(grpc.RpcError) as gap:
                stub.ExtendMessage(ExtendMessageRequest(**about, epoch=opened.epoch, deltas=skipped))
            assert reason_of(gap.value) == "DELTA_GAP"
            # A takeover by another producer fences the first one.
            taken = stub.OpenMessage(OpenMessageRequest(address=address(TEAM), key="k", producer="two"))
            assert (taken.message.id, text_of(taken.message)) == (opened.message.id, "one two ")
            with pytest.raises(grpc.RpcError) as fenced:
                stub.ExtendMessage(ExtendMessageRequest(**about, epoch=opened.epoch, deltas=[]))
            assert reason_of(fenced.value) == "PRODUCER_FENCED"
            three = [Delta(index=2, text="three")]
            stub.ExtendMessage(ExtendMessageRequest(**about, epoch=taken.epoch, deltas=three))
            end = EndMessageRequest(**about, epoch=taken.epoch, state=2, next_index=3)
            assert stub.EndMessage(end).state == 2
            assert not stub.EndMessage(end).HasField("position")
            assert stub.CancelMessage(CancelMessageRequest(**about)).state == 2
            await wait_until(lambda: ann.texts.state.get(opened.message.id) == "complete", "ann sees the end")
            assert ann.texts.text[opened.message.id] == "one two three"
            # Backends may change any message.
            history_service = backend.history_service
            history_service.EditMessage(EditMessageRequest(**about, parts=text("four")))
            await wait_until(lambda: ann.texts.text[opened.message.id] == "four", "ann sees the edit")
            assert history_service.RecallMessage(RecallMessageRequest(**about)).HasField("position")
            assert not history_service.RecallMessage(RecallMessageRequest(**about)).HasField("position")
            await wait_until(lambda: ann.texts.state[opened.message.id] == "recalled", "ann sees the recall")
        assert_promises_kept(fleet, history, [ann])


async def test_a_message_abandoned_by_a_backend_expires(fleet: Fleet, team: str) -> None:
    async with RecordingClient(History(), "demo/ann", team) as ann:
        with GrpcBackend(fleet.router.address) as backend:
            opened = backend.broadcast_stub.OpenMessage(OpenMessageRequest(address=address(TEAM), key="gone"))
            await wait_until(lambda: ann.texts.state.get(opened.message.id) == "expired", "it expires")


def _part(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}
