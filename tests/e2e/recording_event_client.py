"""Client of event streams that records everything it receives."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from tests.e2e.polling import wait_until
from tests.e2e.recording_client import Frame, RecordingClient
from tests.support.event_source import EventReader
from tests.validators.history import Closed

if TYPE_CHECKING:
    from tests.validators.history import History

_numbers = itertools.count(1)


class RecordingEventClient(RecordingClient):
    """Client with any number of successive streams; it resumes by the last event id alone."""

    def __init__(
        self, history: History, name: str, edge: str, conversation: str = "group:team", **options: Any
    ):
        super().__init__(history, name, edge, conversation, **options)
        self.last_id = ""
        #: Status of the last response, and the JSON body of an error response.
        self.status = 0
        self.refusal: Frame = {}
        self._writer: asyncio.StreamWriter | None = None

    async def connect(self, resume: bool = False, first: Frame | None = None) -> Frame:
        """Request the stream; return the first event or the error response."""
        assert first is None
        given = {"tenant": self.tenant, "agent": self.agent, "platform": "web", "user": self.user}
        given |= {"conversation": self.conversation} | self.options
        self._wanted = {name: place for name, (_, place) in self.positions.items()} if resume else {}
        self.inbox, self.closing, self.closed, self.refusal = [], {}, None, {}
        self.texts.connected()
        self.session = f"{self.name}~{next(_numbers)}"
        host, _, port = self.edge.rpartition(":")
        reader, self._writer = await asyncio.open_connection(host, int(port))
        last = f"Last-Event-ID: {self.last_id}\r\n" if resume and self.last_id else ""
        head = f"GET /v1/events?{urlencode(given)} HTTP/1.1\r\nHost: localhost\r\n{last}\r\n"
        self._writer.write(head.encode())
        self._reader = asyncio.create_task(self._read_stream(reader, self._writer, self.session))
        await wait_until(lambda: self.inbox or self.closed, f"{self.name} receives a response")
        return self.inbox.pop(0) if self.inbox else self.closing or self.refusal or {"type": "broken"}

    async def leave(self) -> None:
        """Close the connection."""
        self.breaks_expected = True
        if self._writer is not None and self._reader is not None:
            self._writer.close()
            await self._reader

    def abort(self) -> None:
        """Abort the connection."""
        assert self._writer is not None
        self.breaks_expected = True
        self._writer.transport.abort()

    async def _read_stream(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, session: str
    ) -> None:
        with contextlib.suppress(OSError, EOFError):
            head = await reader.readuntil(b"\r\n\r\n")
            self.status = int(head.split()[1])
            if self.status != 200:
                self.refusal = {"type": "refused"} | json.loads(await reader.read())
            events = EventReader()
            while self.status == 200 and (data := await reader.read(1 << 16)):
                for event in events.feed(data):
                    frame = json.loads(event.data)
                    assert frame["type"] == event.type
                    self._record(frame, session)
                    self.last_id = event.last_id or self.last_id
        writer.close()
        code = self.closing.get("code", 1006)
        reason = self.closing.get("reason", "")
        ours = self.breaks_expected and not reason
        closed = Closed(client=self.name, session=session, code=code, reason=reason, ours=ours)
        self.history.events.append(closed)
        if session == self.session:
            self.closed = closed
