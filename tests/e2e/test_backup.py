"""Backups of a running router, and routers whose log is older than their clients know."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.fleet import Fleet, fleet_of
from tests.e2e.grpc_backend import GrpcBackend
from tests.e2e.polling import wait_until
from tests.e2e.recording_client import RecordingClient
from tests.support.patience import patient
from tests.support.processes import environment
from tests.validators.history import Acked, History

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("backup") / "data"


@pytest.fixture(scope="module")
def fleet(data: Path) -> Iterator[Fleet]:
    with fleet_of(data) as started:
        yield started


async def command(data: Path, *words: str) -> str:
    """Run a command of the router on a data folder; returns what it prints."""

    def run() -> str:
        done = subprocess.run(
            [sys.executable, "-m", "trunkline_router", *words],
            env=environment({"TRUNKLINE_DATA_DIR": str(data)}),
            capture_output=True,
            text=True,
            timeout=patient(60),
        )
        assert done.returncode == 0, done
        return done.stdout

    return await asyncio.to_thread(run)


def copy_data(source: Path, target: Path, *, mark: bool) -> None:
    """Copy the files of a stopped router's log; `mark` includes the one that would give the copy away."""
    target.mkdir(exist_ok=True)
    for file in source.glob("trunkline.db*"):
        if not file.name.endswith(("-shm", ".lock")) and (mark or not file.name.endswith(".mark")):
            shutil.copy(file, target / file.name)


def put_back(copy: Path, data: Path) -> None:
    """Put copied files in place without a word, as an operator would."""
    for suffix in ("-wal", "-shm"):
        (data / f"trunkline.db{suffix}").unlink(missing_ok=True)
    for file in copy.iterdir():
        shutil.copy(file, data / file.name)


def acked_ids(history: History) -> set[str]:
    return {event.message_id for event in history.of(Acked)}


async def say_and_wait(client: RecordingClient, *texts: str) -> None:
    for text in texts:
        await client.say(text)
    await wait_until(lambda: not client.unacked, "all messages are acked")


async def flood(client: RecordingClient, stop: asyncio.Event) -> None:
    number = 0
    while not stop.is_set():
        number += 1
        if len(client.unacked) < 50:
            await client.say(f"load {number}")
        await asyncio.sleep(0.001)


async def assert_gap_is_told(fleet: Fleet, client: RecordingClient) -> None:
    """A client with the position of a lost message, and one of a message that was kept, are told."""
    await wait_until(lambda: client.closed, "the edge has closed the client, whose position is lost")
    assert (await client.connect(resume=True))["recovered"] is False


async def test_a_backup_under_load_is_restored_without_hiding_the_gap(
    fleet: Fleet, data: Path, tmp_path: Path
) -> None:
    edge = fleet.edges[0].address
    history = History()
    backup = tmp_path / "backup.db"
    async with (
        RecordingClient(history, "demo/ann", edge, "group:room") as ann,
        RecordingClient(history, "demo/bob", edge, "group:room") as bob,
    ):
        stop = asyncio.Event()
        load = asyncio.create_task(flood(ann, stop))
        await wait_until(lambda: ann.acks > 50, "messages are acked")
        manifest = json.loads(await command(data, "backup", str(backup), "--json"))
        assert manifest["messages"] > 50
        acks = ann.acks
        await wait_until(lambda: ann.acks > acks + 50, "messages are acked after the backup")
        stop.set()
        await load
        await wait_until(lambda: not ann.unacked, "all messages are acked")
        await wait_until(lambda: bob.seq() == ann.seq(), "bob has received them")
        lost_seq = ann.seq()
        await asyncio.to_thread(fleet.router.kill)
        told = await command(data, "restore", str(backup))
        assert "Restored" in told
        await asyncio.to_thread(fleet.start_router)
        await asyncio.gather(*(assert_gap_is_told(fleet, each) for each in (ann, bob)))
        before = acked_ids(history)
        assert len(before) == lost_seq
        with GrpcBackend(fleet.router.address) as backend:
            kept = {message.id for message in backend.messages(ann.home)}
            assert len(kept) == manifest["messages"]
            assert kept <= before
            # Beyond the positions that were lost: none of them is valid again.
            sent = [backend.broadcast(ann.home, f"new {n}") for n in range(lost_seq - len(kept) + 20)]
            assert not {each.message_id for each in sent} & before
        await wait_until(lambda: bob.seq() == sent[-1].position.seq, "bob hears what is new")
        for client in (ann, bob):
            await client.leave()
            assert (await client.connect(resume=True))["recovered"] is True
    fleet.assert_no_tracebacks()


async def test_an_older_file_put_back_by_hand_is_noticed(fleet: Fleet, data: Path, tmp_path: Path) -> None:
    edge = fleet.edges[0].address
    history = History()
    async with RecordingClient(history, "demo/ann", edge, "group:older") as ann:
        await say_and_wait(ann, "kept 1", "kept 2")
        await asyncio.to_thread(fleet.router.terminate)
        copy_data(data, tmp_path / "copy", mark=False)
        await asyncio.to_thread(fleet.start_router)
        await say_and_wait(ann, "lost 1", "lost 2")
        await asyncio.to_thread(fleet.router.kill)
        put_back(tmp_path / "copy", data)
        router = await asyncio.to_thread(fleet.start_router)
        await assert_gap_is_told(fleet, ann)
        assert "has lost commits" in router.stderr
        before = acked_ids(history)
        await say_and_wait(ann, "new 1", "new 2", "new 3")
        assert len(acked_ids(history)) == len(before) + 3
    fleet.assert_no_tracebacks()


async def test_a_whole_folder_put_back_is_noticed_by_what_clients_have_seen(
    fleet: Fleet, data: Path, tmp_path: Path
) -> None:
    edge = fleet.edges[0].address
    history = History()
    async with (
        RecordingClient(history, "demo/ann", edge, "group:folder") as ann,
        RecordingClient(history, "demo/bob", edge, "group:other") as bob,
    ):
        await say_and_wait(ann, "kept 1", "kept 2")
        await say_and_wait(bob, "kept 1", "kept 2")
        await asyncio.to_thread(fleet.router.terminate)
        copy_data(data, tmp_path / "copy", mark=True)
        await asyncio.to_thread(fleet.start_router)
        await say_and_wait(ann, "lost 1", "lost 2")
        await say_and_wait(bob, "lost 1", "lost 2")
        await bob.leave()
        await asyncio.to_thread(fleet.router.kill)
        put_back(tmp_path / "copy", data)
        router = await asyncio.to_thread(fleet.start_router)
        await assert_gap_is_told(fleet, ann)
        assert (await bob.connect(resume=True))["recovered"] is False
        await wait_until(lambda: router.stderr.count("has lost entries") == 2, "both logs are forked")
        assert '"seen_by": "an edge"' in router.stderr
        assert '"seen_by": "a client"' in router.stderr
        before = acked_ids(history)
        for client in (ann, bob):
            await say_and_wait(client, "new 1", "new 2", "new 3")
        assert len(acked_ids(history)) == len(before) + 6
        await asyncio.to_thread(fleet.router.terminate)
        router = await asyncio.to_thread(fleet.start_router)
        await wait_until(lambda: "has lost commits" in router.stderr, "all logs are forked by the next start")
    fleet.assert_no_tracebacks()


async def test_a_damaged_message_is_an_error_to_its_readers_only(fleet: Fleet, data: Path) -> None:
    edge = fleet.edges[0].address
    async with RecordingClient(History(), "demo/ann", edge, "group:damaged") as ann:
        await say_and_wait(ann, "one", "two", "three")
        _, place = ann.positions[ann.home]
        await asyncio.to_thread(fleet.router.terminate)
        with closing(sqlite3.connect(data / "trunkline.db")) as db:
            db.execute("UPDATE messages SET body = replace(body, 'two', 'owt') WHERE instr(body, 'two')")
            db.commit()
        router = await asyncio.to_thread(fleet.start_router)
        await say_and_wait(ann, "four")
        await ann.send({"type": "history", "id": "h", "limit": 9})
        error = await ann.next("error")
        assert (error["id"], error["code"], error.get("retryable", False)) == ("h", "DATA_DAMAGED", False)
        await ann.send({"type": "history", "id": "h", "after": {"epoch": place.epoch, "seq": 2}})
        assert len((await ann.next("history", id="h"))["messages"]) == 2
        assert router.stderr.count("a stored entry is damaged") == 1
    fleet.assert_no_tracebacks()
