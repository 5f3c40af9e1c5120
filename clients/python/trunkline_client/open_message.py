"""A backend's message that is written piece by piece."""

from __future__ import annotations

from trunkline_client.message_writer import MessageWriter


class OpenMessage(MessageWriter):
    """A message that a backend writes piece by piece; `Backend.open_message` makes one.

        async with backend.open_message(room) as out:
            await out.write("Once upon ")
            await out.write("a time")

    See `MessageWriter`. Entering does not retry; it raises AlreadyAnswered if the message of this key has
    ended, and Refused, Unreachable or OutcomeUnknown like any call of `Backend`. After OutcomeUnknown, open
    again with the same key.

    Text that is written while one call runs goes with the next, and calls without text renew the lease, three
    times in it (15 s). The answer to a call reports a cancel: a block that waits is interrupted within 5 s.
    If the router cannot be reached, calls are repeated for as long as the block lasts; bound the block with
    `asyncio.timeout` if that matters.
    """
