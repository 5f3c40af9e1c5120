"""A log moves from SQLite to PostgreSQL and back between two starts of its router."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.fleet import fleet_of
from tests.e2e.polling import wait_until
from tests.e2e.promise_checks import assert_promises_kept, wait_until_caught_up
from tests.e2e.recording_client import RecordingClient
from tests.support.patience import patient
from tests.support.processes import environment
from tests.validators.history import History

pytestmark = [pytest.mark.long]


async def command(*words: object, **env: str) -> None:
    """Run a command of the router."""

    def run() -> None:
        done = subprocess.run(
            [sys.executable, "-m", "trunkline_router", *map(str, words)],
            env=environment(env),
            capture_output=True,
            text=True,
            timeout=patient(60),
        )
        assert done.returncode == 0, done

    await asyncio.to_thread(run)


async def test_clients_resume_on_the_copy_and_retries_get_their_first_answer(
    tmp_path: Path, postgres_schema: str
) -> None:
    history = History()
    with fleet_of(tmp_path / "data") as fleet:
        edge = fleet.edges[0].address
        async with (
            RecordingClient(history, "demo/ann", edge, "group:moved") as ann,
            RecordingClient(history, "demo/bob", edge, "group:moved") as bob,
        ):
            moves = [
                (tmp_path / "data", postgres_schema, {"TRUNKLINE_DATABASE_URL": postgres_schema}),
                (postgres_schema, tmp_path / "back", {"TRUNKLINE_DATA_DIR": str(tmp_path / "back")}),
            ]
            for number, (source, target, settings) in enumerate(moves):
                first = await ann.say("before", f"keyed-{number}")
                answer = await ann.next("ack", id=first)
                await bob.next("message")
                await bob.leave()
                await ann.say("missed")
                await wait_until(lambda: not ann.unacked, "all messages are acked")
                await asyncio.to_thread(fleet.router.terminate)
                await command("migrate", "--from", source, "--to", target)
                await asyncio.to_thread(lambda settings=settings: fleet.start_router(**settings))
                assert (await bob.connect(resume=True))["recovered"] is True
                await ann.send(
                    {"type": "message", "id": first, "parts": [{"type": "text", "text": "before"}]}
                )
                again = await ann.next("ack", id=first)
                assert again["message_id"] == answer["message_id"]
            await ann.say("live again")
            await wait_until_caught_up(fleet, [ann, bob])
            assert_promises_kept(fleet, history, [ann, bob])
            # The database now is as if restored to the time of the second move.
            await bob.leave()
            await asyncio.to_thread(fleet.router.terminate)
            settings = {"TRUNKLINE_DATABASE_URL": postgres_schema}
            await command("restored", **settings)
            await asyncio.to_thread(lambda: fleet.start_router(**settings))
            assert (await bob.connect(resume=True))["recovered"] is False
            await bob.leave()
