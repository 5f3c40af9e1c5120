"""RPCs that clients call over HTTP with their tokens, under the rules for their frames."""

from __future__ import annotations

from trunkline.v1 import catalogue
from trunkline.v1.address_pb2 import Address
from trunkline.v1.broadcast_service_pb2 import BroadcastRequest, CancelRepliesRequest
from trunkline.v1.frame_pb2 import MessageFrame
from trunkline.v1.history_service_pb2 import MarkReadRequest
from trunkline.v1.message_pb2 import ROLE_SYSTEM, ROLE_USER, Author

from trunkline_router.active_call import ACTIVE_CALL, UNCHECKED_CALL
from trunkline_router.core.clients.cancellation import CancelListener, PendingCancel
from trunkline_router.core.clients.conversations import name_of
from trunkline_router.core.clients.participants import CallingParticipant
from trunkline_router.core.commits.effects import CommitListener
from trunkline_router.core.commits.idempotency import idempotency_key
from trunkline_router.core.router import RouterCore
from trunkline_router.core.tenants.token_client import TokenClient
from trunkline_router.core.validation.validator import check
from trunkline_router.core.values.topics import topic_of

#: Fields of a broadcast that only backends may set.
_OF_BACKENDS = ("author", "ephemeral", "require_connection")


def calling_client() -> TokenClient | None:
    """The client that the current RPC is made for; None for other callers."""
    return ACTIVE_CALL.get(UNCHECKED_CALL).caller.client


def calling_user() -> str:
    """The user whose token the current RPC is made with, also if an edge acts for them; empty for none."""
    client = ACTIVE_CALL.get(UNCHECKED_CALL).caller.token_client
    return client.user if client is not None else ""


def participant(core: RouterCore, client: TokenClient) -> CallingParticipant:
    """The client with its tenant. Raises Refused unless the tenant is active."""
    return CallingParticipant(core.directory.active_tenant(client.tenant), client)


def publish(
    core: RouterCore, client: TokenClient, request: BroadcastRequest, listener: CommitListener
) -> None:
    """Publish a client's message. Raises Refused; the listener is not notified then."""
    size = request.ByteSize()
    check(request, size=size)
    author = participant(core, client)
    client.check_conversation(request.address)
    for field in _OF_BACKENDS:
        if request.HasField(field) if field == "author" else getattr(request, field):  # type: ignore[arg-type]
            problem = "must not be set by a caller with a client's token"
            raise catalogue.INVALID_ARGUMENT.refused(field=field, problem=problem)
    frame = MessageFrame(id=request.idempotency_key, parts=request.parts, reply_to=request.reply_to)
    frame.without_worker = request.without_worker
    if request.attributes:
        frame.attributes.update(request.attributes)
    core.client_messages.publish(author, topic_of(request.address), frame, size, listener)


def cancel_replies(core: RouterCore, request: CancelRepliesRequest, listener: CancelListener) -> None:
    """Cancel the replies to a message of a client's or a backend's. Raises Refused."""
    tenant = core.directory.active_tenant(request.address.tenant)
    topic = topic_of(checked_conversation(request.address))
    client = calling_client()
    author = Author(role=ROLE_SYSTEM)
    kind, user = "backend", ""
    if client is not None:
        client.check_conversation(request.address)
        if not client.permissions.may_subscribe:
            # As on a connection: only listeners cancel.
            raise catalogue.NOT_SUBSCRIBED.refused(conversation=name_of(topic))
        kind, user = "client", client.user
        author = Author(role=ROLE_USER, user=user)
    key = idempotency_key(tenant, kind, topic, user, request.client_id)
    core.cancellations.cancel_replies_to(topic, key, request.client_id, PendingCancel(author, listener))


def checked_conversation(address: Address) -> Address:
    """Return the address if it is a conversation. Raises Refused INVALID_ARGUMENT otherwise."""
    if address.WhichOneof("target") != "conversation":
        raise catalogue.INVALID_ARGUMENT.refused(field="address", problem="must be a conversation")
    return address


def reader(client: TokenClient | None, request: MarkReadRequest) -> str:
    """The user who has read. Raises Refused unless the caller may name one, and has done so."""
    if client is not None:
        client.check_conversation(request.address)
        if request.user not in ("", client.user):
            whom = f"user {client.user}" if client.user else "no user"
            raise catalogue.FORBIDDEN.refused(problem=f"the token is for {whom}, not for user {request.user}")
    else:
        checked_conversation(request.address)
    user = client.user if client is not None else request.user
    if not user:
        problem = "must be set, as receipts are kept for users"
        if client is not None:
            problem = "must be named by the token, as receipts are kept for users"
        raise catalogue.INVALID_ARGUMENT.refused(field="user", problem=problem)
    return user
