"""Notifies conversations of replies that are late, as attempts at them have failed."""

from __future__ import annotations

from collections.abc import Iterator

from trunkline.v1.frame_pb2 import REPLY_STATUS_ENDED, REPLY_STATUS_RETRYING, ReplyStatusFrame

from trunkline_router.core.agents.agent_queues import AgentQueues
from trunkline_router.core.agents.failed_deliveries import FailedDelivery
from trunkline_router.core.commits.fan_out import FanOut, NoticeSource
from trunkline_router.core.directory.connections import Link
from trunkline_router.core.values.topics import TopicKey, address_of


class ReplyStatuses:
    """Publishes `reply_status` frames, which are not logged, to the listeners of a conversation.

    The worker whose delivery caused one is the source that full outboxes block.
    """

    def __init__(self, queues: AgentQueues, fan_out: FanOut) -> None:
        self._queues = queues
        self._fan_out = fan_out

    def retrying(self, failed: FailedDelivery, blocked_by: set[Link]) -> None:
        """An attempt has failed, and another one follows."""
        self._publish(failed.topic, _frame_of(failed), blocked_by)

    def ended(self, topic: TopicKey, message_id: str, attempts: int, blocked_by: set[Link]) -> None:
        """No further attempt follows, after this many failed ones."""
        frame = ReplyStatusFrame(message_id=message_id, status=REPLY_STATUS_ENDED, attempts=attempts)
        frame.address.CopyFrom(address_of(topic))
        self._publish(topic, frame, blocked_by)

    def of_topic(self, topic: TopicKey) -> Iterator[ReplyStatusFrame]:
        """Yield the statuses that a new listener needs: of the messages that are retried now."""
        queue = self._queues.get(*topic[:2])
        return map(_frame_of, queue.failed.of_topic(topic) if queue is not None else ())

    def _publish(self, topic: TopicKey, frame: ReplyStatusFrame, blocked_by: set[Link]) -> None:
        for publish in self._fan_out.add(topic, frame.ByteSize(), NoticeSource(blocked_by)):
            publish.frame.reply_status.CopyFrom(frame)


def _frame_of(failed: FailedDelivery) -> ReplyStatusFrame:
    frame = ReplyStatusFrame(
        message_id=failed.message_id, status=REPLY_STATUS_RETRYING, attempts=failed.attempts
    )
    frame.address.CopyFrom(address_of(failed.topic))
    if failed.next_attempt_ms:
        frame.next_attempt_at.FromMilliseconds(failed.next_attempt_ms)
    return frame
