"""A worker's reply that is written piece by piece."""

from __future__ import annotations

from trunkline_client.message_writer import MessageWriter


class StreamedReply(MessageWriter):
    """A reply that a worker writes piece by piece; `Worker.reply` and `Worker.open_message` make one.

        async with worker.reply(message) as out:
            await out.write("Once upon ")
            await out.write("a time")

    See `MessageWriter`. If the log holds the text of an earlier attempt, `resumed` is that message, and what
    is written is appended to it: a handler that produces the same words again should skip those that `text`
    already has. Entering raises AlreadyAnswered if the reply has ended, ReplyCancelled if its readers
    cancelled it, and Refused if the router rejects it. A reply that EXPIRED is started again.

    A reply outlives the stream to the router: after a break it continues where the log ends, once the router
    has redelivered the message to this worker. If that does not happen within a lease, Fenced is raised.
    """
