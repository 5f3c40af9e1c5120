"""Builds the statement that writes a batch, out of parts for the kinds of rows that the batch has."""

from __future__ import annotations

from functools import lru_cache
from operator import attrgetter
from typing import NamedTuple

from trunkline_router.log.batch import Batch
from trunkline_router.log.postgres import delivery_parts, entry_parts, forks
from trunkline_router.log.postgres.batch_part import Part, joined, number_parameters, parameters_in
from trunkline_router.log.postgres.id_blocks import RESERVE_IDS

#: Combinations of kinds whose statements are kept: more than occur.
_STATEMENTS = 1024
#: Number of the first parameter that FencedWriter.write leaves free.
_FIRST_PARAMETER = 3

_FOUND = "(SELECT jsonb_agg(DISTINCT jsonb_build_array(topic_id, seq)) FROM withdrawn)"
_CANCELLED = "(SELECT jsonb_agg(jsonb_build_array(topic_id, message_id)) FROM answered_cancelled)"

_OPENS = joined(entry_parts.OPENS, delivery_parts.ANSWERED)
#: Kinds of rows whose part does not depend on the other kinds.
_PARTS = {
    "changed": joined(entry_parts.CHANGED, entry_parts.ENDED),
    "producers": joined(entry_parts.PRODUCERS, entry_parts.DELTAS),
    "topics": entry_parts.TOPICS,
    "messages": entry_parts.MESSAGES,
    "events": entry_parts.EVENTS,
    "opens": _OPENS,
    "keys": entry_parts.KEYS,
    "deliveries": delivery_parts.DELIVERIES,
    "receipts": entry_parts.RECEIPTS,
}
_ROWS = attrgetter(*_PARTS)


class Statement(NamedTuple):
    """The first arguments of FencedWriter.write, for all batches with the same kinds of rows."""

    parts: str
    #: A list of what `withdrawn_found` and `answered_cancelled` of the batch contain, each null for nothing;
    #: or NULL if these kinds are not in the batch.
    result: str


def write_arguments(batch: Batch, ids: tuple[int, int] | None) -> tuple[Statement, list[object]]:
    """Return the statement that writes all rows of a batch, and its parameters.

    `ids` are the topic_ids and delivery_ids to reserve with it.
    """
    parts = _parts_of(batch)
    parameters: list[object] = []
    for part in parts:
        parameters += part.columns(batch)
    texts = [part.text for part in parts]
    if ids is not None:
        texts.append(RESERVE_IDS)
        parameters += ids
    return _statement(*texts), parameters


def _parts_of(batch: Batch) -> list[Part]:
    parts: list[Part] = []
    if batch.forks:
        parts.append(forks.FORKS_OF_OLDER_COPY if batch.is_older_copy else forks.FORKS)
    withdraws = bool(batch.withdrawn)
    if withdraws:
        parts.append(delivery_parts.WITHDRAWN)
    if batch.dead_lettered:
        parts.append(delivery_parts.DEAD_LETTERED[withdraws])
    if batch.attempts:
        parts.append(delivery_parts.ATTEMPTS[withdraws])
    if batch.settled or batch.dead_lettered:
        parts.append(delivery_parts.SETTLED)
    parts += [part for part, rows in zip(_PARTS.values(), _ROWS(batch), strict=True) if rows]
    return parts


@lru_cache(_STATEMENTS)
def _statement(*texts: str) -> Statement:
    first = _FIRST_PARAMETER
    parts = []
    for text in texts:
        parts.append(number_parameters(text, first))
        first += parameters_in(text)
    found = _FOUND if delivery_parts.WITHDRAWN.text in texts else "NULL"
    cancelled = _CANCELLED if _OPENS.text in texts else "NULL"
    has_result = found != cancelled
    return Statement(",\n".join(parts), f"jsonb_build_array({found}, {cancelled})" if has_result else "NULL")
