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

    async def talk(self, chatter: RecordingClient, enough: asyncio.Event) -> None:
        """Send messages until the quota is reached or the connection ends."""
        with suppress(ConnectionClosed):
            await self._talk(chatter, enough)

    async def _talk(self, chatter: RecordingClient, enough: asyncio.Event) -> None:
        while not enough.is_set() and not chatter.closed:
            await chatter.say(f"{chatter.user} says {chatter.acks}")
            await wait_until(
                lambda: not chatter.unacked or chatter.closed,
                f"{chatter.name} is answered",
                timeout_s=patient(40),
            )
            await asyncio.sleep(self.rng.uniform(*PAUSE_S))


async def all_are_told(chatters: list[RecordingClient]) -> None:
    """Wait until connections are closed because their tokens were revoked."""
    await wait_until(lambda: all(chatter.closed for chatter in chatters), "all of them are closed")
    ends = {(c.closed.code, c.closed.reason) for c in chatters if c.closed is not None}
    assert ends == {TOKEN_REVOKED}


async def test_changes_to_other_tokens_do_not_affect_valid_connections(tmp_path: Path) -> None:
    with fleet_of(tmp_path, edges=2) as fleet:
        crowd = Crowd(fleet.edges)
        with OperatorClient(fleet.router.address, fleet.operator_key) as operator:
            operator.create(TENANT, client_auth=client_auth([crowd.stays, crowd.old]))
            wait_until_known(TENANT, *fleet.edges)
            for some in range(0, len(crowd.all), 25):
                answers = await asyncio.gather(*(c.connect() for c in crowd.all[some : some + 25]))
                assert {answer["type"] for answer in answers} == {"connected"}
            enough = asyncio.Event()
            talks = [asyncio.create_task(crowd.talk(chatter, enough)) for chatter in crowd.all]
            await _change_everything(crowd, operator)
            # Revoke before the edges report their connections to the restarted router.
            for edge in fleet.edges:
                edge.signal(signal.SIGSTOP)
            await fleet.restart_router()
            for chatter in crowd.second:
                operator.revoke(TENANT, user=chatter.user)
            for chatter in crowd.third:
                operator.revoke(TENANT, token_id=chatter.user)
            for edge in fleet.edges:
                edge.signal(signal.SIGCONT)
            await all_are_told([*crowd.second, *crowd.third])
            acked = {chatter.name: chatter.acks for chatter in crowd.lasting}
            await wait_until(
                lambda: all(chatter.acks > acked[chatter.name] for chatter in crowd.lasting),
                "all good ones go on",
                timeout_s=patient(40),
            )
            enough.set()
            await asyncio.gather(*talks)
            await _all_is_well(crowd, operator)


async def _change_everything(crowd: Crowd, operator: OperatorClient) -> None:
    await wait_until(
        lambda: all(chatter.acks for chatter in crowd.all), "every client has an ack", timeout_s=patient(40)
    )
    operator.update(TENANT, client_auth=client_auth([crowd.stays, crowd.old, crowd.new]))
    await asyncio.gather(*(_renew(chatter, crowd.new) for chatter in crowd.renewed))
    for number in range(10):
        operator.update(TENANT, limits={"connections": 1000 + number}, pipelines=[f"p{number}"])
    operator.update(TENANT, client_auth=client_auth([crowd.stays, crowd.new]))
    await all_are_told(crowd.left)
    for chatter in crowd.first:
        assert operator.revoke(TENANT, user=chatter.user) == 1
    await all_are_told(crowd.first)


async def _renew(chatter: RecordingClient, signer: Signer) -> None:
    """Refresh with a token by a key that the edge learns of within a second."""
    for number in range(40):
        ident = f"renew-{number}"
        await chatter.send({"type": "auth", "id": ident, "token": signer.token(chatter.user)})
        await wait_until(lambda: any(f.get("id") == ident for f in chatter.inbox), "it is answered")  # noqa: B023
        if any((f.get("id"), f["type"]) == (ident, "authorized") for f in chatter.inbox):
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{chatter.name} could not renew its token")


async def _all_is_well(crowd: Crowd, operator: OperatorClient) -> None:
    homes = {chatter.home for chatter in crowd.all}
    ends = {home: operator.messages(home)[-1].position.seq for home in homes}
    await wait_until(
        lambda: all(c.seq() >= ends[c.home] for c in crowd.lasting), "all good ones hear everything"
    )
    assert [(c.name, c.closed) for c in crowd.lasting if c.closed] == []
    assert not any(chatter.unacked for chatter in crowd.lasting)
    crowd.history.open_sessions |= {chatter.session for chatter in crowd.lasting}
    operator.history = crowd.history
    operator.read_logs(*homes)
    assert_promises(crowd.history)
    assert operator.count(TENANT)[0] == len(crowd.lasting)
    for chatter in crowd.lasting:
        await chatter.leave()
