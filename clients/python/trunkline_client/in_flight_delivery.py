"""One delivery in a worker's hands."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from trunkline.v1.agent_service_pb2 import Delivery, Settlement

from trunkline_client.handler import HandlerResult
from trunkline_client.streamed_reply import StreamedReply


@dataclass(eq=False, slots=True)
class InFlightDelivery:
    """One delivery, from its coming until the router has said that it is settled."""

    delivery: Delivery
    #: Given to this worker on the present stream.
    held: bool = True
    handler: asyncio.Future[HandlerResult] | None = None
    #: What is to become of it; kept until the router has taken it.
    settlement: Settlement | None = None
    #: The router could not take the settlement just now.
    refused: bool = False
    #: Nobody wants an answer any longer.
    cancelled: bool = False
    #: Its streamed replies.
    replies: list[StreamedReply] = field(default_factory=list)
    #: Readers were told of a failure, so it is answered.
    failure_reported: bool = False
