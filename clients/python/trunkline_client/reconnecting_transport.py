"""One WebSocket after another: the shell that carries a session."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Literal, TypeAlias

from google.protobuf.message import DecodeError
from trunkline.v1 import catalogue
from trunkline.v1.frame_pb2 import ClientFrame, DisconnectFrame, PingFrame, ServerFrame
from websockets.exceptions import ConnectionClosed

from trunkline_client import events as effects
from trunkline_client.backoff import Backoff
from trunkline_client.clock import Clock
from trunkline_client.close_codes import Reconnect, interpret_close
from trunkline_client.edge_socket import ClientSettings, EdgeSocket, connect_socket
from trunkline_client.errors import Closed, Refused, Unreachable
from trunkline_client.events import Effect
from trunkline_client.heartbeat import HeartbeatAction, next_heartbeat
from trunkline_client.session import Session
from trunkline_client.token_refresher import TokenRefresher, TokenSource

ClientState: TypeAlias = Literal["connecting", "connected", "waiting", "closed"]

log = logging.getLogger("trunkline_client")


class ReconnectingTransport:
    """Keeps a session connected until it is closed for good.

    `perform(effects, size)` carries out what the session asks for after a frame of `size` bytes, by
    `ReconnectingTransport.perform` where it is about the connection; `room()` is None where more may be
    read, or else waits until it may. Both are the client's.
    """

    def __init__(
        self,
        url: Callable[[bool], str],
        token: TokenSource,
        session: Session,
        settings: ClientSettings,
        clock: Clock,
        perform: Callable[[list[Effect], int], None],
        room: Callable[[], Awaitable[None] | None],
    ) -> None:
        self.state: ClientState = "connecting"
        self._url = url
        self._session = session
        self._settings = settings
        self._clock = clock
        self._perform = perform
        self._room = room
        self._backoff = Backoff(clock.random, base_s=settings.backoff_base_s, cap_s=settings.backoff_cap_s)
        self._outbox: deque[ClientFrame] = deque()
        self._has_mail = asyncio.Event()
        self._socket: EdgeSocket | None = None
        self._renewal = TokenRefresher(token, clock, settings.attempt_timeout_s, self._show)
        #: Nothing that was held back is sent before.
        self._go_on_at = 0.0
        self._has_pause = asyncio.Event()
        self._pinged_at = 0.0
        self._reading = True
        self._dropped = ""
        self._leaving = False
        self._ever_connected = False

    @property
    def outbox_len(self) -> int:
        """Frames that wait to be written."""
        return len(self._outbox)

    def send(self, frame: ClientFrame) -> None:
        """Queues a frame for the present connection; it is gone if that breaks first."""
        self._outbox.append(frame)
        self._has_mail.set()

    def perform(self, effect: effects.OnConnection) -> None:
        """Carries out what the session asks for on the present connection."""
        match effect:
            case effects.Send(frame):
                self.send(frame)
            case effects.PauseSending(for_s):
                self._go_on_at = max(self._go_on_at, self._clock.clock() + for_s)
                self._has_pause.set()
            case effects.SetTokenExpiry(at_s):
                self._renewal.expires(at_s)
            case effects.WarnTokenRejected(error):
                log.warning("the edge takes no other token: %s (%s)", error.message, error.code)
            case effects.DropConnection(why):
                self.drop(why)

    def drop(self, why: str) -> None:
        """Breaks the present connection, if any; `run` makes another."""
        if self._socket is not None:
            self._dropped = why
            self._socket.transport.abort()

    def leave(self) -> None:
        """Asks the edge to close the connection; `run` returns once it has, and does not reconnect."""
        self._leaving = True
        self.send(ClientFrame(disconnect=DisconnectFrame()))

    async def run(self) -> None:
        """Connects, and connects again, until `leave` or a close that is for good.

        Raises Closed after the latter, Refused where the edge refuses for a reason that will not go
        away, and Unreachable where it was never reached within `open_timeout_s`. Cancelling drops the
        socket at once.
        """
        started_at = self._clock.clock()
        try:
            while not self._leaving:
                self.state = "connecting"
                outcome = await self._connect_once()
                if self._leaving:
                    return
                if isinstance(outcome, Closed):
                    raise outcome
                if not self._ever_connected:
                    self._check_patience(started_at, outcome.why)
                self.state = "waiting"
                wait_s = self._backoff.next_s(outcome.at_least_s)
                log.info("reconnecting in %.2f s: %s", wait_s, outcome.why)
                await self._clock.sleep(wait_s)
        finally:
            self.state = "closed"

    def _check_patience(self, started_at: float, why: str) -> None:
        if self._clock.clock() - started_at >= self._settings.open_timeout_s:
            raise Unreachable(self._url(False).partition("?")[0], why)

    async def _connect_once(self) -> Reconnect | Closed:
        first = self._session.first_frames()
        try:
            token = await self._renewal.token()
        except Exception as problem:
            log.warning("no token could be had: %r", problem)
            return Reconnect(0.0, f"no token could be had: {problem!r}")
        try:
            socket = await connect_socket(self._url(bool(first)), self._settings, self._clock.clock, token)
        except Refused as refusal:
            expired = refusal.code == catalogue.TOKEN_EXPIRED.code
            if not refusal.retryable or (expired and not self._renewal.is_possible):
                raise
            return Reconnect(refusal.retry_after_ms / 1000, str(refusal))
        except (OSError, TimeoutError) as problem:
            return Reconnect(0.0, str(problem) or type(problem).__name__)
        opened_at = self._clock.clock()
        try:
            outcome = await self._serve(socket, first)
        finally:
            self._session.disconnected()
            self._outbox.clear()
        self._backoff.held(self._clock.clock() - opened_at)
        return outcome

    async def _serve(self, socket: EdgeSocket, first: list[ClientFrame]) -> Reconnect | Closed:
        """Reads and writes until the socket is closed."""
        self._socket, self._dropped, self._pinged_at = socket, "", self._clock.clock()
        self._go_on_at = 0.0
        self._has_pause.clear()
        self._renewal.begin()
        for frame in first:
            self.send(frame)
        beside = [
            asyncio.create_task(self._guarded(socket, each))
            for each in (self._write(socket), self._watch(socket), self._resume(), self._renewal.run())
        ]
        try:
            code, reason = await self._read(socket)
        finally:
            self._socket = None
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            socket.transport.abort()
        for task in beside:
            if not task.cancelled():
                task.result()
        if self._dropped:
            return Reconnect(0.0, self._dropped)
        return interpret_close(code, reason, self._session.closing, self._renewal.is_possible)

    async def _guarded(self, socket: EdgeSocket, work: Awaitable[None]) -> None:
        """What goes wrong beside the reader ends the reading too."""
        try:
            await work
        except ConnectionClosed:
            return  # the reader reads what is left, and says why
        except Exception:
            socket.transport.abort()
            raise

    async def _read(self, socket: EdgeSocket) -> tuple[int, str]:
        """Reads until the connection is closed; returns the close code and reason."""
        try:
            while True:
                self._receive(await socket.recv(decode=False))
                waiting = self._room()
                if waiting is not None:
                    self._reading = False
                    await waiting
                    socket.heard_at = self._clock.clock()
                    self._reading = True
        except ConnectionClosed as end:
            frame = end.rcvd or end.sent
            return (frame.code, frame.reason) if frame else (1006, "")
        finally:
            self._reading = True

    def _receive(self, data: bytes) -> None:
        try:
            frame = ServerFrame.FromString(data)
        except DecodeError:
            self.drop("the edge sent a frame that cannot be read")
            return
        if self._dropped:
            return
        wanted = self._session.received(frame)
        if frame.HasField("connected"):
            self.state = "connected"
            self._ever_connected = True
        self._perform(wanted, len(data))

    async def _write(self, socket: EdgeSocket) -> None:
        """The only writer: takes what is queued, in order; waits while the socket takes no more."""
        while True:
            await self._has_mail.wait()
            self._has_mail.clear()
            while self._outbox:
                await socket.send(self._outbox.popleft().SerializeToString())

    async def _resume(self) -> None:
        """Has the session go on after each pause."""
        while True:
            await self._has_pause.wait()
            self._has_pause.clear()
            while (wait_s := self._go_on_at - self._clock.clock()) > 0:
                await self._clock.sleep(wait_s)
            self._perform(self._session.go_on(), 0)

    def _show(self, token: str) -> None:
        for frame in self._session.renew(token):
            self.send(frame)

    async def _watch(self, socket: EdgeSocket) -> None:
        """Pings when it has been silent, and drops the connection when it is dead."""
        while True:
            now = self._clock.clock()
            # What we do not read we cannot hear; the edge decides how long it bears that.
            heard_at = socket.heard_at if self._reading else now
            connected = self._session.connected
            interval_s = self._session.heartbeat_s if connected else self._settings.attempt_timeout_s / 2
            what, wait_s = next_heartbeat(now, heard_at, self._pinged_at, interval_s or 30.0)
            if what is HeartbeatAction.DEAD:
                self.drop("nothing was heard from the edge")
                return
            if what is HeartbeatAction.PING:
                self._pinged_at = now
                if connected:
                    self.send(ClientFrame(ping=PingFrame()))
            await self._clock.sleep(wait_s)
