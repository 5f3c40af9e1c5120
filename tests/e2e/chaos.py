"""Processes that are killed at random moments, and those who talk and listen meanwhile."""

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
    """Two workers, two edges and a router, each of which may be killed and started again."""

    def __init__(self, fleet: Fleet, rng: Random) -> None:
        self.fleet = fleet
        self.rng = rng
        self.edges = [process for process in fleet.processes if process.name == "edge"]
        #: An edge comes back at the address that it had.
        self.addresses = [edge.address for edge in self.edges]
        self.workers: list[Process] = []
        self.deeds: list[str] = []

    async def start_workers(self, count: int = 2) -> None:
        """The workers."""
        for _ in range(count):
            self.workers.append(await asyncio.to_thread(self._start_worker))

    def _start_worker(self) -> Process:
        return self.fleet._add(worker_process(self.fleet.router.address, SCRIPT))

    async def kill_one(self) -> None:
        """Kill one of them, or the router and another one, and start it again, at once or after a while."""
        victims = self.rng.choice(["worker", "worker", "edge", "edge", "router", "router", "router worker"])
        number, pause_s = self.rng.randrange(2), self.rng.choice([0.0, 0.0, 0.3, 0.8])
        self.deeds.append(f"{victims} {number} for {pause_s} s")
        for victim in victims.split():
            process = {"router": self.fleet.router, "worker": self.workers[number]}.get(
                victim, self.edges[number]
            )
            await asyncio.to_thread(process.kill)
        await asyncio.sleep(pause_s)
        for victim in victims.split():
            await getattr(self, f"_{victim}_again")(number)

    async def _router_again(self, _: int) -> None:
        await asyncio.to_thread(self.fleet.start_router)

    async def _edge_again(self, number: int) -> None:
        env = {"TRUNKLINE_EDGE_LISTEN": self.addresses[number]}
        self.edges[number] = await asyncio.to_thread(lambda: self.fleet.start_edge(**env))

    async def _worker_again(self, number: int) -> None:
        self.workers[number] = await asyncio.to_thread(self._start_worker)


@dataclass
class ReplyTranscript:
    """What one who iterates over a client's events has of each reply."""

    text: dict[str, str] = field(default_factory=dict)
    state: dict[str, str] = field(default_factory=dict)
    lost: int = 0

    def take(self, event: object) -> None:
        """An event came."""
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
    """As in JSON."""
    return MessageState.Name(state).removeprefix("MESSAGE_STATE_").lower()


def client(edge: str, user: str, conversation: str) -> Client:
    """A client of the library."""
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
    """One who listens by the library."""
    transcript = ReplyTranscript()
    async with client(edge, user, conversation) as heard:

        async def listen() -> None:
            async for event in heard.events():
                transcript.take(event)

        task = asyncio.create_task(listen())
        yield transcript
    await task


async def ask_and_check(asker: Client, question: str) -> None:
    """Ask, and hold the answer to what it should be, as it came bit by bit and as a whole."""
    shown = ""
    async with (
        asyncio.timeout(ASK_TIMEOUT_S),
        asker.ask(question, timeout_s=ASK_TIMEOUT_S) as reply,
    ):
        async for step in reply:
            shown = text_of(step.message) if isinstance(step, Snapshot) else shown + step.text
        assert reply.state == MESSAGE_STATE_COMPLETE, f"{question}: {state_name(reply.state)} {reply.error}"
        right = answer_to(question)
        assert reply.message is not None
        assert reply.text == right, (
            f"{reply.message.id}: {len(reply.text)} of {len(right)}: {reply.text[-80:]!r}"
        )
        assert shown == reply.text, f"{len(shown)} of {len(reply.text)} were told: {shown[-80:]!r}"


async def stay_connected(chatter: RecordingClient, edges: list[str]) -> None:
    """Connect again, and go on, whenever the connection breaks."""
    chatter.breaks_expected = True
    while True:
        if chatter.closed:
            assert chatter._reader is not None
            chatter._reader.result()
            await chatter.reconnect(edges)
        await asyncio.sleep(0.02)
