"""Key rotation, revocation, policy changes and a killed router, while 200 clients send messages.

Clients with valid tokens are unaffected and lose no acked message; all others are closed with the reason.
"""

from __future__ import annotations

import asyncio
import random
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

from websockets.exceptions import ConnectionClosed

from tests.e2e.fleet import fleet_of
from tests.e2e.operator_client import OperatorClient, client_auth, wait_until_known
from tests.e2e.polling import wait_until
from tests.e2e.recording_client import RecordingClient
from tests.support.patience import patient
from tests.support.signing import Signer
from tests.validators.history import History
from tests.validators.promises import assert_promises

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.processes import Process

TENANT = "acme"
GROUPS = 20
#: Pause of a client after each ack.
PAUSE_S = (0.5, 1.5)
TOKEN_REVOKED = (4502, "TOKEN_REVOKED")


class Crowd:
    """Clients, by what happens to their tokens."""

    def __init__(self, edges: list[Process]) -> None:
        self.history = History()
        self.edges = edges
        self.rng = random.Random(5)
        self.stays, self.old, self.new = (Signer(TENANT, kid) for kid in ("stays", "old", "new"))
        #: Valid throughout.
        self.good = self._made("good", 110, self.stays)
        #: Signed with the old key, refreshed with the new one.
        self.renewed = self._made("renewed", 30, self.old)
        #: Signed with the old key, never refreshed.
        self.left = self._made("left", 20, self.old)
        #: Revoked by user: during normal operation, and before the edges have relinked.
        self.first = self._made("first", 15, self.stays)
        self.second = self._made("second", 15, self.stays)
        #: Revoked by token id.
        self.third = self._made("third", 10, self.stays)
        self.all = [*self.good, *self.renewed, *self.left, *self.first, *self.second, *self.third]
        self.lasting = [*self.good, *self.renewed]

    def _made(self, kind: str, count: int, signer: Signer) -> list[RecordingClient]:
        return [self._member(f"{kind}-{number}", number, signer) for number in range(count)]

    def _member(self, user: str, number: int, signer: Signer) -> RecordingClient:
        headers = {"Authorization": f"Bearer {signer.token(user, jti=user)}"}
        edge = self.edges[number % len(self.edges)]
        group = f"group:{number % GROUPS}"
        return RecordingClient(
            self.history,
            f"{TENANT}/{user}",
            edge.address,
            group,
            additional_headers=headers,
            open_timeout=patient(30),
        )

    async def talk(self, recorder: RecordingClient, enough: asyncio.Event) -> None:
        """Send messages until the quota is reached or the connection ends."""
        with suppress(ConnectionClosed):
            await self._talk(recorder, enough)

    async def _talk(self, recorder: RecordingClient, enough: asyncio.Event) -> None:
        while not enough.is_set() and not recorder.closed:
            await recorder.say(f"{recorder.user} says {recorder.acks}")
            await wait_until(
                lambda: not recorder.unacked or recorder.closed,
                f"{recorder.name} is answered",
                timeout_s=patient(40),
            )
            await asyncio.sleep(self.rng.uniform(*PAUSE_S))


async def wait_until_revoked(recorders: list[RecordingClient]) -> None:
    """Wait until connections are closed because their tokens were revoked."""
    await wait_until(lambda: all(recorder.closed for recorder in recorders), "all of them are closed")
    ends = {(c.closed.code, c.closed.reason) for c in recorders if c.closed is not None}
    assert ends == {TOKEN_REVOKED}


async def test_changes_to_other_tokens_do_not_affect_valid_connections(tmp_path: Path) -> None:
    with fleet_of(tmp_path, edges=2) as fleet:
        crowd = Crowd(fleet.edges)
        with OperatorClient(fleet.router.address, fleet.operator_key, fleet.edges) as operator:
            operator.create(TENANT, client_auth=client_auth([crowd.stays, crowd.old]))
            wait_until_known(TENANT, *fleet.edges)
            for some in range(0, len(crowd.all), 25):
                answers = await asyncio.gather(*(c.connect() for c in crowd.all[some : some + 25]))
                assert {answer["type"] for answer in answers} == {"connected"}
            enough = asyncio.Event()
            talks = [asyncio.create_task(crowd.talk(recorder, enough)) for recorder in crowd.all]
            await _change_keys_and_tokens(crowd, operator)
            # Revoke before the edges report their connections to the restarted router.
            for edge in fleet.edges:
                edge.signal(signal.SIGSTOP)
            await fleet.restart_router()
            for recorder in crowd.second:
                operator.revoke(TENANT, user=recorder.user)
            for recorder in crowd.third:
                operator.revoke(TENANT, token_id=recorder.user)
            for edge in fleet.edges:
                edge.signal(signal.SIGCONT)
            await wait_until_revoked([*crowd.second, *crowd.third])
            acked = {recorder.name: recorder.acks for recorder in crowd.lasting}
            await wait_until(
                lambda: all(recorder.acks > acked[recorder.name] for recorder in crowd.lasting),
                "all good ones go on",
                timeout_s=patient(40),
            )
            enough.set()
            await asyncio.gather(*talks)
            await _assert_unaffected(crowd, operator)


async def _change_keys_and_tokens(crowd: Crowd, operator: OperatorClient) -> None:
    await wait_until(
        lambda: all(recorder.acks for recorder in crowd.all), "every client has an ack", timeout_s=patient(40)
    )
    operator.update(TENANT, client_auth=client_auth([crowd.stays, crowd.old, crowd.new]))
    await asyncio.gather(*(_refresh(recorder, crowd.new) for recorder in crowd.renewed))
    for number in range(10):
        operator.update(TENANT, limits={"connections": 1000 + number}, pipelines=[f"p{number}"])
    operator.update(TENANT, client_auth=client_auth([crowd.stays, crowd.new]))
    await wait_until_revoked(crowd.left)
    for recorder in crowd.first:
        assert operator.revoke(TENANT, user=recorder.user) == 1
    await wait_until_revoked(crowd.first)


async def _refresh(recorder: RecordingClient, signer: Signer) -> None:
    """Refresh with a token by a key that the edge learns of within a second."""
    for number in range(40):
        ident = f"renew-{number}"
        await recorder.send({"type": "auth", "id": ident, "token": signer.token(recorder.user)})
        await wait_until(lambda: any(f.get("id") == ident for f in recorder.inbox), "it is answered")  # noqa: B023
        if any((f.get("id"), f["type"]) == (ident, "authorized") for f in recorder.inbox):
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{recorder.name} could not renew its token")


async def _assert_unaffected(crowd: Crowd, operator: OperatorClient) -> None:
    homes = {recorder.home for recorder in crowd.all}
    ends = {home: operator.messages(home)[-1].position.seq for home in homes}
    await wait_until(
        lambda: all(c.seq() >= ends[c.home] for c in crowd.lasting), "all good ones hear everything"
    )
    assert [(c.name, c.closed) for c in crowd.lasting if c.closed] == []
    assert not any(recorder.unacked for recorder in crowd.lasting)
    crowd.history.open_sessions |= {recorder.session for recorder in crowd.lasting}
    operator.history = crowd.history
    operator.read_logs(*homes)
    assert_promises(crowd.history)
    assert operator.count(TENANT)[0] == len(crowd.lasting)
    for recorder in crowd.lasting:
        await recorder.leave()
