"""A delivery that this worker has not settled yet."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from trunkline.v1.agent_service_pb2 import Delivery, Settlement

from trunkline_client.handler import HandlerResult
from trunkline_client.reply_producer import ReplyProducer
from trunkline_client.settlement import description_of


@dataclass(eq=False, slots=True)
class InFlightDelivery:
    """One delivery, from its arrival until the router has confirmed its settlement."""

    delivery: Delivery
    #: Whether this worker has its lease on the current stream.
    held: bool = True
    handler: asyncio.Future[HandlerResult] | None = None
    #: Kept until the router has confirmed it.
    settlement: Settlement | None = None
    #: Whether the router rejected the settlement for now, so it must be sent again.
    must_resend: bool = False
    #: Whether readers cancelled the reply.
    cancelled: bool = False
    #: Its streamed replies, in the order in which the handler made them.
    replies: list[ReplyProducer] = field(default_factory=list)
    #: Whether a streamed reply ended FAILED with the handler's exception, which answers the message.
    failure_reported: bool = False

    def describe_failure(self, error: BaseException) -> str:
        """Describes, for the log, that the handler raised this."""
        effect = "and its reply reports so" if self.failure_reported else "which will be redelivered"
        message, attempt = self.delivery.message.id, self.delivery.attempt
        return (
            f"the handler failed on message {message} (attempt {attempt}), {effect}: {description_of(error)}"
        )
