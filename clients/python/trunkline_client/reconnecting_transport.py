"""The transport of a client's session: one WebSocket after another."""

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

from trunkline_client import effects
from trunkline_client.backoff import Backoff
from trunkline_client.clock import Clock
from trunkline_client.close_codes import Reconnect, interpret_close
from trunkline_client.edge_socket import EdgeSocket, connect_socket
from trunkline_client.effects import Effect
from trunkline_client.errors import Closed, Refused, Unreachable
from trunkline_client.heartbeat import HeartbeatAction, next_heartbeat
from trunkline_client.session import Session
from trunkline_client.settings import ClientSettings
from trunkline_client.token_refresher import TokenRefresher, TokenSource

ClientState: TypeAlias = Literal["new", "connecting", "connected", "waiting", "closed"]
"""`new` before it is opened, `waiting` before the next attempt to connect, `closed` for good."""

#: Heartbeat of an edge that announces none.
_DEFAULT_HEARTBEAT_S = 30.0

log = logging.getLogger("trunkline_client")


class ReconnectingTransport:
    """Keeps a session connected until it is closed for good.

    `url(resuming)` returns the URL to connect to. `perform(effects, size)` carries out the effects of a
    frame of `size` bytes; it passes those on the connection to `ReconnectingTransport.perform`.
    `wait_for_room()` returns None while frames may be read, or else an awaitable that completes when they
    may.
    """

    def __init__(
        self,
        url: Callable[[bool], str],
        token: TokenSource,
        session: Session,
        settings: ClientSettings,
        clock: Clock,
        perform: Callable[[list[Effect], int], None],
        wait_for_room: Callable[[], Awaitable[None] | None],
    ) -> None:
        self.state: ClientState = "new"
        self._url = url
        self._session = session
        self._settings = settings
        self._clock = clock
        self._perform = perform
        self._wait_for_room = wait_for_room
        self._backoff = Backoff(clock.random, base_s=settings.backoff_base_s, cap_s=settings.backoff_cap_s)
        self._outbox: deque[ClientFrame] = deque()
        self._has_output = asyncio.Event()
        self._socket: EdgeSocket | None = None
        self._refresher = TokenRefresher(token, clock, settings.attempt_timeout_s, self._present_token)
        #: Nothing that is deferred is sent before this time.
        self._paused_until = 0.0
        self._has_pause = asyncio.Event()
        self._pinged_at = 0.0
        self._is_reading = True
        self._drop_reason = ""
        self._leaving = False
        self._ever_connected = False

    @property
    def outbox_len(self) -> int:
        """Number of unwritten frames."""
        return len(self._outbox)

    def send(self, frame: ClientFrame) -> None:
        """Queues a frame for the current connection; it is lost if that breaks first."""
        self._outbox.append(frame)
        self._has_output.set()

    def perform(self, effect: effects.ConnectionEffect) -> None:
        """Carries out an effect on the current connection."""
        match effect:
            case effects.Send(frame):
                self.send(frame)
            case effects.PauseSending(for_s):
                self._paused_until = max(self._paused_until, self._clock.monotonic() + for_s)
                self._has_pause.set()
            case effects.SetTokenExpiry(at_s):
                self._refresher.set_expiry(at_s)
            case effects.WarnTokenRejected(error):
                log.warning("the edge rejected a fresh token: %s (%s)", error.message, error.code)
            case effects.DropConnection(reason):
                self.drop(reason)

    def drop(self, reason: str) -> None:
        """Aborts the current connection, if any; `run` makes another."""
        if self._socket is not None:
            self._drop_reason = reason
            self._socket.transport.abort()

    def leave(self) -> None:
        """Asks the edge to close the connection; `run` then returns without reconnecting."""
        self._leaving = True
        self.send(ClientFrame(disconnect=DisconnectFrame()))

    async def run(self) -> None:
        """Connects, and reconnects, until `leave` or a close that is final.

        Raises Closed after the latter, Refused if the edge rejects the client for good, and Unreachable if no
        connection was made within `open_timeout_s`. Cancelling drops the socket at once.
        """
        started_at = self._clock.monotonic()
        try:
            while not self._leaving:
                self.state = "connecting"
                outcome = await self._connect_once()
                if self._leaving:
                    return
                if isinstance(outcome, Closed):
                    raise outcome
                if not self._ever_connected:
                    self._check_open_timeout(started_at, outcome.reason)
                self.state = "waiting"
                wait_s = self._backoff.next_s(outcome.at_least_s)
                log.info("reconnecting in %.2f s: %s", wait_s, outcome.reason)
                await self._clock.sleep(wait_s)
        finally:
            self.state = "closed"

    def _check_open_timeout(self, started_at: float, reason: str) -> None:
        if self._clock.monotonic() - started_at >= self._settings.open_timeout_s:
            raise Unreachable(self._url(False).partition("?")[0], reason)

    async def _connect_once(self) -> Reconnect | Closed:
        """Serves one connection until it is closed; returns whether to reconnect."""
        first = self._session.first_frames()
        try:
            token = await self._refresher.get_token()
        except Exception as error:
            log.warning("cannot get a token: %r", error)
            return Reconnect(0.0, f"cannot get a token: {error!r}")
        try:
            url = self._url(bool(first))
            socket = await connect_socket(url, self._settings, self._clock.monotonic, token)
        except Refused as refusal:
            expired = refusal.code == catalogue.TOKEN_EXPIRED.code
            if not refusal.retryable or (expired and not self._refresher.can_refresh):
                raise
            return Reconnect(refusal.retry_after_ms / 1000, str(refusal))
        except (OSError, TimeoutError) as error:
            return Reconnect(0.0, str(error) or type(error).__name__)
        opened_at = self._clock.monotonic()
        try:
            outcome = await self._serve(socket, first)
        finally:
            self._perform(self._session.disconnect(), 0)
            self._outbox.clear()
        self._backoff.record_uptime(self._clock.monotonic() - opened_at)
        return outcome

    async def _serve(self, socket: EdgeSocket, first: list[ClientFrame]) -> Reconnect | Closed:
        self._socket, self._drop_reason, self._pinged_at = socket, "", self._clock.monotonic()
        self._paused_until = 0.0
        self._has_pause.clear()
        self._refresher.reset()
        for frame in first:
            self.send(frame)
        jobs = (self._write(socket), self._beat(socket), self._end_pauses(), self._refresher.run())
        tasks = [asyncio.create_task(self._guard(socket, each)) for each in jobs]
        try:
            code, reason = await self._read(socket)
        finally:
            self._socket = None
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            socket.transport.abort()
        for task in tasks:
            if not task.cancelled():
                task.result()
        if self._drop_reason:
            return Reconnect(0.0, self._drop_reason)
        return interpret_close(code, reason, self._session.closing, self._refresher.can_refresh)

    async def _guard(self, socket: EdgeSocket, job: Awaitable[None]) -> None:
        """Runs a job beside the reader; its failure ends the connection too."""
        try:
            await job
        except ConnectionClosed:
            return  # the reader reads the rest, and learns the reason
        except Exception:
            socket.transport.abort()
            raise

    async def _read(self, socket: EdgeSocket) -> tuple[int, str]:
        """Reads until the connection is closed; returns the close code and reason."""
        try:
            while True:
                self._receive(await socket.recv(decode=False))
                room = self._wait_for_room()
                if room is not None:
                    self._is_reading = False
                    await room
                    socket.heard_at = self._clock.monotonic()
                    self._is_reading = True
        except ConnectionClosed as closed:
            frame = closed.rcvd or closed.sent
            return (frame.code, frame.reason) if frame else (1006, "")
        finally:
            self._is_reading = True

    def _receive(self, data: bytes) -> None:
        try:
            frame = ServerFrame.FromString(data)
        except DecodeError:
            self.drop("the edge sent a frame that cannot be decoded")
            return
        if self._drop_reason:
            return
        wanted = self._session.receive(frame)
        if frame.HasField("connected"):
            self.state = "connected"
            self._ever_connected = True
        self._perform(wanted, len(data))

    async def _write(self, socket: EdgeSocket) -> None:
        """Writes queued frames in order; waits while the socket takes no more."""
        while True:
            await self._has_output.wait()
            self._has_output.clear()
            while self._outbox:
                await socket.send(self._outbox.popleft().SerializeToString())

    async def _end_pauses(self) -> None:
        """Resumes sending after each pause."""
        while True:
            await self._has_pause.wait()
            self._has_pause.clear()
            while (wait_s := self._paused_until - self._clock.monotonic()) > 0:
                await self._clock.sleep(wait_s)
            self._perform(self._session.resume_sending(), 0)

    def _present_token(self, token: str) -> None:
        for frame in self._session.refresh_token(token):
            self.send(frame)

    async def _beat(self, socket: EdgeSocket) -> None:
        """Pings a silent connection, and drops a dead one."""
        while True:
            now = self._clock.monotonic()
            # While nothing is read, silence means nothing; the edge limits how long that may last.
            heard_at = socket.heard_at if self._is_reading else now
            connected = self._session.connected
            interval_s = self._session.heartbeat_s if connected else self._settings.attempt_timeout_s / 2
            action, wait_s = next_heartbeat(
                now, heard_at, self._pinged_at, interval_s or _DEFAULT_HEARTBEAT_S
            )
            if action is HeartbeatAction.DROP:
                self.drop("the edge was silent for too long")
                return
            if action is HeartbeatAction.PING:
                self._pinged_at = now
                if connected:
                    self.send(ClientFrame(ping=PingFrame()))
            await self._clock.sleep(wait_s)
