"""Pages of a conversation's history for clients."""

from __future__ import annotations

from functools import partial

from trunkline.v1 import catalogue
from trunkline.v1.frame_pb2 import HistoryFrame

from trunkline_router.core.clients.conversations import writable_conversation
from trunkline_router.core.clients.received_frame import ReceivedFrame
from trunkline_router.core.commits.effects import Effects, ReadPages
from trunkline_router.core.directory.client_outbox import ClientOutbox
from trunkline_router.core.directory.connections import ConnectedClient
from trunkline_router.core.replies.open_messages import OpenMessages
from trunkline_router.core.values.log_records import Page, PageRequest
from trunkline_router.core.values.topics import position_of

DEFAULT_PAGE = 50
#: A page is one frame, which a client receives as one piece.
MAX_PAGE_BYTES = 512 * 1024


class ClientHistory:
    """Answers `history` frames, with snapshots of the messages that are open."""

    def __init__(self, open_messages: OpenMessages, outbox: ClientOutbox, effects: Effects) -> None:
        self._open_messages = open_messages
        self._outbox = outbox
        self._effects = effects

    def handle_history(self, received: ReceivedFrame[HistoryFrame]) -> None:
        """Read a page and answer with `history`."""
        connection, frame, _, _ = received
        cursor = frame.WhichOneof("cursor")
        request = PageRequest(
            writable_conversation(connection, frame),
            frame.limit or DEFAULT_PAGE,
            after=position_of(frame.after) if cursor == "after" else None,
            before=position_of(frame.before) if cursor == "before" else None,
            max_bytes=MAX_PAGE_BYTES,
            messages_only=True,
        )
        self._read(connection, frame.id, request)

    def _read(self, connection: ConnectedClient, frame_id: str, request: PageRequest) -> None:
        failed = partial(self._outbox.refuse, connection, frame_id, catalogue.LOG_UNAVAILABLE.refused())
        done = partial(self._answer, connection, frame_id, request)
        self._effects.reads.append(ReadPages([request], done, failed, connection.link))

    def _answer(
        self, connection: ConnectedClient, frame_id: str, request: PageRequest, pages: list[Page]
    ) -> None:
        page = pages[0]
        if not page.valid:
            entry = catalogue.DATA_DAMAGED if page.damaged_seq else catalogue.CURSOR_MISMATCH
            self._outbox.refuse(connection, frame_id, entry.refused())
            return
        messages = self._open_messages.current_messages(request.topic, page)
        if messages is None:
            self._read(connection, frame_id, request)
            return
        size = sum(len(entry.body) for entry in page.entries)
        history = self._outbox.send(connection, size).history
        history.id = frame_id
        history.more = page.more
        history.messages.extend(messages)
