"""Erasure of history: by retention, by erasing a user, by deleting a tenant, without remains."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING

import grpc
import pytest
from trunkline.v1.broadcast_service_pb2 import BroadcastManyRequest, BroadcastRequest, NumberedBroadcast
from trunkline.v1.history_service_pb2 import ListReceiptsRequest
from trunkline.v1.message_pb2 import MESSAGE_STATE_RECALLED, ROLE_USER, Author, Part, TextPart
from trunkline.v1.tenant_pb2 import OPENNESS_LOOPBACK, TENANT_STATE_DELETING
from trunkline.v1.tenant_service_pb2 import DeleteTenantRequest, ListApiKeysRequest, ListRevocationsRequest

from tests.e2e.fleet import Fleet, fleet_of
from tests.e2e.grpc_backend import TIMEOUT_S, GrpcBackend, address, reason_of
from tests.e2e.langbot_client import pipeline_worker
from tests.e2e.operator_client import OperatorClient, client_auth, wait_until_known
from tests.e2e.polling import wait_until
from tests.e2e.recording_client import RecordingClient, frame_text
from tests.support.patience import patient
from tests.validators.history import History

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.processes import Process

ROOM = "echo/web/group:team"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("histories")


@pytest.fixture(scope="module")
def fleet(data: Path) -> Iterator[Fleet]:
    with fleet_of(data) as started:
        yield started


def all_rows(data: Path) -> dict[str, list[tuple[object, ...]]]:
    """Return all rows of the log file, by table, without the audit trail, which outlives what it names."""
    with closing(sqlite3.connect(f"file:{data}/trunkline.db?mode=ro", uri=True)) as db:
        names = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        names.remove("audit")
        return {name: db.execute(f"SELECT * FROM {name}").fetchall() for name in names}


def tables_containing(data: Path, *words: str) -> list[str]:
    """Return the tables that contain any of these words, also within serialized values."""
    sought = [word.encode() for word in words]

    def holds(value: object) -> bool:
        content = value if isinstance(value, bytes) else str(value).encode()
        return any(word in content for word in sought)

    return [name for name, found in all_rows(data).items() if any(holds(v) for row in found for v in row)]


def recorder(edge: Process, tenant: str, user: str, conversation: str = "group:team") -> RecordingClient:
    return RecordingClient(History(), f"{tenant}/{user}", edge.address, conversation)


def send_many(backend: GrpcBackend, topic: str, count: int, text: str) -> None:
    """Send messages as fast as possible, to an agent without workers."""
    author = Author(role=ROLE_USER, user="ann")
    request = BroadcastRequest(address=address(topic), parts=[Part(text=TextPart(text=text))], author=author)
    batches = [
        BroadcastManyRequest(
            requests=[
                NumberedBroadcast(number=n, request=request) for n in range(start, min(start + 500, count))
            ]
        )
        for start in range(0, count, 500)
    ]
    answers = backend.broadcast_stub.BroadcastMany(iter(batches), timeout=patient(40))
    assert sum(len(answer.results) for answer in answers) == count


async def test_history_over_the_limit_is_pruned_while_messages_arrive(
    edge: Process, operator: OperatorClient, data: Path
) -> None:
    operator.create("many", open_to=OPENNESS_LOOPBACK, retention={"max_messages": 40})
    wait_until_known("many", edge)
    topic = f"many/{ROOM}"
    async with recorder(edge, "many", "stays") as stays:
        gone = recorder(edge, "many", "gone")
        await gone.connect()
        await gone.next("ack", id=await gone.say("before"))
        await gone.leave()
        sent = 1
        deadline = time.monotonic() + patient(15)
        while (first := operator.messages(topic)[0].position.seq) < 100:
            assert time.monotonic() < deadline, f"it begins with {first} of {sent}"
            for _ in range(20):
                operator.broadcast(topic, f"word {sent}")
                sent += 1
            await asyncio.sleep(0)
        await wait_until(lambda: len(operator.messages(topic)) == 40, "the newest are left")
        kept = [message.position.seq for message in operator.messages(topic)]
        assert kept == list(range(sent - 39, sent + 1))
        await wait_until(lambda: stays.seq() == sent, "the connected client has received everything")
        heard = [frame["position"]["seq"] for frame in stays.inbox if frame["type"] == "message"]
        assert heard == list(range(1, sent + 1))
        answer = await gone.connect(resume=True)
        assert (answer["type"], answer["recovered"]) == ("connected", False)
        assert not [frame for frame in gone.inbox if frame["type"] == "message"]
        # From its current position a client resumes without a gap.
        await gone.leave()
        operator.broadcast(topic, "after")
        answer = await gone.connect(resume=True)
        assert answer["recovered"]
        assert frame_text(await gone.next("message")) == "after"
        await gone.leave()
    await wait_until(
        lambda: operator.stats("many").messages_erased == sent + 1 - 40, "erased messages are counted"
    )
    topic_id = next(row[0] for row in all_rows(data)["topics"] if row[1] == "many")
    assert len([row for row in all_rows(data)["messages"] if row[0] == topic_id]) == 40


async def test_history_is_also_limited_by_age_and_bytes_and_seqs_continue(operator: OperatorClient) -> None:
    operator.create("young", open_to=OPENNESS_LOOPBACK, retention={"max_age_s": 1})
    operator.create("small", open_to=OPENNESS_LOOPBACK, retention={"max_bytes": 25_000})
    for number in range(5):
        operator.broadcast(f"young/{ROOM}", f"word {number}")
        operator.broadcast(f"small/{ROOM}", f"{number}" * 10_000)
    await wait_until(lambda: len(operator.messages(f"small/{ROOM}")) == 2, "as much as may be is left")
    assert [m.position.seq for m in operator.messages(f"small/{ROOM}")] == [4, 5]
    await wait_until(lambda: not operator.messages(f"young/{ROOM}"), "all is too old")
    assert operator.broadcast(f"young/{ROOM}", "next").position.seq == 6
    assert operator.stats("young").messages_erased == 5
    # New limits also apply to existing messages.
    operator.update("small", retention={"max_messages": 1})
    await wait_until(lambda: len(operator.messages(f"small/{ROOM}")) == 1, "the new limit holds")


async def test_an_erased_user_leaves_no_messages_and_no_receipts(
    edge: Process, operator: OperatorClient, data: Path
) -> None:
    operator.create("erases", open_to=OPENNESS_LOOPBACK)
    wait_until_known("erases", edge)
    async with (
        recorder(edge, "erases", "ann-private") as ann,
        recorder(edge, "erases", "bob") as bob,
        recorder(edge, "erases", "ann-private", "person:ann-private") as alone,
    ):
        early = recorder(edge, "erases", "early")
        await early.connect()
        await early.leave()
        for number in range(3):
            await ann.next("ack", id=await ann.say(f"very private {number}"))
            ack = await bob.next("ack", id=await bob.say(f"bob's {number}"))
        await alone.next("ack", id=await alone.say("very private alone"))
        await ann.send({"type": "read", "position": ack["position"]})
        await bob.next("read")
        operator.broadcast("erases/user:ann-private", "very private, to her")
        assert "messages" in tables_containing(data, "very private")
        erased = operator.erase_user("erases", "ann-private")
        assert (erased.messages, erased.receipts) == (5, 1)
        left = operator.messages(f"erases/{ROOM}")
        assert [m.position.seq for m in left] == [1, 2, 3, 4, 5, 6]
        recalled = [m for m in left if m.state == MESSAGE_STATE_RECALLED]
        assert [m.position.seq for m in recalled] == [1, 3, 5]
        assert not any(m.parts or m.author.user for m in recalled)
        for place in ("echo/web/person:ann-private", "user:ann-private"):
            assert operator.messages(f"erases/{place}") == []
        answer = await early.connect(resume=True)
        assert answer["recovered"]
        await early.next("message", client_id=left[-1].client_id)
        assert "very private" not in str(early.inbox)
        assert "ann-private" not in str(early.inbox)
        await early.leave()
        await bob.send({"type": "history", "id": "h"})
        assert "private" not in str(await bob.next("history", id="h"))
        request = ListReceiptsRequest(address=address(f"erases/{ROOM}"))
        assert list(operator.history_service.ListReceipts(request, timeout=TIMEOUT_S).receipts) == []
        assert operator.stats("erases").messages_erased == 5
        assert operator.erase_user("erases", "ann-private").messages == 0
    await wait_until(
        lambda: not tables_containing(data, "very private", "ann-private"), "nothing is left in the file"
    )


async def test_a_suspended_tenant_is_inactive_and_loses_nothing(
    edge: Process, operator: OperatorClient
) -> None:
    operator.create("rests", open_to=OPENNESS_LOOPBACK)
    wait_until_known("rests", edge)
    ann = recorder(edge, "rests", "ann")
    await ann.connect()
    await ann.next("ack", id=await ann.say("before"))
    operator.suspend("rests")
    await wait_until(lambda: ann.closed, "the connection is closed")
    assert ann.closed is not None
    assert (ann.closed.code, ann.closed.reason) == (4506, "TENANT_SUSPENDED")
    with GrpcBackend(operator.address) as backend:
        for call in (lambda: backend.broadcast(f"rests/{ROOM}", "x"), lambda: backend.stats("rests")):
            with pytest.raises(grpc.RpcError) as refusal:
                call()
            assert reason_of(refusal.value) == "TENANT_SUSPENDED"
            assert refusal.value.code() is grpc.StatusCode.PERMISSION_DENIED
    operator.suspend("rests")
    operator.resume("rests")
    operator.broadcast(f"rests/{ROOM}", "after")
    await ann.reconnect([edge.address])
    assert frame_text(await ann.next("message")) == "after"
    assert [m.position.seq for m in operator.messages(f"rests/{ROOM}")] == [1, 2]
    await ann.leave()


def create_tenant_to_delete(operator: OperatorClient, edge: Process) -> None:
    """A tenant to delete and create again."""
    operator.create("ends", open_to=OPENNESS_LOOPBACK, client_auth=client_auth(secrets=["ends-secret"]))
    wait_until_known("ends", edge)


async def test_a_deleted_tenant_is_erased_and_its_name_can_be_reused(
    fleet: Fleet, edge: Process, operator: OperatorClient, data: Path
) -> None:
    create_tenant_to_delete(operator, edge)
    key = operator.api_key("ends")
    operator.revoke("ends", user="somebody")
    async with recorder(edge, "ends", "ann") as ann:
        async with pipeline_worker(fleet.router, ["other"], lambda _: lambda message: "re", "ends"):
            ack = await ann.next("ack", id=await ann.say("soon to be gone"))
            await ann.send({"type": "read", "position": ack["position"]})
            old = operator.broadcast(f"ends/{ROOM}", "soon to be gone")
            assert operator.delete("ends") == 2
            await wait_until(lambda: ann.closed, "the connection is closed")
            assert ann.closed is not None
            assert (ann.closed.code, ann.closed.reason) == (4504, "UNKNOWN_TENANT")
        with pytest.raises(grpc.RpcError) as refusal:
            operator.stats("ends")
        assert reason_of(refusal.value) == "UNKNOWN_TENANT"
        with (
            GrpcBackend(operator.address, key=key.secret) as backend,
            pytest.raises(grpc.RpcError) as refusal,
        ):
            backend.stats("ends")
        assert reason_of(refusal.value) == "UNAUTHORIZED"
        await wait_until(lambda: not tables_containing(data, "soon to be gone"), "its texts are gone")
        assert not {table for table, found in all_rows(data).items() if any("ends" in row for row in found)}
        create_tenant_to_delete(operator, edge)
        assert operator.stats("ends").messages_committed == 0
        assert operator.messages(f"ends/{ROOM}") == []
        assert list(operator.tenants.ListApiKeys(ListApiKeysRequest(tenant="ends")).api_keys) == []
        assert list(operator.tenants.ListRevocations(ListRevocationsRequest(tenant="ends")).revocations) == []
        answer = await ann.connect(resume=True)
        assert (answer["type"], answer["recovered"]) == ("connected", False)
        ack = await ann.next("ack", id=await ann.say("new"))
        assert ack["position"]["seq"] == 1
        assert ack["position"]["epoch"] != old.position.epoch


async def test_ids_of_a_deleted_tenant_are_new_to_its_successor(
    edge: Process, operator: OperatorClient
) -> None:
    declared = {"open_to": OPENNESS_LOOPBACK}
    operator.create("reborn", **declared)
    wait_until_known("reborn", edge)
    async with recorder(edge, "reborn", "ann") as ann:
        first = await ann.next("ack", id=await ann.say("hello", "same"))
    sent = operator.broadcast(f"reborn/{ROOM}", "hello", "same key")
    operator.delete("reborn")
    operator.create("reborn", **declared)
    wait_until_known("reborn", edge)
    again = operator.broadcast(f"reborn/{ROOM}", "hello", "same key")
    assert again.message_id != sent.message_id
    async with recorder(edge, "reborn", "ann") as ann:
        ack = await ann.next("ack", id=await ann.say("hello", "same"))
        assert ack["message_id"] != first["message_id"]
    assert [message.id for message in operator.messages(f"reborn/{ROOM}")] == [
        again.message_id,
        ack["message_id"],
    ]


async def test_a_deletion_interrupted_by_a_kill_is_finished_after_the_restart(
    fleet: Fleet, edge: Process, operator: OperatorClient, data: Path
) -> None:
    for _ in range(10):
        if kill_while_deleting(fleet, operator, data):
            break
        # The deletion finished before the kill, which cannot be ruled out.
        await asyncio.to_thread(fleet.start_router)
    assert tables_containing(data, "of the large one")
    await asyncio.to_thread(fleet.start_router)
    with pytest.raises(grpc.RpcError) as refusal:
        operator.stats("large")
    assert reason_of(refusal.value) == "UNKNOWN_TENANT"
    await wait_until(lambda: not any(row[0] == "large" for row in rows_of_tenants(data)), "its row is gone")
    await wait_until(lambda: not tables_containing(data, "of the large one"), "its texts are gone")
    operator.create("large", open_to=OPENNESS_LOOPBACK)
    assert operator.messages("large/echo/web/group:1") == []


def kill_while_deleting(fleet: Fleet, operator: OperatorClient, data: Path) -> bool:
    """Kill the router while it deletes the tenant `large`; return False if it had finished."""
    operator.create("large", open_to=OPENNESS_LOOPBACK)
    for number in range(2):
        send_many(operator, f"large/echo/web/group:{number}", 5000, "of the large one")
    deleting = operator.tenants.DeleteTenant.future(DeleteTenantRequest(tenant="large"), timeout=TIMEOUT_S)
    deadline = time.monotonic() + TIMEOUT_S
    # Without a pause: each erasure step takes only some milliseconds.
    while dict(rows_of_tenants(data)).get("large") not in (TENANT_STATE_DELETING, None):
        assert time.monotonic() < deadline
    fleet.router.kill()
    assert deleting.done() or isinstance(deleting.exception(), grpc.RpcError)
    return dict(rows_of_tenants(data)).get("large") == TENANT_STATE_DELETING


def rows_of_tenants(data: Path) -> list[tuple[str, int]]:
    """Return names and states of tenants on disk."""
    with closing(sqlite3.connect(f"file:{data}/trunkline.db?mode=ro", uri=True)) as db:
        return db.execute("SELECT tenant, state FROM tenants").fetchall()
