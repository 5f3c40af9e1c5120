"""Outcomes of requests whose answer arrives at the last moment, without a socket."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, cast

import pytest
from trunkline.v1.address_pb2 import TopicPosition
from trunkline.v1.broadcast_service_pb2 import BroadcastRequest
from trunkline.v1.frame_pb2 import (
    AckFrame,
    ClientFrame,
    ConnectedFrame,
    ErrorFrame,
    MessageFrame,
    ServerFrame,
)
from trunkline_client import OutcomeUnknown, Refused, TimedOut, builders
from trunkline_client.effects import CompleteRequest, FailRequest
from trunkline_client.publish_queue import PublishQueue
from trunkline_client.reconnecting_transport import ReconnectingTransport
from trunkline_client.request_sender import RequestSender
from trunkline_client.session import Session

from tests.clients.scripted_edge import ALICE, at

ACK = ServerFrame(ack=AckFrame(id="x", message_id="m1", position=at(1), address=ALICE))
REJECTION = ServerFrame(error=ErrorFrame(id="x", code="OVERLOADED", message="Too much"))
TIMEOUT_S = 0.02


class Wire:
    """A transport that takes every frame."""

    def send(self, frame: ClientFrame) -> None:
        """Takes a frame."""


class Connection:
    """A connected session and its requests."""

    def __init__(self) -> None:
        self.session = Session(ALICE)
        positions = [TopicPosition(address=ALICE, position=at(0))]
        self.session.receive(ServerFrame(connected=ConnectedFrame(positions=positions)))
        self.requests = RequestSender("edge", self.session, cast(ReconnectingTransport, Wire()), 8)

    def receive(self, frame: ServerFrame) -> None:
        """Receives a frame and completes its request."""
        for effect in self.session.receive(frame):
            match effect:
                case CompleteRequest(request_id, response):
                    self.requests.complete(request_id, response)
                case FailRequest(request_id, error):
                    self.requests.fail(request_id, error)

    async def request(self, act: Callable[[], Any], after_s: float) -> AckFrame:
        """Sends a message; `act` and the timeout run in one pass of the event loop, in the order of time."""
        frame = ClientFrame(message=MessageFrame(id="x", parts=builders.text("hello")))
        sending = asyncio.create_task(self.requests.request(frame, AckFrame, TIMEOUT_S))
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_later(after_s, act)
        block_the_loop(3 * TIMEOUT_S)
        return await sending


def block_the_loop(seconds: float) -> None:
    """Blocks until all timers of this length are due."""
    time.sleep(seconds)


@pytest.mark.parametrize("after_s", [TIMEOUT_S / 2, 2 * TIMEOUT_S], ids=["before", "after"])
async def test_an_answer_beside_the_timeout_wins(after_s: float) -> None:
    connection = Connection()
    ack = await connection.request(lambda: connection.receive(ACK), after_s)
    assert ack.message_id == "m1"
    connection = Connection()
    with pytest.raises(Refused, match="Too much"):
        await connection.request(lambda: connection.receive(REJECTION), after_s)


async def test_the_end_of_the_client_beside_the_timeout_wins() -> None:
    connection = Connection()
    with pytest.raises(OutcomeUnknown, match="ended"):
        await connection.request(lambda: connection.requests.end(RuntimeError("ended")), 0.0)


async def test_a_request_whose_answer_was_received_counts_as_sent() -> None:
    connection = Connection()
    with pytest.raises(TimedOut):
        await connection.request(lambda: connection.session.receive(ACK), TIMEOUT_S / 2)


def test_a_stray_answer_does_not_make_a_written_broadcast_unsent() -> None:
    queue = PublishQueue(8)
    number = queue.add(BroadcastRequest(idempotency_key="a"))
    queue.next_batch()
    queue.stream_lost()
    assert not queue.record_answer(number)
    assert queue.may_be_committed(number)
