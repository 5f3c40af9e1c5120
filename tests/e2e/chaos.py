"""Fault injection: kills processes at random moments while clients send and listen."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from trunkline.v1.message_pb2 import MESSAGE_STATE_COMPLETE, Message, MessageState
from trunkline_client import Client, ClientSettings, Delta, MessageChanged, MessagesLost, Snapshot, text_of

from tests.e2e.chaos_worker_script import answer_to
from tests.support.patience import patient
from tests.support.processes import worker_process

if TYPE_CHECKING:
    from random import Random

    from tests.e2e.fleet import Fleet
    from tests.e2e.recording_client import RecordingClient
    from tests.support.processes import Process

SCRIPT = Path(__file__).with_name("chaos_worker_script.py")
SETTINGS = ClientSettings(open_timeout_s=patient(20), backoff_cap_s=0.5)
ASK_TIMEOUT_S = patient(20)


class FaultInjector:
    """Kills and restarts two workers, two edges and a router."""

    def __init__(self, fleet: Fleet, rng: Random) -> None:
        self.fleet = fleet
        self.rng = rng
        self.edges = [process for process in fleet.processes if process.name == "edge"]
        #: A restarted edge keeps its address.
        self.addresses = [edge.address for edge in self.edges]
        self.workers: list[Process] = []
        self.faults: list[str] = []

    async def start_workers(self, count: int = 2) -> None:
        """Start the workers."""
        for _ in range(count):
            self.workers.append(await asyncio.to_thread(self._start_worker))

    def _start_worker(self) -> Process:
        return self.fleet._add(worker_process(self.fleet.router.address, SCRIPT))

    async def kill_one(self) -> None:
        """Kill a random process, or the router and a worker, and restart it, at once or after a pause."""
        victims = self.rng.choice(["worker", "worker", "edge", "edge", "router", "router", "router worker"])
        number, pause_s = self.rng.randrange(2), self.rng.choice([0.0, 0.0, 0.3, 0.8])
        self.faults.append(f"{victims} {number} for {pause_s} s")
        for victim in victims.split():
            process = {"router": self.fleet.router, "worker": self.workers[number]}.get(
                victim, self.edges[number]
            )
            await asyncio.to_thread(process.kill)
        await asyncio.sleep(pause_s)
        for victim in victims.split():
            await getattr(self, f"_{victim}_restart")(number)

    async def _router_restart(self, _: int) -> None:
        await asyncio.to_thread(self.fleet.start_router)

    async def _edge_restart(self, number: int) -> None:
        env = {"TRUNKLINE_EDGE_LISTEN": self.addresses[number]}
        self.edges[number] = await asyncio.to_thread(lambda: self.fleet.start_edge(**env))

    async def _worker_restart(self, number: int) -> None:
        self.workers[number] = await asyncio.to_thread(self._start_worker)


@dataclass
class ReplyTranscript:
    """Text and state of each reply, as seen by a consumer of a client's events."""

    text: dict[str, str] = field(default_factory=dict)
    state: dict[str, str] = field(default_factory=dict)
    lost: int = 0

    def take(self, event: object) -> None:
        """Apply an event."""
        match event:
            case Message() if event.reply_to:
                self._put(event)
            case Snapshot(message) if message.reply_to:
                self._put(message)
            case Delta() as delta:
                self.text[delta.message.id] += delta.text
            case MessageChanged(change, message):
                self.state[change.message_id] = state_name(change.state)
                if message is not None and change.HasField("message"):
                    self._put(message)
            case MessagesLost():
                self.lost += 1

    def _put(self, message: Message) -> None:
        self.text[message.id], self.state[message.id] = text_of(message), state_name(message.state)


def state_name(state: MessageState.ValueType) -> str:
    """Return the name of a state as in the JSON encoding."""
    return MessageState.Name(state).removeprefix("MESSAGE_STATE_").lower()


def client(edge: str, user: str, conversation: str) -> Client:
    """Create a client of the client library."""
    return Client(
        f"ws://{edge}",
        tenant="demo",
        agent="echo",
        platform="web",
        conversation=conversation,
        user=user,
        settings=SETTINGS,
    )


@contextlib.asynccontextmanager
async def transcribing_client(edge: str, user: str, conversation: str):  # type: ignore[no-untyped-def]
    """Connect a library client and yield the transcript of its replies."""
    transcript = ReplyTranscript()
    async with client(edge, user, conversation) as listener:

        async def listen() -> None:
            async for event in listener.events():
                transcript.take(event)

        task = asyncio.create_task(listen())
        yield transcript
    await task


async def ask_and_check(asker: Client, question: str) -> None:
    """Ask a question and check its answer, both the streamed deltas and the final text."""
    streamed = ""
    async with (
        asyncio.timeout(ASK_TIMEOUT_S),
        asker.ask(question, timeout_s=ASK_TIMEOUT_S) as reply,
    ):
        async for step in reply:
            streamed = text_of(step.message) if isinstance(step, Snapshot) else streamed + step.text
        assert reply.state == MESSAGE_STATE_COMPLETE, f"{question}: {state_name(reply.state)} {reply.error}"
        expected = answer_to(question)
        assert reply.message is not None
        assert reply.text == expected, (
            f"{reply.message.id}: {len(reply.text)} of {len(expected)}: {reply.text[-80:]!r}"
        )
        assert streamed == reply.text, f"{len(streamed)} of {len(reply.text)} streamed: {streamed[-80:]!r}"


async def stay_connected(recorder: RecordingClient, edges: list[str]) -> None:
    """Reconnect and resume whenever the connection breaks."""
    recorder.breaks_expected = True
    while True:
        if recorder.closed:
            assert recorder._reader is not None
            recorder._reader.result()
            await recorder.reconnect(edges)
        await asyncio.sleep(0.02)
