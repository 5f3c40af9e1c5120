"""TCP proxy that tests put between two processes, to cut, refuse, stall and delay their connections.

    with FaultProxy(f"127.0.0.1:{server.port}") as proxy:
        dsn = server.dsn(schema, address=proxy.address)
        proxy.stall("to_client")  # requests arrive, answers do not
        proxy.resume()

The proxy runs in a thread of its own: it goes on while a test blocks, and every method may be called from any
thread. Methods return once their effect holds for all connections.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, Self

from tests.support.patience import patient

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

Direction = Literal["to_server", "to_client"]
CALL_TIMEOUT_S = patient(10)
#: Read at a time, from one side.
CHUNK_BYTES = 1 << 16
#: Chunks that wait in one direction of a connection; when full, the sender's socket is not read.
MAX_CHUNKS = 64
#: SO_LINGER with a timeout of 0: closing resets the connection.
RESET = struct.pack("ii", 1, 0)

#: What one side has sent, with the time to forward it; empty bytes end it.
_Chunks = asyncio.Queue[tuple[float, bytes]]


class FaultProxy:
    """Forwards connections to a server, `host:port`, and injects faults."""

    def __init__(self, server: str) -> None:
        self.redirect(server)
        #: Connections accepted so far.
        self.accepted = 0
        self._port = 0
        self._listener: asyncio.Server | None = None
        self._connections: set[_Connection] = set()
        self._directions: dict[Direction, _Direction] = {}
        self._fatal_request = b""
        self._forwards_fatal_request = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault proxy", daemon=True)

    @property
    def address(self) -> str:
        """`host:port` where the proxy listens; `refuse` and `accept` keep it."""
        return f"127.0.0.1:{self._port}"

    @property
    def connections(self) -> int:
        """Number of open connections."""
        return len(self._connections)

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._add_directions)
        self.accept()
        return self

    def __exit__(self, *exception: object) -> None:
        self.refuse()
        self._run(self._end_tasks())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CALL_TIMEOUT_S)
        self._loop.close()

    def accept(self) -> None:
        """Accept connections again after `refuse`."""
        if self._listener is None:
            self._listener = self._run(asyncio.start_server(self._accepted, "127.0.0.1", self._port))
            self._port = self._listener.sockets[0].getsockname()[1]

    def refuse(self) -> None:
        """Cut all connections and refuse new ones."""
        if self._listener is not None:
            self._call(self._listener.close)
            self._listener = None
        self.cut()

    def redirect(self, server: str) -> None:
        """Forward new connections to another server; open ones stay."""
        host, _, port = server.rpartition(":")
        self._server = (host, int(port))

    def cut(self) -> None:
        """Reset all open connections; data under way is lost."""
        self._call(lambda: [connection.cut() for connection in list(self._connections)])

    def stall(self, *directions: Direction) -> None:
        """Forward nothing, by default in both directions; open and new connections stay open."""
        self._each(directions, lambda direction: direction.flows.clear())

    def resume(self) -> None:
        """Forward again, beginning with what has arrived since `stall`."""
        self._each((), lambda direction: direction.flows.set())

    def delay(self, seconds: float, *directions: Direction) -> None:
        """Forward everything later, by default in both directions; 0 ends the delay."""
        self._each(directions, lambda direction: setattr(direction, "delay_s", seconds))

    def cut_at_request(self, request: bytes, *, forward: bool) -> None:
        """Cut the next connection whose client sends `request`, in one piece.

        If `forward`, the server gets the request, and the answer is dropped: the client cannot know the
        outcome. Otherwise the server never gets it.
        """
        self._fatal_request, self._forwards_fatal_request = request, forward

    @property
    def awaits_request(self) -> bool:
        """Whether `cut_at_request` has not cut a connection yet."""
        return bool(self._fatal_request)

    async def _accepted(self, *client: Any) -> None:
        self.accepted += 1
        connection = _Connection(self, client)
        self._connections.add(connection)
        try:
            # Cancelled at the end: asyncio would report it.
            with suppress(OSError, asyncio.CancelledError):
                await connection.run(*self._server, self._directions)
        finally:
            connection.cut()
            self._connections.discard(connection)

    def _is_fatal(self, data: bytes) -> bool:
        """Whether a client's data contains the request to cut at; only the first does."""
        if not self._fatal_request or self._fatal_request not in data:
            return False
        self._fatal_request = b""
        return True

    async def _end_tasks(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _add_directions(self) -> None:
        self._directions = {"to_server": _Direction(), "to_client": _Direction()}

    def _each(self, names: tuple[Direction, ...], act: Callable[[_Direction], object]) -> None:
        self._call(lambda: [act(self._directions[name]) for name in names or self._directions])

    def _call(self, function: Callable[[], object]) -> None:
        async def call() -> None:
            function()

        self._run(call())

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(CALL_TIMEOUT_S)


class _Direction:
    """One direction of all connections."""

    def __init__(self) -> None:
        self.delay_s = 0.0
        #: Set unless the direction is stalled.
        self.flows = asyncio.Event()
        self.flows.set()


class _Connection:
    """A client's connection and its counterpart to the server."""

    def __init__(self, proxy: FaultProxy, client: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
        self._proxy = proxy
        self._client = client
        self._writers = [client[1]]
        #: The client has sent the request to cut at; the answer is dropped.
        self._drops_answer = False

    async def run(self, host: str, port: int, directions: dict[Direction, _Direction]) -> None:
        """Forward until both sides have ended.

        Raises:
            OSError: one side has reset the connection, or `cut` did.
        """
        server = await asyncio.open_connection(host, port)
        self._writers.append(server[1])
        to_server, to_client = _Chunks(MAX_CHUNKS), _Chunks(MAX_CHUNKS)
        pumps = [
            self._receive_requests(self._client[0], to_server, directions["to_server"]),
            self._send(to_server, server[1], directions["to_server"]),
            self._receive_answers(server[0], to_client, directions["to_client"]),
            self._send(to_client, self._client[1], directions["to_client"]),
        ]
        tasks = [asyncio.create_task(pump) for pump in pumps]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def cut(self) -> None:
        """Reset both sides."""
        for writer in self._writers:
            with suppress(OSError):
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            writer.transport.abort()

    async def _receive_requests(
        self, reader: asyncio.StreamReader, chunks: _Chunks, direction: _Direction
    ) -> None:
        data = b"-"
        while data:
            data = await reader.read(CHUNK_BYTES)
            if self._proxy._is_fatal(data):
                if not self._proxy._forwards_fatal_request:
                    raise ConnectionResetError
                self._drops_answer = True
            await chunks.put((_now_s() + direction.delay_s, data))

    async def _receive_answers(
        self, reader: asyncio.StreamReader, chunks: _Chunks, direction: _Direction
    ) -> None:
        data = b"-"
        while data:
            data = await reader.read(CHUNK_BYTES)
            if self._drops_answer:
                raise ConnectionResetError
            await chunks.put((_now_s() + direction.delay_s, data))

    async def _send(self, chunks: _Chunks, writer: asyncio.StreamWriter, direction: _Direction) -> None:
        data = b"-"
        while data:
            due_s, data = await chunks.get()
            await asyncio.sleep(due_s - _now_s())
            await direction.flows.wait()
            if data:
                writer.write(data)
                await writer.drain()
            else:
                writer.write_eof()


def _now_s() -> float:
    return asyncio.get_running_loop().time()
