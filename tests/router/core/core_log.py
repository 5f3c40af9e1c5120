"""A log in memory with the port's promises, for tests that choose when what happens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from router.core.journal import Draft, Page, PageRequest, StoredDelivery, Verdict
from router.core.topics import EMPTY, Position, TopicKey


class MemoryLog:
    """What is in it is on disk. Nothing here waits; the caller is the one who is slow."""

    def __init__(self) -> None:
        self.logs: dict[TopicKey, tuple[str, list[bytes]]] = {}
        self.unsettled: dict[int, StoredDelivery] = {}
        self._keys: dict[bytes, tuple[bytes, Position, int]] = {}
        self._epochs = (f"e{number}" for number in count(1))
        self._delivery_ids = count(1)

    def head(self, topic: TopicKey) -> Position:
        """The end of a topic's log."""
        if topic not in self.logs:
            return EMPTY
        epoch, messages = self.logs[topic]
        return Position(epoch, len(messages))

    def append(self, drafts: Sequence[Draft], settled: Sequence[int]) -> None:
        """Commit a batch."""
        for delivery_id in settled:
            self.unsettled.pop(delivery_id, None)
        for draft in drafts:
            if draft.key in self._keys:
                self._repeat(draft)
            elif draft.repeat_only:
                draft.verdict = Verdict.NO_REPEAT
            else:
                self._write(draft)

    def _repeat(self, draft: Draft) -> None:
        assert draft.key is not None
        digest, position, connections = self._keys[draft.key]
        if digest != draft.digest:
            draft.verdict = Verdict.MISMATCH
            return
        draft.verdict = Verdict.DUPLICATE
        draft.message.id = f"{position.epoch}-{position.seq}"
        draft.message.position.CopyFrom(position.to_proto())
        draft.connections = connections

    def _write(self, draft: Draft) -> None:
        if draft.topic not in self.logs:
            self.logs[draft.topic] = (next(self._epochs), [])
        epoch, messages = self.logs[draft.topic]
        position = Position(epoch, len(messages) + 1)
        draft.message.id = f"{epoch}-{position.seq}"
        draft.message.position.CopyFrom(position.to_proto())
        draft.stored = draft.message.SerializeToString()
        draft.verdict = Verdict.COMMITTED
        messages.append(draft.stored)
        if draft.key is not None:
            self._keys[draft.key] = (draft.digest, position, draft.connections)
        if draft.deliver:
            draft.delivery_id = next(self._delivery_ids)
            delivery = StoredDelivery(draft.delivery_id, draft.topic, draft.stored)
            self.unsettled[draft.delivery_id] = delivery

    def read(self, request: PageRequest) -> Page:
        """One page as of now."""
        head = self.head(request.topic)
        epoch, messages = self.logs.get(request.topic, ("", []))
        for position in (request.after, request.before):
            if position in (None, EMPTY):
                continue
            if position.epoch != epoch or position.seq > head.seq:
                return Page([], False, head, valid=False)
        entries = list(enumerate(messages, 1))
        if request.after is not None:
            entries = entries[request.after.seq :]
            page = entries[: request.limit]
        else:
            entries = entries if request.before is None else entries[: max(0, request.before.seq - 1)]
            page = entries[-request.limit :]
        return Page(page, len(page) < len(entries), head)

    def deliveries(self, tenant: str, agent: str, after: int, limit: int) -> list[StoredDelivery]:
        """Unsettled deliveries of an agent above an id."""
        found = [d for d in self.unsettled.values() if d.topic[:2] == (tenant, agent)]
        return [d for d in found if d.delivery_id > after][:limit]

    def reset(self, topic: TopicKey) -> None:
        """Erase a log and its unsettled deliveries."""
        self.logs.pop(topic, None)
        self.unsettled = {k: d for k, d in self.unsettled.items() if d.topic != topic}
