"""Compares the answers that writers of a log got with the log."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby

from trunkline.v1.message_pb2 import Message

from tests.support.postgres import PostgresServer

#: Topic, epoch and seq.
Place = tuple[str, str, int]


@dataclass
class LogLedger:
    """The lines of all writers of one log; see log_writer_script."""

    acked: dict[str, Place] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    #: Of each writer, in order.
    owners: list[str] = field(default_factory=list)
    fenced: list[str] = field(default_factory=list)

    def take(self, line: str) -> str:
        """Note a line; return its kind."""
        ((kind, value),) = json.loads(line).items()
        match kind:
            case "acked":
                self.acked |= {text: (topic, epoch, seq) for topic, epoch, seq, text in value}
            case "refused":
                self.refused |= set(value)
            case "owner":
                self.owners.append(value)
            case "fenced":
                self.fenced.append(value)
        return str(kind)

    def violations(self, server: PostgresServer, schema: str) -> list[str]:
        """Compare with the log; return what contradicts a promise."""
        stored = _read(server, schema)
        texts = {text: place for place, text in stored}
        found = [
            f"{text} was acked at {place}, and is at {texts.get(text)}"
            for text, place in self.acked.items()
            if texts.get(text) != place
        ]
        found += [f"{text} was refused, and is in the log" for text in self.refused & texts.keys()]
        if len(texts) != len(stored):
            found.append(f"{len(stored) - len(texts)} messages are in the log twice")
        return [*found, *_gaps(stored), *_interleaved(stored)]


def _read(server: PostgresServer, schema: str) -> list[tuple[Place, str]]:
    """Read all messages in the order of the log."""
    rows = server.execute(
        f"""SELECT t.target, t.epoch, m.seq, encode(m.body, 'hex')
            FROM {schema}.topics AS t JOIN {schema}.messages AS m USING (topic_id) ORDER BY 1, 2, 3"""
    )
    stored = []
    for row in rows.splitlines():
        topic, epoch, seq, body = row.split("|")
        text = Message.FromString(bytes.fromhex(body)).parts[0].text.text
        stored.append(((topic, epoch, int(seq)), text))
    return stored


def _gaps(stored: list[tuple[Place, str]]) -> Iterator[str]:
    logs: dict[tuple[str, str], list[int]] = defaultdict(list)
    for (topic, epoch, seq), _ in stored:
        logs[topic, epoch].append(seq)
    for log, seqs in logs.items():
        if seqs != list(range(1, len(seqs) + 1)):
            wrong = next(seq for number, seq in enumerate(seqs, 1) if seq != number)
            yield f"the seqs of {log} have a gap or a repeat at {wrong}"


def _interleaved(stored: list[tuple[Place, str]]) -> Iterator[str]:
    """Report an owner that wrote after its successor did: the first two parts of a text are the owner."""
    for topic, entries in groupby(stored, lambda one: one[0][0]):
        owners = [owner for owner, _ in groupby(entries, lambda one: one[1].rsplit(".", 2)[0])]
        if len(owners) != len(set(owners)):
            yield f"owners interleave in {topic}: {owners}"
