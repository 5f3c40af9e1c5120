"""WebSocket client for the JSON encoding that records everything it sends and receives."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import socket
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from tests.e2e.message_texts import MessageTexts
from tests.e2e.polling import WAIT_S, wait_until
from tests.validators.history import (
    Acked,
    Advanced,
    Closed,
    Ended,
    History,
    LogPosition,
    Received,
    Rejected,
    Sent,
    TopicStarted,
)

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

_numbers = itertools.count(1)
Frame = dict[str, Any]


def topic_name(address: Frame) -> str:
    """Return the path of an address."""
    parts = [address[name] for name in ("tenant", "agent", "platform") if name in address]
    if conversation := address.get("conversation"):
        parts.append(f"{conversation['kind']}:{conversation['id']}")
    if user := address.get("user"):
        parts.append(f"user:{user}")
    return "/".join(parts)


def position_of(position: Frame | None) -> LogPosition | None:
    """Return the position in a frame."""
    return None if position is None else LogPosition(position.get("epoch", ""), position["seq"])


def frame_text(message: Frame) -> str:
    """Return the text of a message."""
    return "".join(part.get("text", "") for part in message["parts"])


class RecordingClient:
    """Client with any number of successive connections. `name` is `tenant/user`."""

    def __init__(
        self,
        history: History,
        name: str,
        edge: str,
        conversation: str = "group:team",
        *,
        agent: str = "echo",
        small_buffers: bool = False,
        **options: Any,
    ) -> None:
        """Set up a client; `small_buffers` minimises what is buffered on its side while it does not read."""
        self.small_buffers = small_buffers
        self.history = history
        self.name = name
        self.edge = edge
        self.tenant, self.user = name.split("/")
        self.agent = agent
        self.conversation = conversation
        self.home = f"{self.tenant}/{agent}/web/{conversation}"
        self.options = options
        self.session = ""
        #: Frames of the current connection that `next` has not returned yet.
        self.inbox: list[Frame] = []
        #: Address and highest position of each topic, as docs/protocol.md requires for resuming.
        self.positions: dict[str, tuple[Frame, LogPosition]] = {}
        #: Topic and text of unacked messages, by id.
        self.unacked: dict[str, tuple[str, str]] = {}
        #: State of streamed messages.
        self.texts = MessageTexts()
        self.acks = 0
        self.closing: Frame = {}
        self.closed: Closed | None = None
        #: The test kills or aborts connections.
        self.breaks_expected = False
        #: While cleared, the client does not read; see also `small_buffers`.
        self.reading = asyncio.Event()
        self.reading.set()
        #: Pause after each frame read.
        self.read_delay_s = 0.0
        self._ws: ClientConnection | None = None
        self._reader: asyncio.Task[None] | None = None
        self._wanted: dict[str, LogPosition] = {}

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.leave()

    # Connecting

    async def connect(self, resume: bool = False, first: Frame | None = None) -> Frame:
        """Connect and return the first frame, `connected` or `closing`.

        `resume` resumes by the URL; alternatively `first` is a `resume` frame.
        """
        given = {"tenant": self.tenant, "agent": self.agent, "platform": "web", "user": self.user}
        given |= {"conversation": self.conversation} if self.conversation else {}
        self._wanted = {}
        if resume and self.positions:
            heard = {
                name: spot for name, spot in self.positions.items() if self._is_subscribed_at_start(name)
            }
            self._wanted = {name: place for name, (_, place) in heard.items()}
            given["resume"] = _resume(list(heard.values()))
        if first is not None:
            given["resume"] = "frame"
        self.inbox, self.closing, self.closed = [], {}, None
        self.texts.connected()
        self.session = f"{self.name}#{next(_numbers)}"
        if self.small_buffers:
            self.options |= {"sock": _small_buffer_socket(self.edge), "max_queue": 1}
        url = f"ws://{self.edge}/v1/connect?{urlencode(given)}"
        options = {"compression": None, "open_timeout": WAIT_S} | self.options
        self._ws = await connect(url, ping_interval=None, max_size=None, **options)
        self._reader = asyncio.create_task(self._read(self._ws, self.session))
        if first is not None:
            await self.send(first)
        await wait_until(lambda: self.inbox or self.closed, f"{self.name} receives a frame")
        return self.inbox.pop(0) if self.inbox else self.closing

    def _is_subscribed_at_start(self, topic: str) -> bool:
        return "/group:" not in topic or topic == self.home

    async def leave(self) -> None:
        """Close the connection."""
        if self._ws is not None and self._reader is not None:
            await self._ws.close()
            await self._reader

    def abort(self) -> None:
        """Abort the connection without a close frame."""
        assert self._ws is not None
        self.breaks_expected = True
        self._ws.transport.abort()

    # Sending

    async def send(self, frame: Frame | str | bytes) -> None:
        """Send a frame; text and bytes are sent unchanged."""
        assert self._ws is not None
        await self._ws.send(json.dumps(frame) if isinstance(frame, dict) else frame)

    async def say(self, text: str, ident: str = "", group: str = "", **fields: Any) -> str:
        """Send a text without waiting for the ack; return its id. `fields` are more fields of the frame."""
        ident = ident or f"{self.user}-{next(_numbers)}"
        topic = f"{self.tenant}/{self.agent}/web/group:{group}" if group else self.home
        self.unacked[ident] = (topic, text)
        await self.resend(ident, **fields)
        return ident

    async def resend(self, ident: str, **fields: Any) -> None:
        """Send an unacked message again, on the current connection."""
        topic, text = self.unacked[ident]
        sent = Sent(
            client=self.name, session=self.session, topic=topic, id=ident, content=text, at=time.monotonic()
        )
        self.history.events.append(sent)
        frame: Frame = {"type": "message", "id": ident, "parts": [{"type": "text", "text": text}]} | fields
        if topic != self.home:
            frame["conversation"] = {"kind": "group", "id": topic.rpartition(":")[2]}
        await self.send(frame)

    async def subscribe(self, group: str, position: LogPosition | None = None) -> Frame:
        """Subscribe to a group; return the response."""
        frame: Frame = {"type": "subscribe", "id": f"s{next(_numbers)}"}
        frame["conversation"] = {"kind": "group", "id": group}
        if position is not None:
            frame["position"] = position._asdict()
            self._wanted[f"{self.tenant}/{self.agent}/web/group:{group}"] = position
        await self.send(frame)
        return await self.next("subscribed", id=frame["id"])

    # Receiving

    async def next(self, kind: str, /, **fields: Any) -> Frame:
        """Return the first unread frame of this type with these fields; wait for it if necessary."""

        def find() -> Frame | None:
            wanted = fields | {"type": kind}
            return next((f for f in self.inbox if wanted.items() <= f.items()), None)

        await wait_until(
            lambda: find() or self.closed, f"{self.name} receives {kind} {fields}; it has {self.inbox[:9]}"
        )
        frame = find()
        assert frame is not None, f"{self.name} was closed before {kind} {fields}: {self.closed}"
        self.inbox.remove(frame)
        return frame

    async def _read(self, ws: ClientConnection, session: str) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                await self.reading.wait()
                self._record(json.loads(await ws.recv()), session)
                if self.read_delay_s:
                    await asyncio.sleep(self.read_delay_s)
        closed = Closed(
            client=self.name,
            session=session,
            code=ws.close_code or 1006,
            reason=self.closing.get("reason", ""),
            ours=self.breaks_expected,
        )
        self.history.events.append(closed)
        if session == self.session:
            self.closed = closed

    def _record(self, frame: Frame, session: str) -> None:
        self.texts.take(frame)
        recorder = {
            "message": self._heard,
            "change": self._changed,
            "read": self._read_receipt,
            "ack": self._acked,
            "connected": self._connected,
            "subscribed": self._subscribed,
            "error": self._refused,
            "closing": self._closing,
        }.get(frame["type"])
        if recorder is not None:
            recorder(frame, session)
        self.inbox.append(frame)

    def _connected(self, frame: Frame, session: str) -> None:
        for entry in frame["positions"]:
            self._started(entry["address"], entry["position"], frame["recovered"], session)

    def _subscribed(self, frame: Frame, session: str) -> None:
        self._started(frame["address"], frame["position"], frame["recovered"], session)

    def _refused(self, frame: Frame, session: str) -> None:
        refused = Rejected(client=self.name, session=session, id=frame.get("id", ""), code=frame["code"])
        self.history.events.append(refused)

    def _closing(self, frame: Frame, session: str) -> None:
        self.closing = frame

    def _read_receipt(self, frame: Frame, session: str) -> None:
        if "at" in frame:
            self._record_advance(frame["address"], frame["at"], session)

    def _is_known(self, message: Frame) -> bool:
        """Return whether an open message is repeated at a position that this client has reached."""
        place = position_of(message.get("position"))
        _, reached = self.positions.get(topic_name(message["address"]), ({}, LogPosition("", 0)))
        is_behind = place is not None and place.epoch == reached.epoch and place.seq <= reached.seq
        return is_behind and message["state"] == "open"

    def _changed(self, change: Frame, session: str) -> None:
        place, ident = position_of(change["position"]), change["message_id"]
        assert place is not None
        if change["kind"] == "ended":
            ended = Ended(
                client=self.name,
                session=session,
                topic=topic_name(change["address"]),
                position=place,
                message_id=ident,
                state=change["state"],
                content=self.texts.text[ident],
            )
            self.history.events.append(ended)
        self._record_advance(change["address"], change["position"], session)

    def _record_advance(self, address: Frame, position: Frame, session: str) -> None:
        place = position_of(position)
        assert place is not None
        self.history.events.append(
            Advanced(client=self.name, session=session, topic=topic_name(address), position=place)
        )
        self._advance(address, place)

    def _started(self, address: Frame, position: Frame, recovered: bool, session: str) -> None:
        topic, place = topic_name(address), position_of(position)
        assert place is not None
        wanted = self._wanted.get(topic)
        self.history.events.append(
            TopicStarted(
                client=self.name,
                session=session,
                topic=topic,
                position=place,
                wanted=wanted,
                recovered=recovered,
            )
        )
        self.positions[topic] = (address, place)

    def _heard(self, message: Frame, session: str) -> None:
        if self._is_known(message):
            return
        topic, place = topic_name(message["address"]), position_of(message.get("position"))
        ident = message.get("client_id", "")
        self.history.events.append(
            Received(
                client=self.name,
                session=session,
                topic=topic,
                position=place,
                message_id=message["id"],
                client_id=ident,
                content=frame_text(message),
                at=time.monotonic(),
                state=message["state"],
            )
        )
        self._advance(message["address"], place)

    def _acked(self, ack: Frame, session: str) -> None:
        place = position_of(ack["position"])
        assert place is not None
        topic = topic_name(ack["address"])
        self.history.events.append(
            Acked(
                client=self.name,
                session=session,
                topic=topic,
                id=ack["id"],
                message_id=ack["message_id"],
                position=place,
            )
        )
        self.acks += 1
        self.unacked.pop(ack["id"], None)
        self._advance(ack["address"], place)

    def _advance(self, address: Frame, place: LogPosition | None) -> None:
        if place is None:
            return
        topic = topic_name(address)
        _, before = self.positions.get(topic, (address, LogPosition("", 0)))
        if place.epoch != before.epoch or place.seq > before.seq:
            self.positions[topic] = (address, place)

    def seq(self, topic: str = "") -> int:
        """Return the highest seq in a topic; the home topic by default."""
        _, place = self.positions.get(topic or self.home, ({}, LogPosition("", 0)))
        return place.seq

    # Staying connected

    async def reconnect(self, edges: list[str]) -> None:
        """Reconnect to the first available edge, resume, and resend unacked messages."""
        deadline = time.monotonic() + WAIT_S
        for attempt in itertools.count():
            self.edge = edges[attempt % len(edges)]
            try:
                answer = await self.connect(resume=True)
                if answer["type"] == "connected":
                    for ident in list(self.unacked):
                        await self.resend(ident)
                    return
            except (OSError, InvalidHandshake, ConnectionClosed, EOFError):
                pass
            assert time.monotonic() < deadline, f"{self.name} could not reconnect to {edges}"
            await asyncio.sleep(0.05)


def _small_buffer_socket(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
    sock.connect((host, int(port)))
    return sock


def _resume(spots: list[tuple[Frame, LogPosition]]) -> str:
    array = [{"address": address, "position": place._asdict()} for address, place in spots]
    return base64.urlsafe_b64encode(json.dumps(array).encode()).decode().rstrip("=")
