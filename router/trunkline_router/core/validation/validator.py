"""What is valid input: the one place that enforces the limits stated in the contract's comments.

`LIMITS` maps fields (and messages, for their size) to rules; a contract test holds it and the
comments together. `check` walks a message by plans compiled once per message type.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, NamedTuple

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message as AnyMessage
from trunkline.v1 import catalogue
from trunkline.v1.address_pb2 import Address
from trunkline_runtime.token_bucket import LARGEST_MESSAGE_BYTES

from trunkline_router.core.validation.constraints import (
    ATTRIBUTES,
    ID,
    OPTIONAL_ID,
    OPTIONAL_TOKEN,
    REQUIRED,
    TOKEN,
    Constraint,
    at_most,
    depth,
    each,
    items,
    named,
    number,
    size,
)
from trunkline_router.core.validation.tenant_constraints import TENANT_LIMITS

MAX_MESSAGE_BYTES = LARGEST_MESSAGE_BYTES

#: Of a message that is opened, and of one request that adds to it.
MAX_OPEN_BYTES = 1 << 20

#: A longer address is not kept as known to be valid; it may carry what nobody knows.
MAX_CACHED_BYTES = 4096

_TEXT = at_most(262144, "characters")
_NAME = at_most(256, "characters")
_SHORT = at_most(128, "characters")
_PARTS = items(1, 64)
_DEPTH = depth(24)
_END = size(16384)
_END_STATE = number(2, 4)

LIMITS: dict[str, Constraint] = {
    "Conversation.kind": named({1, 2}),
    "Conversation.id": ID,
    "Address.tenant": ID,
    "Address.agent": OPTIONAL_ID,
    "Address.platform": OPTIONAL_ID,
    "Address.user": ID,
    "Address.connection": ID,
    "Position.epoch": at_most(64, "characters"),
    "Author.role": named({0, 1, 2, 3})._replace(sentence="a named value, or not set", required=False),
    "Author.user": OPTIONAL_ID,
    "Author.name": _NAME,
    "TextPart.text": _TEXT,
    "Delta.text": _TEXT,
    "Delta.reasoning": _TEXT,
    "MediaPart.url": at_most(4096, "characters"),
    "MediaPart.storage_key": at_most(1024, "characters"),
    "MediaPart.inline": at_most(8 << 20, "bytes"),
    "MediaPart.mime_type": _NAME,
    "MediaPart.sha256": at_most(64, "characters"),
    "MediaPart.name": _NAME,
    "MentionPart.user": OPTIONAL_ID,
    "MentionPart.name": _NAME,
    "QuotePart.message_id": _SHORT,
    "QuotePart.text": _TEXT,
    "ReasoningPart.text": _TEXT,
    "ToolCallPart.call_id": _SHORT,
    "ToolCallPart.name": _NAME,
    "ToolCallPart.arguments": _TEXT,
    "ToolResultPart.call_id": _SHORT,
    "ToolResultPart.result": _TEXT,
    "CustomPart.name": _NAME,
    "CustomPart.data": _DEPTH,
    "MessageFrame": size(MAX_MESSAGE_BYTES),
    "MessageFrame.id": TOKEN,
    "MessageFrame.parts": _PARTS,
    "MessageFrame.reply_to": _SHORT,
    "MessageFrame.attributes": ATTRIBUTES,
    "PingFrame.id": _SHORT,
    "SubscribeFrame.id": TOKEN,
    "SubscribeFrame.conversation": REQUIRED,
    "UnsubscribeFrame.id": TOKEN,
    "UnsubscribeFrame.conversation": REQUIRED,
    "HistoryFrame.id": TOKEN,
    "HistoryFrame.limit": number(0, 500),
    "SignalFrame": size(16384),
    "SignalFrame.name": TOKEN,
    "SignalFrame.data": _DEPTH,
    "ReadFrame.position": REQUIRED,
    "DeliveredFrame.position": REQUIRED,
    "CancelFrame.id": TOKEN,
    "CancelFrame.message_id": _SHORT,
    "CancelFrame.client_id": _SHORT,
    "EditFrame": size(MAX_MESSAGE_BYTES),
    "EditFrame.id": TOKEN,
    "EditFrame.message_id": TOKEN,
    "EditFrame.parts": _PARTS,
    "RecallFrame.id": TOKEN,
    "RecallFrame.message_id": TOKEN,
    "ResumeFrame.positions": at_most(128, "items"),
    "LinkHello.edge_id": TOKEN,
    "LinkHello.boot_id": TOKEN,
    "ConnectionOpened.user": OPTIONAL_ID,
    "AttachHello.tenant": ID,
    "AttachHello.agents": each(ID, 1, 64),
    "AttachHello.capacity": number(1, 10000),
    "AttachHello.worker_id": _SHORT,
    "Settlement.replies": at_most(64, "items"),
    "RetryLater.after_ms": number(0, 3_600_000),
    "RetryLater.reason": _NAME,
    "Reject.reason": _NAME,
    "OpenReply.reply": number(1, 4_294_967_295),
    "OpenReply.key": TOKEN,
    "OpenReply.reply_to": _SHORT,
    "OpenReply.name": _NAME,
    "OpenReply.attributes": ATTRIBUTES,
    "EndReply": _END,
    "EndReply.state": _END_STATE,
    "ListDeadLettersRequest.tenant": ID,
    "ListDeadLettersRequest.agent": ID,
    "ListDeadLettersRequest.page_size": number(0, 500),
    "ReplayDeadLettersRequest.tenant": ID,
    "ReplayDeadLettersRequest.agent": ID,
    "ReplayDeadLettersRequest.delivery_ids": items(1, 500),
    "Reply": size(MAX_MESSAGE_BYTES),
    "Reply.parts": _PARTS,
    "Reply.name": _NAME,
    "Reply.attributes": ATTRIBUTES,
    "BroadcastRequest": size(MAX_MESSAGE_BYTES),
    "BroadcastRequest.address": REQUIRED,
    "BroadcastRequest.parts": _PARTS,
    "BroadcastRequest.reply_to": _SHORT,
    "BroadcastRequest.attributes": ATTRIBUTES,
    "BroadcastRequest.idempotency_key": OPTIONAL_TOKEN,
    "OpenMessageRequest": size(MAX_OPEN_BYTES),
    "OpenMessageRequest.address": REQUIRED,
    "OpenMessageRequest.key": TOKEN,
    "OpenMessageRequest.producer": _SHORT,
    "OpenMessageRequest.reply_to": _SHORT,
    "OpenMessageRequest.attributes": ATTRIBUTES,
    "ExtendMessageRequest": size(MAX_OPEN_BYTES),
    "ExtendMessageRequest.tenant": ID,
    "ExtendMessageRequest.message_id": TOKEN,
    "ExtendMessageRequest.deltas": at_most(1024, "items"),
    "EndMessageRequest": _END,
    "EndMessageRequest.tenant": ID,
    "EndMessageRequest.message_id": TOKEN,
    "EndMessageRequest.state": _END_STATE,
    "CancelMessageRequest.tenant": ID,
    "CancelMessageRequest.message_id": TOKEN,
    "EditMessageRequest": size(MAX_MESSAGE_BYTES),
    "EditMessageRequest.tenant": ID,
    "EditMessageRequest.message_id": TOKEN,
    "EditMessageRequest.parts": _PARTS,
    "RecallMessageRequest.tenant": ID,
    "RecallMessageRequest.message_id": TOKEN,
    "ListReceiptsRequest.address": REQUIRED,
    "ListReceiptsRequest.page_size": number(0, 1000),
    "ListReceiptsRequest.after": _SHORT,
    "ListMessagesRequest.address": REQUIRED,
    "ListMessagesRequest.limit": number(0, 500),
    "GetMessageRequest.tenant": ID,
    "GetMessageRequest.message_id": TOKEN,
    "ResetConversationRequest.address": REQUIRED,
    "ListConnectionsRequest.address": REQUIRED,
    "ListConnectionsRequest.page_size": number(0, 1000),
    "ListConnectionsRequest.page_token": _SHORT,
    "CountConnectionsRequest.address": REQUIRED,
    "ListTopicsRequest.address": REQUIRED,
    "ListTopicsRequest.page_size": number(0, 1000),
    "GetStatsRequest.tenant": ID,
    "CloseConnectionsRequest.address": REQUIRED,
    "CloseConnectionsRequest.reason": _NAME,
    "WatchConnectionsRequest.address": REQUIRED,
    **TENANT_LIMITS,
}


def check(message: AnyMessage, field: str = "") -> None:
    """Check a message and all in it against `LIMITS`.

    Raises Refused INVALID_ARGUMENT that names the first field at fault, with its path below `field`.
    """
    try:
        _check(message)
    except _Invalid as invalid:
        path = ".".join([*([field] if field else []), *reversed(invalid.path)])
        raise catalogue.INVALID_ARGUMENT.refused(
            field=path or message.DESCRIPTOR.name, problem=invalid.problem
        ) from None


class _Invalid(Exception):
    def __init__(self, problem: str, *path: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.path = list(path)


Check = Callable[[Any], None]


class _ValidationStep(NamedTuple):
    """What to do about one field that is set."""

    name: str
    problem: Callable[[Any], str | None] | None
    #: Checks what the field holds, where that is a message of ours.
    inner: Check | None
    repeated: bool


def _check(message: Any) -> None:
    _checker(message.DESCRIPTOR)(message)


@cache
def _checker(descriptor: Descriptor) -> Check:
    """The check of one message type; of the ways to walk it, the one that costs least for its shape."""
    if descriptor is Address.DESCRIPTOR:
        return _check_address
    steps = {field.number: step for field in descriptor.fields if (step := _step(field))}
    if descriptor.name == "Part":
        return _union_checker({step.name: step for step in steps.values()})
    plain = not descriptor.oneofs and all(step.inner is None for step in steps.values())
    if plain and len(steps) <= 3 and descriptor.name not in LIMITS:
        return _small_checker(list(steps.values()))
    return _general_checker(descriptor, steps)


def _step(field: FieldDescriptor) -> _ValidationStep | None:
    rule = LIMITS.get(field.full_name.removeprefix("trunkline.v1."))
    holds = field.message_type
    ours = holds is not None and holds.full_name.startswith("trunkline.")
    if rule is None and not ours:
        return None
    problem = rule.problem if rule and rule is not REQUIRED else None
    return _ValidationStep(field.name, problem, _checker(holds) if ours else None, field.is_repeated)


def _small_checker(steps: list[_ValidationStep]) -> Check:
    """For a few plain fields: looks at each, set or not, which a rule that lets it be empty allows."""

    def check_small(message: Any) -> None:
        for name, problem_of, _, _ in steps:
            if problem_of and (problem := problem_of(getattr(message, name))):
                raise _Invalid(problem, name)

    return check_small


def _union_checker(steps: dict[str, _ValidationStep]) -> Check:
    """For a message that is one of several others, and must be one."""

    def check_union(message: Any) -> None:
        chosen = message.WhichOneof("content")
        if chosen is None:
            raise _Invalid("must have a content")
        _descend(getattr(message, chosen), steps[chosen])

    return check_union


def _general_checker(descriptor: Descriptor, steps: dict[int, _ValidationStep]) -> Check:
    """For anything else: looks at the fields that are set, and then for those that must be."""
    whole = LIMITS[descriptor.name].problem if descriptor.name in LIMITS else None
    required = 0
    for field in descriptor.fields:
        if _must_be_set(field):
            required |= 1 << field.number

    def check_general(message: Any) -> None:
        if whole and (problem := whole(message)):
            raise _Invalid(problem)
        seen = 0
        for field, value in message.ListFields():
            number = field.number
            seen |= 1 << number
            step = steps.get(number)
            if step is None:
                continue
            if step.problem and (problem := step.problem(value)):
                raise _Invalid(problem, step.name)
            if step.inner:
                _descend(value, step)
        if missing := required & ~seen:
            raise _Invalid("must be set", steps[(missing & -missing).bit_length() - 1].name)

    return check_general


def _must_be_set(field: FieldDescriptor) -> bool:
    rule = LIMITS.get(field.full_name.removeprefix("trunkline.v1."))
    if rule is None or field.containing_oneof is not None:
        return False
    if rule.required or (field.message_type is not None and not field.is_repeated):
        return rule.required
    unset: Any = {} if field.is_repeated else field.default_value
    return rule.problem(unset) is not None


def _descend(value: Any, step: _ValidationStep) -> None:
    assert step.inner is not None
    index = None
    try:
        if step.repeated:
            for index, item in enumerate(value):  # noqa: B007 - the index is for the path
                step.inner(item)
        else:
            step.inner(value)
    except _Invalid as invalid:
        invalid.path.append(step.name if index is None else f"{step.name}[{index}]")
        raise


def _check_address(address: Address) -> None:
    serialized = address.SerializeToString(deterministic=True)
    if len(serialized) <= MAX_CACHED_BYTES:
        _valid_address(serialized)
    else:
        _valid_address.__wrapped__(serialized)


@cache
def _address_fields() -> Check:
    steps = {field.number: step for field in Address.DESCRIPTOR.fields if (step := _step(field))}
    return _general_checker(Address.DESCRIPTOR, steps)


@lru_cache(maxsize=4096)
def _valid_address(serialized: bytes) -> None:
    """Addresses come again and again; what was valid once is not walked again."""
    address = Address.FromString(serialized)
    _address_fields()(address)
    _check_shape(address)


def _check_shape(address: Address) -> None:
    """Which fields go together, as the comment on Address says."""
    target = address.WhichOneof("target")
    if target in ("user", "connection"):
        if address.agent or address.platform:
            raise _Invalid(f"must be empty where {target} is set", "agent" if address.agent else "platform")
    elif address.platform and not address.agent:
        raise _Invalid("must be set where platform is", "agent")
    elif target == "conversation" and not address.platform:
        raise _Invalid("must be set where conversation is", "platform" if address.agent else "agent")


def topic_address(address: Address, field: str = "address") -> Address:
    """The address, if it is a topic's. Raises Refused INVALID_ARGUMENT for a connection's."""
    if address.WhichOneof("target") == "connection":
        raise catalogue.INVALID_ARGUMENT.refused(field=field, problem="a connection has no log")
    return address
