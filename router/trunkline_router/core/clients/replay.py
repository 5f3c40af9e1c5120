"""Replay of missed log entries to subscribers."""

from __future__ import annotations

from collections.abc import Callable

from trunkline.v1.frame_pb2 import ServerFrame

from trunkline_router.core.replies.open_messages import OpenMessages
from trunkline_router.core.values.log_records import Entry, EntryKind
from trunkline_router.core.values.topics import TopicKey


def replay(
    open_messages: OpenMessages,
    topic: TopicKey,
    missed: list[Entry],
    add_frame: Callable[[int], ServerFrame],
    *,
    all_open: bool = True,
) -> None:
    """Add the frames that bring a subscriber of a topic up to date, in the order of its log.

    These are the missed entries, with snapshots for messages that are open. With `all_open`, snapshots
    of the topic's other open messages follow, as the subscriber may have only some of their deltas.
    `add_frame` returns a frame to fill, given its approximate size.
    """
    replayed = set()
    for entry in missed:
        snapshot = open_messages.snapshot_at(topic, entry.seq) if entry.kind is EntryKind.MESSAGE else None
        if snapshot is not None:
            replayed.add(entry.seq)
            add_frame(snapshot.ByteSize()).message.CopyFrom(snapshot)
        else:
            getattr(add_frame(len(entry.body)), entry.kind.frame_field).MergeFromString(entry.body)
    for message in open_messages.of_topic(topic) if all_open else ():
        if message.seq not in replayed:
            add_frame(message.size).message.CopyFrom(message.snapshot())
