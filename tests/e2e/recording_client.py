"""A client on bare WebSockets and JSON that records everything it sends and is sent."""

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
    """The path that names an address."""
    parts = [address[name] for name in ("tenant", "agent", "platform") if name in address]
    if conversation := address.get("conversation"):
        parts.append(f"{conversation['kind']}:{conversation['id']}")
    if user := address.get("user"):
        parts.append(f"user:{user}")
    return "/".join(parts)


def position_of(position: Frame | None) -> LogPosition | None:
    """A position in a frame."""
    return None if position is None else LogPosition(position.get("epoch", ""), position["seq"])


def frame_text(message: Frame) -> str:
    """The words of a message."""
    return "".join(part.get("text", "") for part in message["parts"])


class RecordingClient:
    """One client, over as many connections as it takes. `name` is `tenant/user`."""

    def __init__(
        self,
        history: History,
        name: str,
        edge: str,
        conversation: str = "group:team",
        *,
        agent: str = "echo",
        narrow: bool = False,
        **options: Any,
    ) -> None:
        """`narrow` keeps hardly anything on the client's side that is not read yet."""
        self.narrow = narrow
        self.history = history
        self.name = name
        self.edge = edge
        self.tenant, self.user = name.split("/")
        self.agent = agent
        self.conversation = conversation
        self.home = f"{self.tenant}/{agent}/web/{conversation}"
        self.options = options
        self.life = ""
        #: Frames of the present connection that `next` has not returned yet.
        self.inbox: list[Frame] = []
        #: For each topic its address and the highest position, as docs/protocol.md asks for.
        self.places: dict[str, tuple[Frame, LogPosition]] = {}
        #: Said and not acked, by id: topic and words.
        self.unacked: dict[str, tuple[str, str]] = {}
        #: What it keeps of messages that are said piece by piece.
        self.texts = MessageTexts()
        self.acks = 0
        self.closing: Frame = {}
        self.closed: Closed | None = None
        #: The test breaks what it connects to by force.
        self.breaks_expected = False
        #: Cleared, nothing is read any more; see also `narrow`.
        self.reads = asyncio.Event()
        self.reads.set()
        #: Pause after each frame read.
        self.dawdle_s = 0.0
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
        """Connect, and wait for `connected` or `closing`, which is returned.

        `resume` goes on from where it was by the URL; `first` is a `resume` frame to go on by instead.
        """
        given = {"tenant": self.tenant, "agent": self.agent, "platform": "web", "user": self.user}
        given |= {"conversation": self.conversation} if self.conversation else {}
        self._wanted = {}
        if resume and self.places:
            heard = {name: spot for name, spot in self.places.items() if self._is_heard_at_start(name)}
            self._wanted = {name: place for name, (_, place) in heard.items()}
            given["resume"] = _resume(list(heard.values()))
        if first is not None:
            given["resume"] = "frame"
        self.inbox, self.closing, self.closed = [], {}, None
        self.texts.connected()
        self.life = f"{self.name}#{next(_numbers)}"
        if self.narrow:
            self.options |= {"sock": _narrow_socket(self.edge), "max_queue": 1}
        url = f"ws://{self.edge}/v1/connect?{urlencode(given)}"
        options = {"compression": None, "open_timeout": WAIT_S} | self.options
        self._ws = await connect(url, ping_interval=None, max_size=None, **options)
        self._reader = asyncio.create_task(self._read(self._ws, self.life))
        if first is not None:
            await self.send(first)
        await wait_until(lambda: self.inbox or self.closed, f"{self.name} is answered")
        return self.inbox.pop(0) if self.inbox else self.closing

    def _is_heard_at_start(self, topic: str) -> bool:
        return "/group:" not in topic or topic == self.home

    async def leave(self) -> None:
        """Close the connection."""
        if self._ws is not None and self._reader is not None:
            await self._ws.close()
            await self._reader

    def break_off(self) -> None:
        """Cut the connection without a goodbye."""
        assert self._ws is not None
        self.breaks_expected = True
        self._ws.transport.abort()

    # Sending

    async def send(self, frame: Frame | str | bytes) -> None:
        """Send a frame as it is."""
        assert self._ws is not None
        await self._ws.send(json.dumps(frame) if isinstance(frame, dict) else frame)

    async def say(self, text: str, ident: str = "", group: str = "") -> str:
        """Say something, once; returns its id. The ack is not waited for."""
        ident = ident or f"{self.user}-{next(_numbers)}"
        topic = f"{self.tenant}/{self.agent}/web/group:{group}" if group else self.home
        self.unacked[ident] = (topic, text)
        await self.say_again(ident)
        return ident

    async def say_again(self, ident: str) -> None:
        """Send what was said under this id, on the connection there is."""
        topic, text = self.unacked[ident]
        said = Sent(
            client=self.name, life=self.life, topic=topic, id=ident, content=text, at=time.monotonic()
        )
        self.history.events.append(said)
        frame: Frame = {"type": "message", "id": ident, "parts": [{"type": "text", "text": text}]}
        if topic != self.home:
            frame["conversation"] = {"kind": "group", "id": topic.rpartition(":")[2]}
        await self.send(frame)

    async def subscribe(self, group: str, position: LogPosition | None = None) -> Frame:
        """Join a group; returns the answer."""
        frame: Frame = {"type": "subscribe", "id": f"s{next(_numbers)}"}
        frame["conversation"] = {"kind": "group", "id": group}
        if position is not None:
            frame["position"] = position._asdict()
            self._wanted[f"{self.tenant}/{self.agent}/web/group:{group}"] = position
        await self.send(frame)
        return await self.next("subscribed", id=frame["id"])

    # Receiving

    async def next(self, kind: str, /, **fields: Any) -> Frame:
        """The first frame of a type, and with these fields, that was not returned yet."""

        def find() -> Frame | None:
            wanted = fields | {"type": kind}
            return next((f for f in self.inbox if wanted.items() <= f.items()), None)

        await wait_until(
            lambda: find() or self.closed, f"{self.name} gets {kind} {fields}; it has {self.inbox[:9]}"
        )
        frame = find()
        assert frame is not None, f"{self.name} was closed before {kind} {fields}: {self.closed}"
        self.inbox.remove(frame)
        return frame

    async def _read(self, ws: ClientConnection, life: str) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                await self.reads.wait()
                self._record(json.loads(await ws.recv()), life)
                if self.dawdle_s:
                    await asyncio.sleep(self.dawdle_s)
        closed = Closed(
            client=self.name,
            life=life,
            code=ws.close_code or 1006,
            reason=self.closing.get("reason", ""),
            ours=self.breaks_expected,
        )
        self.history.events.append(closed)
        if life == self.life:
            self.closed = closed

    def _record(self, frame: Frame, life: str) -> None:
        self.texts.take(frame)
        recorder = {
            "message": self._heard,
            "change": self._changed,
            "read": self._read_on,
            "ack": self._acked,
            "connected": self._connected,
            "subscribed": self._subscribed,
            "error": self._refused,
            "closing": self._told_of_end,
        }.get(frame["type"])
        if recorder is not None:
            recorder(frame, life)
        self.inbox.append(frame)

    def _connected(self, frame: Frame, life: str) -> None:
        for entry in frame["positions"]:
            self._started(entry["address"], entry["position"], frame["recovered"], life)

    def _subscribed(self, frame: Frame, life: str) -> None:
        self._started(frame["address"], frame["position"], frame["recovered"], life)

    def _refused(self, frame: Frame, life: str) -> None:
        refused = Rejected(client=self.name, life=life, id=frame.get("id", ""), code=frame["code"])
        self.history.events.append(refused)

    def _told_of_end(self, frame: Frame, life: str) -> None:
        self.closing = frame

    def _read_on(self, frame: Frame, life: str) -> None:
        if "at" in frame:
            self._passed(frame["address"], frame["at"], life)

    def _is_known(self, message: Frame) -> bool:
        """It comes again, as it is open: it stands where this client has been."""
        place = position_of(message.get("position"))
        _, reached = self.places.get(topic_name(message["address"]), ({}, LogPosition("", 0)))
        is_behind = place is not None and place.epoch == reached.epoch and place.seq <= reached.seq
        return is_behind and message["state"] == "open"

    def _changed(self, change: Frame, life: str) -> None:
        place, ident = position_of(change["position"]), change["message_id"]
        assert place is not None
        if change["kind"] == "ended":
            ended = Ended(
                client=self.name,
                life=life,
                topic=topic_name(change["address"]),
                place=place,
                message_id=ident,
                state=change["state"],
                content=self.texts.text[ident],
            )
            self.history.events.append(ended)
        self._passed(change["address"], change["position"], life)

    def _passed(self, address: Frame, position: Frame, life: str) -> None:
        place = position_of(position)
        assert place is not None
        self.history.events.append(
            Advanced(client=self.name, life=life, topic=topic_name(address), place=place)
        )
        self._came_to(address, place)

    def _started(self, address: Frame, position: Frame, recovered: bool, life: str) -> None:
        topic, place = topic_name(address), position_of(position)
        assert place is not None
        wanted = self._wanted.get(topic)
        self.history.events.append(
            TopicStarted(
                client=self.name, life=life, topic=topic, place=place, wanted=wanted, recovered=recovered
            )
        )
        self.places[topic] = (address, place)

    def _heard(self, message: Frame, life: str) -> None:
        if self._is_known(message):
            return
        topic, place = topic_name(message["address"]), position_of(message.get("position"))
        ident = message.get("client_id", "")
        self.history.events.append(
            Received(
                client=self.name,
                life=life,
                topic=topic,
                place=place,
                message_id=message["id"],
                client_id=ident,
                content=frame_text(message),
                at=time.monotonic(),
                state=message["state"],
            )
        )
        self._came_to(message["address"], place)

    def _acked(self, ack: Frame, life: str) -> None:
        place = position_of(ack["position"])
        assert place is not None
        topic = topic_name(ack["address"])
        self.history.events.append(
            Acked(
                client=self.name,
                life=life,
                topic=topic,
                id=ack["id"],
                message_id=ack["message_id"],
                place=place,
            )
        )
        self.acks += 1
        self.unacked.pop(ack["id"], None)
        self._came_to(ack["address"], place)

    def _came_to(self, address: Frame, place: LogPosition | None) -> None:
        if place is None:
            return
        topic = topic_name(address)
        _, before = self.places.get(topic, (address, LogPosition("", 0)))
        if place.epoch != before.epoch or place.seq > before.seq:
            self.places[topic] = (address, place)

    def seq(self, topic: str = "") -> int:
        """How far it has come in a topic, or its home."""
        _, place = self.places.get(topic or self.home, ({}, LogPosition("", 0)))
        return place.seq

    # Staying connected

    async def reconnect(self, edges: list[str]) -> None:
        """Connect to the first edge that takes it, go on where it was, and say again what was not acked."""
        deadline = time.monotonic() + WAIT_S
        for attempt in itertools.count():
            self.edge = edges[attempt % len(edges)]
            try:
                answer = await self.connect(resume=True)
                if answer["type"] == "connected":
                    for ident in list(self.unacked):
                        await self.say_again(ident)
                    return
            except (OSError, InvalidHandshake, ConnectionClosed, EOFError):
                pass
            assert time.monotonic() < deadline, f"{self.name} could not reconnect to {edges}"
            await asyncio.sleep(0.05)


def _narrow_socket(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
    sock.connect((host, int(port)))
    return sock


def _resume(spots: list[tuple[Frame, LogPosition]]) -> str:
    array = [{"address": address, "position": place._asdict()} for address, place in spots]
    return base64.urlsafe_b64encode(json.dumps(array).encode()).decode().rstrip("=")
