"""Logs with random rows in every table."""

from __future__ import annotations

import random
from contextlib import closing
from pathlib import Path

from trunkline.v1.message_pb2 import Message
from trunkline_router.log.message_ids import new_epoch
from trunkline_router.log.sqlite.commit_mark import CommitMark, read_state
from trunkline_router.log.sqlite.database_file import connect_writer
from trunkline_router.log.stored_entries import checksum

#: Texts that one engine or the other may treat in its own way.
TEXTS = ("", "é", "Ω≈ç√", "\N{SNOWMAN}", "a'b\"c\\d", "%s $1 :k0", "x" * 300, "\x10", "line\nline", "😀")
#: Of audit records, reasons and names of API keys.
ODD_TEXTS = (*TEXTS, "nul\0nul", "\0", "\x100")
TENANTS = ("acme", "evil", "umbrella")


class RandomLog:
    """Fills a SQLite log with rows of random tenants, and rows that belong to nobody any more."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._seed = seed

    def write(self, path: Path) -> None:
        """Create the log at `path`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(connect_writer(path)) as db:
            self._insert = lambda table, *row: db.execute(
                f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row
            )
            self._write_tenants()
            for topic_id in self._random.sample(range(1, 500), self._random.randint(0, 12)):
                self._write_log(topic_id)
            for topic_id in self._random.sample(range(500, 600), 3):
                # Erased, but not swept.
                self._insert("erased", topic_id)
                self._write_entries(topic_id, new_epoch())
            for name, highest in (("topics", 700), ("deliveries", 7_000), ("audit", 700)):
                db.execute("DELETE FROM sqlite_sequence WHERE name = ?", (name,))
                db.execute("INSERT INTO sqlite_sequence VALUES (?, ?)", (name, highest))
            db.execute("UPDATE log_state SET commits = 3")
            db.commit()
            state = read_state(db)
        mark = CommitMark(path, state.log_id)
        mark.write(state.commits)
        mark.close()

    def _write_tenants(self) -> None:
        insert, some = self._insert, self._random
        for number, tenant in enumerate(TENANTS):
            insert("tenants", tenant, some.randint(1, 3), b"", *self._times(2))
            insert("revocations", tenant, 1, some.choice(TEXTS), *self._times(2))
            insert(
                "api_keys", f"k{number}", tenant, some.choice(ODD_TEXTS), some.randbytes(32), "[1, 3]", 1, 0
            )
        for number in range(some.randint(0, 20)):
            tenant = some.choice((*TENANTS, "", "gone"))
            insert("audit", 7 * number + 1, *self._times(1), tenant, *some.choices(ODD_TEXTS, k=6))
        for number in range(some.randint(0, 20)):
            # Of logs that are gone.
            insert("idempotency", self._key(), some.randbytes(8), new_epoch(), number, 0, *self._times(1))

    def _write_log(self, topic_id: int) -> None:
        some, epoch = self._random, new_epoch()
        tenant = some.choice((*TENANTS, "undeclared"))
        address = (tenant, some.choice(("echo", "")), some.choice(("web", "")), some.randint(0, 3))
        forked = some.choice((0, 2))
        self._insert("topics", topic_id, *address, f"t{topic_id}", epoch, some.choice((0, 1)), forked)
        if forked:
            self._insert("former_epochs", topic_id, 1, 2, new_epoch())
        self._write_entries(topic_id, epoch)
        for _ in range(some.randint(0, 3)):
            where = (tenant, some.choice(TEXTS), topic_id, some.randint(1, 9))
            delivery_id = some.randint(1, 6_000)
            counts = (some.randint(0, 3), *self._times(1))
            table = some.choice(("deliveries", "dead_letters"))
            if table == "deliveries":
                self._insert("deliveries", delivery_id, *where, *counts)
            else:
                self._insert(
                    "dead_letters", delivery_id, *where, counts[0], some.choice(ODD_TEXTS), counts[1]
                )

    def _write_entries(self, topic_id: int, epoch: str) -> None:
        some, insert = self._random, self._insert
        for seq in range(1, some.randint(1, 8)):
            body = self._body(epoch, seq)
            crc = some.choice((checksum(topic_id, seq, body),) * 3 + (None, 17))
            if some.random() < 0.7:
                insert("messages", topic_id, seq, *self._times(1), 1, some.choice(TEXTS), body, crc)
            else:
                user = some.choice(TEXTS)
                insert("events", topic_id, seq, *self._times(1), some.randint(0, 3), 1, user, body, crc)
            if some.random() < 0.3:
                insert("open_messages", topic_id, seq, some.choice(TEXTS), some.randint(0, 1 << 62))
                for _ in range(some.randint(0, 4)):
                    insert("open_deltas", None, topic_id, seq, some.randbytes(some.randint(0, 50)))
                if some.random() < 0.5:
                    insert("cancelled_messages", topic_id, seq, *self._times(1))
            key = (self._key(), some.randbytes(8), epoch, seq, some.randint(0, 9), *self._times(1))
            place = some.random()
            if place < 0.5:
                insert("recent_keys", None, *key)
            if place > 0.3:
                insert("idempotency", *key)
        for user in some.sample(TEXTS, some.randint(0, 4)):
            insert("receipts", topic_id, user, some.randint(0, 9), some.randint(0, 9), *self._times(1))

    def _body(self, epoch: str, seq: int) -> bytes:
        message = Message(id=f"{epoch}-{seq}")
        message.position.epoch, message.position.seq = epoch, seq
        message.parts.add().text.text = self._random.choice(TEXTS) * self._random.choice((1, 100))
        return message.SerializeToString()

    def _times(self, count: int) -> list[int]:
        return [self._random.choice((0, 1_700_000_000_123, (1 << 63) - 1)) for _ in range(count)]

    def _key(self) -> bytes:
        return self._random.randbytes(16)
