"""Links that break, come back, are replaced or are slow."""

from __future__ import annotations

import pytest
from trunkline.v1 import catalogue
from trunkline.v1.address_pb2 import Address
from trunkline.v1.catalogue import Refused
from trunkline.v1.edge_service_pb2 import LinkHello, LinkRequest
from trunkline_router.core.clients import link_recovery
from trunkline_router.core.commits.effects import ReadPages
from trunkline_router.core.directory.presence import CHANGES_PER_MESSAGE
from trunkline_router.core.values.topics import Position, TopicKey, address_of

from tests.router.core.harness.client import Client
from tests.router.core.harness.invariants import check_tables
from tests.router.core.harness.router import ALICE, ROOM, Router

TENANT: TopicKey = ("t", "", "", 0, "")


def publish(router: Router, key: TopicKey, *texts: str) -> None:
    """Commit messages to a topic."""
    for text in texts:
        router.broadcast(key, text)
    router.run()


def broken(count: int = 2) -> tuple[Router, list[Client]]:
    """Return a router whose edge has lost its link, and clients that received one message of ROOM."""
    router = Router()
    clients = [router.connected(ROOM) for _ in range(count)]
    publish(router, ROOM, "1")
    router.break_link()
    return router, clients


def test_connections_continue_after_a_relink_with_what_they_missed() -> None:
    router, (one, two) = broken()
    publish(router, ROOM, "2", "3")
    publish(router, TENANT, "all")
    router.link("e1")
    router.run()
    publish(router, ROOM, "4")
    assert sorted(one.texts) == sorted(two.texts) == ["1", "2", "3", "4", "all"]
    check_tables(router.core, at_rest=True)


def test_a_position_beyond_the_end_on_a_link_closes_all_subscribers_of_the_log() -> None:
    router, (one, two) = broken()
    publish(router, ROOM, "2")
    router.link("e1")
    router.run()
    router.restart()
    del router.log.logs[ROOM][1][1:]
    early = router.connected(ROOM, edge="e2")
    router.link("e1")
    router.run()
    assert {each.close_reason for each in (one, two, early)} == {"POSITION_LOST"}
    late = router.connected(ROOM, resume={ROOM: Position("e1", 1)})
    publish(router, ROOM, "new")
    assert (late.frames[0].connected.recovered, late.place[ROOM]) == (False, Position("e2", 2))
    check_tables(router.core, at_rest=True)


@pytest.mark.parametrize(
    "steps",
    [
        "write report_commit read_log return_reads",
        "read_log return_reads write report_commit",
        "read_log write report_commit return_reads",
    ],
)
def test_live_messages_wait_until_a_link_has_caught_up(steps: str) -> None:
    router, (one, two) = broken()
    publish(router, ROOM, "2")
    router.link("e1")
    router.say(one, "3")
    for step in steps.split():
        getattr(router, step)()
    router.run()
    publish(router, ROOM, "4")
    assert (one.texts, two.texts) == (["1", "2", "4"], ["1", "2", "3", "4"])
    assert one.kinds()[-2:] == ["ack", "message"]


def test_a_commit_seen_first_by_a_recovery_read_is_delivered_once() -> None:
    router, (one, two) = broken()
    publish(router, ROOM, "2")
    router.link("e1")
    router.broadcast(ROOM, "3")
    router.write()
    router.run()
    assert one.texts == two.texts == ["1", "2", "3"]


def test_an_unacked_message_sent_again_is_not_delivered_to_its_author() -> None:
    router = Router()
    one, two = router.connected(ROOM), router.connected(ROOM)
    router.say(one, "mine")
    router.break_link()
    router.run()
    assert one.kinds() == ["connected"]
    router.link("e1")
    router.run()
    assert (one.kinds(), two.texts) == (["connected", "ack"], ["mine"])
    assert router.log.head(ROOM).seq == 1


def test_ephemeral_messages_are_delivered_while_a_link_catches_up() -> None:
    router, (one, _) = broken()
    publish(router, ROOM, "2")
    router.link("e1")
    backend = router.broadcast(ROOM, "now", ephemeral=True)
    assert backend.response.connections == 2
    assert one.texts == ["1", "now"]
    router.run()
    assert one.texts == ["1", "now", "2"]


def test_a_client_that_connects_during_a_catch_up_gets_no_replay() -> None:
    router, (one, _) = broken()
    publish(router, ROOM, "2")
    router.link("e1")
    late = router.open(ROOM)
    router.run()
    publish(router, ROOM, "3")
    assert (one.texts, late.texts) == (["1", "2", "3"], ["3"])


def test_groups_joined_since_are_restored() -> None:
    router = Router()
    client = router.connected(ALICE)
    router.subscribe(client)
    router.run()
    router.break_link()
    publish(router, ROOM, "1")
    router.link("e1")
    router.run()
    assert client.texts == ["1"]
    (connection,) = router.connections_of("t")
    assert [group.id for group in connection.groups] == ["room"]


@pytest.mark.parametrize("cause", ["behind", "erased", "unreadable"])
def test_a_client_whose_position_is_lost_is_closed_and_the_next_is_not(
    cause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    router, clients = broken()
    monkeypatch.setattr(link_recovery, "RECOVERY_MAX_MESSAGES", 2)
    publish(router, ROOM, "2", "3", "4")
    if cause == "erased":
        router.reset(ROOM)
    router.link("e1")
    late = router.open(ROOM)
    if cause == "unreadable":
        router.fail_read()
    router.run()
    assert [client.close_reason for client in clients] == ["POSITION_LOST"] * 2
    assert [client.texts for client in clients] == [["1"]] * 2
    # The position that the edge names now is that of the late client.
    router.link("e1")
    publish(router, ROOM, "5", "6")
    assert (late.state, late.texts) == ("open", ["5", "6"])
    check_tables(router.core, at_rest=True)


def test_a_client_restored_after_the_position_was_lost_is_closed_too() -> None:
    router, (one, two) = broken()
    publish(router, ROOM, "2")
    edge = router.edges["e1"]
    edge.is_partly_known = True
    hello = LinkHello(edge_id="e1", boot_id="b", contract_minor=catalogue.CONTRACT_MINOR)
    link, _ = router.core.link_opened(hello, router.now)
    edge.linked(link)
    entries = edge.inbox.entries
    second = next(
        e for e in entries if e.WhichOneof("entry") == "opened" and e.opened.connection == two.number
    )
    later = LinkRequest(entries=[second])
    entries.remove(second)
    router.core.link_received(link, LinkRequest(credit=100), 0.0)
    router.carry()
    router.fail_read()
    assert (one.close_reason, two.close_reason) == ("POSITION_LOST", "")
    router.core.link_received(link, later, 0.0)
    router.carry()
    assert two.close_reason == "POSITION_LOST"


def test_a_client_that_resumes_during_a_catch_up_gets_each_message_once() -> None:
    router, (one, two) = broken()
    publish(router, ROOM, "2")
    edge = router.edges["e1"]
    late = edge.new_client(ROOM, "")
    late.resume = {ROOM: one.place[ROOM]}
    hello = LinkHello(edge_id="e1", boot_id="b", contract_minor=catalogue.CONTRACT_MINOR)
    link, _ = router.core.link_opened(hello, router.now)
    edge.linked(link)
    entries = list(edge.inbox.entries)
    own = next(e for e in entries if e.WhichOneof("entry") == "opened" and e.opened.connection == late.number)
    edge.inbox = LinkRequest(entries=[own])
    router.core.link_received(link, LinkRequest(credit=100), 0.0)
    router.carry()
    while not any(isinstance(read, ReadPages) for read in router.core.effects.reads):
        router.read_log()
        router.return_reads()
    edge.inbox = LinkRequest(entries=[entry for entry in entries if entry is not own])
    router.carry()
    router.run()
    publish(router, ROOM, "3")
    assert one.texts == two.texts == ["1", "2", "3"]
    assert late.texts == ["2", "3"]


def test_nothing_is_kept_for_a_lost_link() -> None:
    router = Router()
    client = router.connected(ROOM)
    link = client.edge.link
    assert link is not None
    link.outbox.credit = 0
    router.say(client, "publish")
    publish(router, ROOM, "more")
    assert link.outbox.waiting_bytes
    router.say(client, "on its way")
    router.break_link()
    router.run()
    assert link.outbox.waiting_bytes == 0


def test_connections_of_a_lost_link_are_removed_when_its_lease_ends() -> None:
    router, _ = broken()
    assert router.tick(9) == []
    assert len(router.connections_of("t")) == 2
    assert router.broadcast(ROOM).reason is None
    router.tick(1)
    assert not router.connections_of("t")
    assert not router.core.directory.topics
    assert not router.core.directory.links


def test_a_silent_link_is_ended_and_its_connections_removed() -> None:
    router = Router()
    client = router.connected(ROOM)
    link = client.edge.link
    ((peer, reason),) = router.tick(10)
    assert peer is link
    assert reason.entry.code == "LEASE_ENDED"
    assert not router.core.directory.topics


def test_a_new_link_replaces_the_old_one_whose_batches_are_dropped() -> None:
    router = Router()
    client = router.connected(ROOM)
    old = client.edge.link
    assert old is not None
    router.edges["e1"].lost()
    hello = LinkHello(edge_id="e1", boot_id="b", contract_minor=catalogue.CONTRACT_MINOR)
    link, before = router.core.link_opened(hello, 0.0)
    assert before is old
    late = LinkRequest()
    opened = late.entries.add().opened
    opened.connection, opened.connection_id, opened.restored = 77, "ghost", True
    opened.remote_ip = "127.0.0.1"
    opened.address.CopyFrom(Address(tenant="t", agent="a", platform="w"))
    router.core.link_received(old, late, 0.0)
    assert not router.core.directory.topics
    assert router.core.directory.links == {"e1": link}
    router.core.link_lost(old)
    assert router.core.directory.links == {"e1": link}


@pytest.mark.parametrize("minor", [catalogue.CONTRACT_MINOR - 1, catalogue.CONTRACT_MINOR + 1])
def test_an_edge_one_minor_version_apart_is_accepted(minor: int) -> None:
    Router().core.link_opened(LinkHello(edge_id="e", boot_id="b", contract_minor=minor), 0.0)


def test_an_edge_further_apart_is_rejected() -> None:
    hello = LinkHello(edge_id="e", boot_id="b", contract_minor=catalogue.CONTRACT_MINOR + 2)
    with pytest.raises(Refused, match="differ by at most one"):
        Router().core.link_opened(hello, 0.0)


# Credit


def entry_batch() -> LinkRequest:
    """Return a batch that costs a credit and does nothing."""
    batch = LinkRequest()
    batch.entries.add().closed.connection = 999
    return batch


def test_a_batch_without_credit_is_rejected_unless_it_has_no_entries() -> None:
    router = Router(window=2)
    router.edge()
    link = router.edges["e1"].link
    assert link is not None
    for _ in range(2):
        router.core.link_received(link, entry_batch(), 0.0)
    router.core.link_received(link, LinkRequest(credit=1), 0.0)
    with pytest.raises(Refused) as refused:
        router.core.link_received(link, entry_batch(), 0.0)
    assert refused.value.entry.code == "CREDIT_EXCEEDED"


def test_credit_is_returned_once_a_batch_is_handled() -> None:
    router = Router(window=2)
    router.edge()
    link = router.edges["e1"].link
    assert link is not None
    router.core.link_received(link, entry_batch(), 0.0)
    assert link.credit == 1
    router.core.flush(0.0)
    batch = link.outbox.take()
    assert batch is not None
    assert (link.credit, batch.credit) == (2, 1)


def test_a_full_outbox_blocks_its_source_until_it_is_drained() -> None:
    router = Router(outbox_max_bytes=1000)
    speaker, slow = router.connected(ROOM), router.connected(ROOM, edge="e2")
    fast, busy = speaker.edge.link, slow.edge.link
    assert fast is not None
    assert busy is not None
    busy.outbox.credit = 0
    allowed = fast.credit
    backend = router.broadcast(ALICE)
    while not busy.outbox.is_full:
        router.say(speaker, "x" * 200)
        router.write()
        router.report_commit()
    router.say(speaker, "more")
    assert fast.blocked_by == {busy}
    assert fast.credit < allowed
    assert not backend.blocked_by
    more = router.broadcast(ROOM, "b")
    router.write()
    router.report_commit()
    assert more.blocked_by == {busy}
    assert not router.core.may_send(more.blocked_by)
    busy.outbox.credit = 100
    router.run()
    assert not fast.blocked_by
    assert not more.blocked_by
    assert fast.credit == allowed
    assert len(slow.texts) == router.log.head(ROOM).seq


@pytest.mark.parametrize("end", ["break", "lease"])
def test_a_link_that_ends_blocks_nobody_any_more(end: str) -> None:
    router = Router(outbox_max_bytes=100)
    slow = router.connected(ROOM)
    assert slow.edge.link is not None
    slow.edge.link.outbox.credit = 0
    backend = router.broadcast(ROOM, "x" * 200)
    router.run()
    assert backend.blocked_by
    if end == "break":
        router.break_link()
    else:
        router.tick(10)
    assert not backend.blocked_by
    again = router.broadcast(ROOM, "x" * 200)
    router.run()
    assert not again.blocked_by


def test_an_edge_that_does_not_read_its_answers_gets_no_more_credit() -> None:
    router = Router(outbox_max_bytes=1000, window=4)
    client = router.connected(ROOM)
    link = client.edge.link
    assert link is not None
    link.outbox.credit = 0
    sent = 0
    while link.credit:
        assert sent < 100, "it is granted credit for ever"
        router.frame(client, unsubscribe={"conversation": {"kind": 2, "id": "nope"}})
        sent += 1
    link.outbox.credit = 10
    router.carry()
    assert link.credit == router.core.window


def test_watchers_receive_present_opened_and_closed_connections() -> None:
    router = Router()
    there = router.connected(ROOM)
    for address in (Address(tenant="t"), Address(tenant="t", agent="a", platform="w")):
        watcher = router.core.presence.watch(address)
        came = router.connected(ALICE)
        router.connected(("u", "a", "w", 0, ""))
        router.close(came)
        batch = watcher.take()
        assert batch is not None
        changes = [(change.event, change.connection.connection_id) for change in batch.changes]
        assert changes == [(1, there.id), (2, came.id), (3, came.id)]
        router.core.presence.unwatch(watcher)


def test_watchers_of_a_group_see_who_joins_and_leaves() -> None:
    router = Router()
    client = router.connected(ALICE)
    watcher = router.core.presence.watch(address_of(ROOM))
    router.subscribe(client, ROOM)
    router.run()
    router.unsubscribe(client, ROOM)
    router.run()
    batch = watcher.take()
    assert batch is not None
    assert [(change.event, change.connection.connection_id) for change in batch.changes] == [
        (2, client.id),
        (3, client.id),
    ]


def test_many_connections_reach_a_watcher_in_several_messages() -> None:
    router = Router()
    for _ in range(CHANGES_PER_MESSAGE + 1):
        router.connected(ROOM)
    watcher = router.core.presence.watch(Address(tenant="t"))
    counts = []
    while (batch := watcher.take()) is not None:
        counts.append(len(batch.changes))
    assert counts == [CHANGES_PER_MESSAGE, 1]
