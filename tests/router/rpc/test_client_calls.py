"""Calls that an edge makes for the holder of a client's token follow the rules for the client's frames."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from google.protobuf.message_factory import GetMessageClass
from trunkline.v1.access_pb2 import (
    RIGHT_CANCEL,
    RIGHT_HISTORY,
    RIGHT_PUBLISH,
    RIGHT_SUBSCRIBE,
    RIGHT_UNSPECIFIED,
    Right,
    TokenHolder,
    client_right,
)
from trunkline.v1.address_pb2 import CONVERSATION_KIND_GROUP, CONVERSATION_KIND_PERSON, Address, Position
from trunkline.v1.broadcast_service_pb2 import (
    BroadcastRequest,
    CancelMessageRequest,
    CancelRepliesRequest,
    OpenMessageRequest,
)
from trunkline.v1.history_service_pb2 import (
    EditMessageRequest,
    GetMessageRequest,
    ListMessagesRequest,
    ListReceiptsRequest,
    MarkReadRequest,
    RecallMessageRequest,
)
from trunkline.v1.message_pb2 import (
    MESSAGE_STATE_CANCELLED,
    MESSAGE_STATE_RECALLED,
    ROLE_AGENT,
    ROLE_USER,
    WITHOUT_WORKER_SKIP,
    Part,
    TextPart,
)
from trunkline.v1.tenant_pb2 import TENANT_STATE_SUSPENDED, TenantLimits, TenantSettings
from trunkline_router.core.values.stored_records import RevocationKind

from tests.router.rpc.in_process_router import (
    EDGE,
    METHODS,
    OPERATOR,
    InProcessRouter,
    Metadata,
    bearer,
    in_process_router,
    request_for,
)
from tests.support.signing import Signer

RIGHTS = (RIGHT_PUBLISH, RIGHT_SUBSCRIBE, RIGHT_HISTORY, RIGHT_CANCEL)
#: RPCs that clients may call, and the right that each takes.
OF_CLIENTS = {
    "Broadcast": RIGHT_PUBLISH,
    "CancelMessage": RIGHT_CANCEL,
    "CancelReplies": RIGHT_CANCEL,
    "ListMessages": RIGHT_HISTORY,
    "GetMessage": RIGHT_HISTORY,
    "EditMessage": RIGHT_PUBLISH,
    "RecallMessage": RIGHT_PUBLISH,
    "ListReceipts": RIGHT_HISTORY,
    "MarkRead": RIGHT_SUBSCRIBE,
}
OPERATED = bearer(OPERATOR)


def holder(user: str = "ann", *rights: Right.ValueType, tenant: str = "closed", **fields: Any) -> TokenHolder:
    """The holder of a token for the user's own conversation and any group; without named rights, all."""
    asked: dict[str, Any] = {"all_agents": True, "all_platforms": True, "persons": [user] if user else []}
    made = TokenHolder(tenant=tenant, user=user, **(asked | fields))
    made.grants.rights.extend(rights or RIGHTS)
    made.grants.all_groups = True
    made.grants.token_id = f"of {user}"
    return made


def calling(client: TokenHolder) -> Metadata:
    return (*EDGE, ("trunkline-client-bin", client.SerializeToString()))  # type: ignore[return-value]


def person(name: str, tenant: str = "closed") -> Address:
    to = Address(tenant=tenant, agent="echo", platform="web")
    to.conversation.kind, to.conversation.id = CONVERSATION_KIND_PERSON, name
    return to


def group(name: str, tenant: str = "closed") -> Address:
    to = person(name, tenant)
    to.conversation.kind = CONVERSATION_KIND_GROUP
    return to


def saying(words: str, to: Address, **fields: Any) -> BroadcastRequest:
    return BroadcastRequest(address=to, parts=[Part(text=TextPart(text=words))], **fields)


async def call(router: InProcessRouter, rpc: str, request: Any, metadata: Metadata) -> Any:
    """Make a call that succeeds."""
    return await (await router.begin(rpc, request, metadata=metadata))


# Admission


async def test_each_rpc_takes_the_right_that_the_contract_states(router: InProcessRouter) -> None:
    for rpc, method in METHODS.items():
        stated = method.GetOptions().Extensions[client_right]
        assert stated == OF_CLIENTS.get(rpc, RIGHT_UNSPECIFIED)
        requests = [] if method.client_streaming else [request_for(method, "closed")]
        for right in RIGHTS:
            code, text = await router.refusal(rpc, *requests, metadata=calling(holder("ann", right)))
            if right == stated:
                # The request is empty, but the caller is admitted.
                assert code not in {"OK", "FORBIDDEN", "UNAUTHORIZED"}, (rpc, code)
                continue
            problem = "a client's token does not allow this call; it takes"
            if stated:
                problem = "the token does not grant the right to"
            elif rpc == "Link":
                problem = "only edges"
            assert (code, problem in text) == ("FORBIDDEN", True), (rpc, text)


async def test_only_an_edge_names_the_holder_of_a_token(router: InProcessRouter) -> None:
    request = ListMessagesRequest(address=group("any"))
    good = calling(holder())[-1]
    for metadata in (
        (good,),
        (*EDGE, good, good),
        (*EDGE, ("trunkline-client-bin", b"\xff\xff")),
        (*EDGE, ("trunkline-acting-for", "closed"), good, good),
    ):
        assert await router.code("ListMessages", request, metadata=metadata) == "UNAUTHORIZED"  # type: ignore[arg-type]
    for wrong in (holder(tenant=""), holder(user="a b", persons=[]), holder(agents=["a"] * 1025)):
        code, text = await router.refusal("ListMessages", request, metadata=calling(wrong))
        assert (code, "trunkline-client-bin." in text) == ("INVALID_ARGUMENT", True)
    assert await router.code("ListMessages", request, metadata=(*EDGE, good)) == "OK"


async def test_a_router_verifies_no_token_itself(router: InProcessRouter) -> None:
    request = ListMessagesRequest(address=group("any"))
    for metadata in (bearer(Signer("closed").token("ann")), (*EDGE, *bearer(Signer("closed").token("ann")))):
        code, text = await router.refusal("ListMessages", request, metadata=metadata)
        assert (code, "must be presented to an edge" in text) == ("UNAUTHORIZED", True)


async def test_a_token_of_one_tenant_reveals_nothing_of_others(router: InProcessRouter) -> None:
    metadata = calling(holder(tenant="closed"))
    elsewhere = [
        await router.refusal(
            "ListMessages", ListMessagesRequest(address=group("any", name)), metadata=metadata
        )
        for name in ("open", "nobody")
    ]
    assert elsewhere[0] == elsewhere[1]
    assert elsewhere[0][0] == "FORBIDDEN"
    gone = calling(holder(tenant="nobody"))
    request = ListMessagesRequest(address=group("any", "nobody"))
    assert await router.code("ListMessages", request, metadata=gone) == "UNKNOWN_TENANT"


async def test_revoked_tokens_and_those_of_suspended_tenants_are_refused(tmp_path: Path) -> None:
    async with in_process_router(tmp_path) as router:
        old = holder("bob")
        old.grants.issued_at.FromSeconds(int(time.time()) - 60)
        request = ListMessagesRequest(address=group("any"))
        assert await router.code("ListMessages", request, metadata=calling(old)) == "OK"
        await router.admin.revoke_tokens("closed", RevocationKind.USER, "bob", None)
        await router.admin.revoke_tokens("closed", RevocationKind.TOKEN_ID, "of eve", None)
        for refused in (old, holder("eve")):
            code = await router.code("ListMessages", request, metadata=calling(refused))
            assert code == "TOKEN_REVOKED"
            code = await router.code(
                "GetStats", request_for(METHODS["GetStats"], "closed"), metadata=calling(refused)
            )
            assert code == "TOKEN_REVOKED"
        assert await router.code("ListMessages", request, metadata=calling(holder())) == "OK"
        await router.admin.set_state("closed", TENANT_STATE_SUSPENDED)
        assert await router.code("ListMessages", request, metadata=calling(holder())) == "TENANT_SUSPENDED"


async def test_the_longest_lists_of_a_token_fit(router: InProcessRouter) -> None:
    long = holder(persons=[f"person-{number}" for number in range(1024)])
    long.grants.all_groups = False
    long.grants.groups.extend(f"group-number-{number}" for number in range(1024))
    assert len(long.SerializeToString()) > 16384
    for to, code in (
        (person("person-1023"), "OK"),
        (group("group-number-1023"), "OK"),
        (group("g"), "FORBIDDEN"),
    ):
        assert (
            await router.code("ListMessages", ListMessagesRequest(address=to), metadata=calling(long)) == code
        )


async def test_calls_of_clients_count_as_frames_do(tmp_path: Path) -> None:
    async with in_process_router(tmp_path) as router:
        limits = TenantSettings(limits=TenantLimits(messages_per_s=1))
        await router.admin.update("closed", limits, ["limits"])
        request = ListMessagesRequest(address=group("any"))
        codes = [await router.code("ListMessages", request, metadata=calling(holder())) for _ in range(20)]
        assert set(codes) == {"OK", "RATE_LIMITED"}
        # Refused at once: it has no place in the queue of the tenant's backends.
        tenant = router.runtime.core.directory.tenants["closed"]
        assert tenant.refused["RATE_LIMITED"] == codes.count("RATE_LIMITED")


# Calls that a client may make


async def test_a_message_is_the_users_and_goes_to_the_agent(router: InProcessRouter) -> None:
    metadata = calling(holder("ann", RIGHT_PUBLISH))
    request = saying("hi", group("sent"), idempotency_key="m1", attributes={"k": "v"}, reply_to="q")
    answer = await call(router, "Broadcast", request, metadata)
    assert answer.connections == 0
    assert (await call(router, "Broadcast", request, metadata)).message_id == answer.message_id
    other = saying("other", group("sent"), idempotency_key="m1")
    assert await router.code("Broadcast", other, metadata=metadata) == "IDEMPOTENCY_MISMATCH"
    # Each user has ids of their own.
    of_bob = await call(router, "Broadcast", request, calling(holder("bob")))
    assert of_bob.message_id != answer.message_id
    read = GetMessageRequest(tenant="closed", message_id=answer.message_id)
    message = (await call(router, "GetMessage", read, OPERATED)).message
    assert (message.author.role, message.author.user, message.client_id) == (ROLE_USER, "ann", "m1")
    assert (message.reply_to, dict(message.attributes)) == ("q", {"k": "v"})
    (backlog,) = [each for each in await router.runtime.log.backlogs("closed") if each.agent == "echo"]
    assert backlog.waiting >= 2
    skipped = saying("hi", group("sent"), without_worker=WITHOUT_WORKER_SKIP)
    assert (await call(router, "Broadcast", skipped, metadata)).position.seq
    assert [each for each in await router.runtime.log.backlogs("closed") if each.agent == "echo"] == [backlog]
    # Without a key each call is a message of its own.
    assert not router.runtime.core.directory.tenants["closed"].connection_count
    answers = [await call(router, "Broadcast", saying("hi", group("sent")), metadata) for _ in range(2)]
    assert answers[0].message_id != answers[1].message_id


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"author": {"user": "ann"}}, "author"),
        ({"author": {}}, "author"),
        ({"ephemeral": True}, "ephemeral"),
        ({"require_connection": True}, "require_connection"),
        ({"parts": []}, "parts"),
        ({"idempotency_key": "a\0"}, "idempotency_key"),
        ({"address": Address(tenant="closed")}, "address"),
        ({"address": Address(tenant="closed", agent="echo", platform="web")}, "address"),
        ({"address": Address(tenant="closed", user="ann")}, "address"),
        ({"address": Address(tenant="closed", connection="c")}, "address"),
    ],
)
async def test_what_only_backends_may_set_is_refused(
    router: InProcessRouter, fields: dict[str, Any], field: str
) -> None:
    asked: dict[str, Any] = {"address": group("refused"), "parts": [Part(text=TextPart(text="x"))]}
    request = BroadcastRequest(**(asked | fields))
    code, text = await router.refusal("Broadcast", request, metadata=calling(holder()))
    assert (code, f"{field}: " in text) == ("INVALID_ARGUMENT", True), text


async def test_a_client_reaches_only_the_conversations_that_its_token_allows(router: InProcessRouter) -> None:
    secret = (await call(router, "Broadcast", saying("secret", person("bob")), OPERATED)).message_id
    to_all = (await call(router, "Broadcast", saying("x", Address(tenant="closed")), OPERATED)).message_id
    opened = OpenMessageRequest(address=person("bob"), key="open")
    opened_id = (await call(router, "OpenMessage", opened, OPERATED)).message.id
    head = Position(epoch="e", seq=1)
    for client, to in (
        (holder("ann"), person("bob")),
        (holder("ann", agents=["other"], all_agents=False), person("ann")),
        (holder("ann", platforms=["qq"], all_platforms=False), person("ann")),
        (holder(""), person("ann")),
    ):
        metadata = calling(client)
        for rpc, request in (
            ("Broadcast", saying("x", to)),
            ("ListMessages", ListMessagesRequest(address=to)),
            ("ListReceipts", ListReceiptsRequest(address=to)),
            ("CancelReplies", CancelRepliesRequest(address=to, client_id="m1")),
            ("MarkRead", MarkReadRequest(address=to, position=head)),
        ):
            code, text = await router.refusal(rpc, request, metadata=metadata)
            assert (code, "the token does not allow" in text) == ("FORBIDDEN", True), (rpc, text)
        # A message elsewhere is refused like one that does not exist.
        for rpc in ("GetMessage", "CancelMessage", "EditMessage", "RecallMessage"):
            for ident in (secret, to_all, opened_id, "nothing"):
                request = GetMessageClass(METHODS[rpc].input_type)(tenant="closed", message_id=ident)
                if rpc == "EditMessage":
                    request.parts.add().text.text = "x"
                code, text = await router.refusal(rpc, request, metadata=metadata)
                assert (code, text) == ("MESSAGE_NOT_FOUND", f"Message {ident} does not exist"), rpc


async def test_a_user_changes_only_messages_of_their_own(router: InProcessRouter) -> None:
    room, parts = group("changed"), [Part(text=TextPart(text="new"))]
    mine = (await call(router, "Broadcast", saying("old", room), calling(holder("ann")))).message_id
    for client in (holder("bob"), holder("")):
        for rpc, request in (
            ("EditMessage", EditMessageRequest(tenant="closed", message_id=mine, parts=parts)),
            ("RecallMessage", RecallMessageRequest(tenant="closed", message_id=mine)),
        ):
            assert await router.code(rpc, request, metadata=calling(client)) == "NOT_THE_AUTHOR"
    edit = EditMessageRequest(tenant="closed", message_id=mine, parts=parts)
    await call(router, "EditMessage", edit, calling(holder("ann")))
    read = GetMessageRequest(tenant="closed", message_id=mine)
    assert (await call(router, "GetMessage", read, calling(holder("bob")))).message.parts == parts
    recall = RecallMessageRequest(tenant="closed", message_id=mine)
    assert (await call(router, "RecallMessage", recall, calling(holder("ann")))).HasField("position")
    assert not (await call(router, "RecallMessage", recall, calling(holder("ann")))).HasField("position")
    (message,) = (
        await call(router, "ListMessages", ListMessagesRequest(address=room), calling(holder()))
    ).messages
    assert message.state == MESSAGE_STATE_RECALLED


async def test_a_listener_cancels_an_open_reply(router: InProcessRouter) -> None:
    opened = OpenMessageRequest(address=group("cancelled"), key="r")
    opened.author.role = ROLE_AGENT
    ident = (await call(router, "OpenMessage", opened, OPERATED)).message.id
    cancel = CancelMessageRequest(tenant="closed", message_id=ident)
    # As on a connection, whoever may not listen may not cancel.
    deaf = calling(holder("ann", RIGHT_CANCEL))
    assert await router.code("CancelMessage", cancel, metadata=deaf) == "MESSAGE_NOT_FOUND"
    metadata = calling(holder("ann", RIGHT_CANCEL, RIGHT_SUBSCRIBE))
    # An id of another tenant's is no id.
    elsewhere = calling(holder("ann", tenant="all"))
    cancel.tenant = "all"
    assert await router.code("CancelMessage", cancel, metadata=elsewhere) == "MESSAGE_NOT_FOUND"
    cancel.tenant = "closed"
    for _ in range(2):
        assert (await call(router, "CancelMessage", cancel, metadata)).state == MESSAGE_STATE_CANCELLED


async def waiting(router: InProcessRouter, agent: str) -> int:
    """The number of deliveries that wait for an agent's workers."""
    return sum(each.waiting for each in await router.runtime.log.backlogs("closed") if each.agent == agent)


async def test_a_user_or_a_backend_cancels_the_replies_to_a_message(router: InProcessRouter) -> None:
    room = group("asked")
    for metadata, rivals in (
        (calling(holder("ann")), calling(holder("bob"))),
        (OPERATED, calling(holder("ann"))),
    ):
        before = await waiting(router, "echo")
        asked = saying("q1", room, idempotency_key="q1")
        if metadata is OPERATED:
            asked.author.role = ROLE_USER
        await call(router, "Broadcast", asked, metadata)
        assert await waiting(router, "echo") == before + 1
        cancel = CancelRepliesRequest(address=room, client_id="q1")
        # The ids of others are theirs.
        if metadata is not OPERATED:
            assert await router.code("CancelReplies", cancel, metadata=rivals) == "MESSAGE_NOT_FOUND"
        outcome = await call(router, "CancelReplies", cancel, metadata)
        assert (list(outcome.replies), outcome.prevented) == ([], True)
        assert await waiting(router, "echo") == before
        asked.idempotency_key = "q2"
        question = (await call(router, "Broadcast", asked, metadata)).message_id
        reply = OpenMessageRequest(address=room, key=f"to {question}", reply_to=question)
        reply.author.role = ROLE_AGENT
        opened = (await call(router, "OpenMessage", reply, OPERATED)).message.id
        outcome = await call(
            router, "CancelReplies", CancelRepliesRequest(address=room, client_id="q2"), metadata
        )
        assert [(each.message_id, each.state) for each in outcome.replies] == [
            (opened, MESSAGE_STATE_CANCELLED)
        ]
    unknown = CancelRepliesRequest(address=room, client_id="nothing")
    assert await router.code("CancelReplies", unknown, metadata=OPERATED) == "MESSAGE_NOT_FOUND"
    nowhere = CancelRepliesRequest(address=Address(tenant="closed"), client_id="q1")
    assert await router.code("CancelReplies", nowhere, metadata=OPERATED) == "INVALID_ARGUMENT"
    deaf = calling(holder("ann", RIGHT_CANCEL))
    cancel = CancelRepliesRequest(address=room, client_id="q1")
    assert await router.code("CancelReplies", cancel, metadata=deaf) == "NOT_SUBSCRIBED"


async def test_a_cancel_of_before_a_reset_spares_the_log_of_after(router: InProcessRouter) -> None:
    room, metadata = group("renewed"), calling(holder("ann"))
    await call(router, "Broadcast", saying("old", room, idempotency_key="old"), metadata)
    reset: Any = request_for(METHODS["ResetConversation"], "closed")
    reset.address.CopyFrom(room)
    await call(router, "ResetConversation", reset, OPERATED)
    before = await waiting(router, "echo")
    await call(router, "Broadcast", saying("new", room, idempotency_key="new"), metadata)
    cancel = CancelRepliesRequest(address=room, client_id="old")
    code = await router.code("CancelReplies", cancel, metadata=metadata)
    assert code in {"OK", "MESSAGE_NOT_FOUND"}
    assert await waiting(router, "echo") == before + 1


async def test_a_user_or_a_backend_marks_a_conversation_as_read(router: InProcessRouter) -> None:
    room = group("read")
    sent = [(await call(router, "Broadcast", saying("x", room), OPERATED)).position for _ in range(3)]
    marked = await call(
        router, "MarkRead", MarkReadRequest(address=room, position=sent[1]), calling(holder())
    )
    assert (marked.position, marked.at.seq) == (sent[1], 4)
    back = MarkReadRequest(address=room, position=sent[0], user="ann")
    for metadata in (calling(holder()), OPERATED):
        again = await call(router, "MarkRead", back, metadata)
        assert (again.position, again.HasField("at")) == (sent[1], False)
    by_backend = MarkReadRequest(address=room, position=sent[2], user="bob")
    assert (await call(router, "MarkRead", by_backend, OPERATED)).position == sent[2]
    listed = await call(router, "ListReceipts", ListReceiptsRequest(address=room), calling(holder()))
    assert [(each.user, each.read.seq) for each in listed.receipts] == [("ann", 2), ("bob", 3)]
    beyond = Position(epoch=sent[0].epoch, seq=99)
    for request, metadata, code in (
        (MarkReadRequest(address=room, position=sent[0], user="bob"), calling(holder()), "FORBIDDEN"),
        (MarkReadRequest(address=room, position=sent[0]), calling(holder("")), "INVALID_ARGUMENT"),
        (MarkReadRequest(address=room, position=sent[0]), OPERATED, "INVALID_ARGUMENT"),
        (MarkReadRequest(address=room, position=beyond), calling(holder()), "CURSOR_MISMATCH"),
        (
            MarkReadRequest(address=room, position=Position(epoch="e", seq=1)),
            calling(holder()),
            "CURSOR_MISMATCH",
        ),
        (
            MarkReadRequest(address=Address(tenant="closed"), position=sent[0], user="b"),
            OPERATED,
            "INVALID_ARGUMENT",
        ),
    ):
        assert await router.code("MarkRead", request, metadata=metadata) == code, request


async def test_a_receipt_for_a_log_that_was_erased_is_refused(router: InProcessRouter) -> None:
    room = group("erased")
    sent = (await call(router, "Broadcast", saying("x", room), OPERATED)).position
    reset: Any = request_for(METHODS["ResetConversation"], "closed")
    reset.address.CopyFrom(room)
    await call(router, "ResetConversation", reset, OPERATED)
    request = MarkReadRequest(address=room, position=sent)
    assert await router.code("MarkRead", request, metadata=calling(holder())) == "CURSOR_MISMATCH"
    with pytest.raises(grpc.aio.AioRpcError):
        await call(router, "MarkRead", request, calling(holder()))
