"""Reads the ends of logs; expressions for them, and for the ids of messages."""

from __future__ import annotations

from collections.abc import Sequence

from trunkline_router.core.values.topics import EMPTY, Position, TopicKey
from trunkline_router.log.batch import Head
from trunkline_router.log.postgres.fence import FencedWriter

#: The last seq of a log. Seqs have no gaps: a log holds every entry from `pruned` + 1 to its end.
END = (
    "greatest(pruned, (SELECT max(seq) FROM messages WHERE messages.topic_id = topics.topic_id),"
    " (SELECT max(seq) FROM events WHERE events.topic_id = topics.topic_id))"
)

_HEADS = f"""
    SELECT wanted.number, topic_id, epoch, {END}
    FROM unnest($1::text[], $2::text[], $3::text[], $4::int[], $5::text[]) WITH ORDINALITY
        AS wanted (tenant, agent, platform, kind, target, number)
    JOIN topics USING (tenant, agent, platform, kind, target)
"""
_NO_LOG = Head(0, EMPTY)


async def look_up_heads(writer: FencedWriter, topics: Sequence[TopicKey]) -> list[Head]:
    """Read the heads of these topics, in order, consistent with all commits so far."""
    heads = [_NO_LOG] * len(topics)
    for number, topic_id, epoch, seq in await writer.read(_HEADS, *map(list, zip(*topics, strict=True))):
        heads[number - 1] = Head(topic_id, Position(epoch, seq))
    return heads


def message_id_of(row: str, topic: str) -> str:
    """Return the expression for the id of the message that a row refers to by topic_id and seq.

    Both are aliases in the query, whose `topic` is the row's log.
    """
    return f"""CASE WHEN {row}.seq > {topic}.forked THEN {topic}.epoch ELSE (
        SELECT f.epoch FROM former_epochs AS f
        WHERE f.topic_id = {row}.topic_id AND {row}.seq BETWEEN f.first_seq AND f.last_seq
    ) END || '-' || {row}.seq"""
