"""The router enforces exactly the limits that the contract's comments state."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorSet
from trunkline.v1 import (
    access_pb2,
    address_pb2,
    agent_service_pb2,
    audit_service_pb2,
    broadcast_service_pb2,
    edge_service_pb2,
    frame_pb2,
    history_service_pb2,
    media_service_pb2,
    message_pb2,
    presence_service_pb2,
    tenant_pb2,
    tenant_service_pb2,
)
from trunkline.v1.address_pb2 import Address
from trunkline.v1.catalogue import Refused
from trunkline_router.core.validation.constraints import DIGEST, ID, OPTIONAL_ID, OPTIONAL_TOKEN, TOKEN, WORD
from trunkline_router.core.validation.message_constraints import CONSTRAINTS
from trunkline_router.core.validation.validator import check

from tests.support.processes import ROOT

MODULES = (
    access_pb2,
    address_pb2,
    agent_service_pb2,
    audit_service_pb2,
    broadcast_service_pb2,
    edge_service_pb2,
    frame_pb2,
    history_service_pb2,
    media_service_pb2,
    message_pb2,
    presence_service_pb2,
    tenant_pb2,
    tenant_service_pb2,
)
TYPES = {name: getattr(m, name) for m in MODULES for name in m.DESCRIPTOR.message_types_by_name}


@pytest.fixture(scope="module")
def comments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Comments of messages (`Reply`) and fields (`Reply.parts`), white space folded."""
    spec = importlib.util.spec_from_file_location("compile_protos", ROOT / "protos" / "compile.py")
    assert spec is not None
    assert spec.loader is not None
    compiler = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(compiler)
    out: Path = tmp_path_factory.mktemp("descriptors") / "set"
    compiler.protoc("--include_source_info", f"--descriptor_set_out={out}")
    found: dict[str, str] = {}
    for file in FileDescriptorSet.FromString(out.read_bytes()).file:
        texts = {
            tuple(at.path): " ".join(at.leading_comments.split()) for at in file.source_code_info.location
        }
        for index, message in enumerate(file.message_type):
            found |= dict(commented(message, texts, (4, index)))
    return found


def commented(
    message: DescriptorProto, texts: dict[tuple[int, ...], str], path: tuple[int, ...]
) -> Iterator[tuple[str, str]]:
    """A message's comment and its fields'; the contract has no nested messages except those of maps."""
    yield message.name, texts.get(path, "")
    for index, field in enumerate(message.field):
        yield f"{message.name}.{field.name}", texts.get((*path, 2, index), "")


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_each_rule_is_stated_in_its_comment(name: str, comments: dict[str, str]) -> None:
    assert f"Limits: {CONSTRAINTS[name].sentence}." in comments[name]


def test_each_limit_that_a_comment_states_is_enforced(comments: dict[str, str]) -> None:
    stated = {name for name, text in comments.items() if "Limits:" in text}
    assert stated == CONSTRAINTS.keys()


PART: dict[str, Any] = {"text": {"text": "hello"}}
GROUP: dict[str, Any] = {"kind": "CONVERSATION_KIND_GROUP", "id": "room"}
TENANT: dict[str, Any] = {"tenant": "t"}
#: Required fields of a valid message, by type.
VALID: dict[str, dict[str, Any]] = {
    "Conversation": GROUP,
    "Address": TENANT,
    "MessageFrame": {"id": "1", "parts": [PART]},
    "SubscribeFrame": {"id": "1", "conversation": GROUP},
    "UnsubscribeFrame": {"id": "1", "conversation": GROUP},
    "HistoryFrame": {"id": "1"},
    "SignalFrame": {"name": "typing"},
    "ReadFrame": {"position": {"epoch": "e", "seq": 1}},
    "DeliveredFrame": {"position": {"epoch": "e", "seq": 1}},
    "CancelFrame": {"id": "1", "message_id": "m"},
    "EditFrame": {"id": "1", "message_id": "m", "parts": [PART]},
    "RecallFrame": {"id": "1", "message_id": "m"},
    "AuthFrame": {"id": "1"},
    "LinkHello": {"edge_id": "e", "boot_id": "b"},
    "ConnectionGranted": {"id": "1", "grants": {}},
    "AttachHello": {"tenant": "t", "agents": ["a"], "capacity": 1},
    "Reply": {"parts": [PART]},
    "OpenReply": {"reply": 1, "key": "k"},
    "EndReply": {"state": 2},
    "ListDeadLettersRequest": {"tenant": "t", "agent": "a"},
    "ReplayDeadLettersRequest": {"tenant": "t", "agent": "a", "delivery_ids": [1]},
    "BroadcastRequest": {"address": TENANT, "parts": [PART]},
    "OpenMessageRequest": {"address": TENANT, "key": "k"},
    "ExtendMessageRequest": {"tenant": "t", "message_id": "m"},
    "EndMessageRequest": {"tenant": "t", "message_id": "m", "state": 2},
    "CancelMessageRequest": {"tenant": "t", "message_id": "m"},
    "CancelRepliesRequest": {"address": TENANT, "client_id": "k"},
    "EditMessageRequest": {"tenant": "t", "message_id": "m", "parts": [PART]},
    "RecallMessageRequest": {"tenant": "t", "message_id": "m"},
    "ListReceiptsRequest": {"address": TENANT},
    "MarkReadRequest": {"address": TENANT, "position": {"epoch": "e", "seq": 1}},
    "TokenHolder": TENANT,
    "ListMessagesRequest": {"address": TENANT},
    "GetMessageRequest": {"tenant": "t", "message_id": "m"},
    "UploadMediaRequest": {"tenant": "t"},
    "GetMediaRequest": {"tenant": "t", "key": "k"},
    "ResetConversationRequest": {"address": TENANT},
    "ListConnectionsRequest": {"address": TENANT},
    "CountConnectionsRequest": {"address": TENANT},
    "ListTopicsRequest": {"address": TENANT},
    "GetStatsRequest": {"tenant": "t"},
    "CloseConnectionsRequest": {"address": TENANT},
    "WatchConnectionsRequest": {"address": TENANT},
    "VerificationKey": {"kid": "k", "algorithm": "HS256"},
    "CreateTenantRequest": TENANT,
    "GetTenantRequest": TENANT,
    "UpdateTenantRequest": TENANT,
    "SuspendTenantRequest": TENANT,
    "ResumeTenantRequest": TENANT,
    "DeleteTenantRequest": TENANT,
    "CreateApiKeyRequest": {"tenant": "t", "scopes": [1]},
    "ListApiKeysRequest": TENANT,
    "RevokeApiKeyRequest": {"tenant": "t", "key_id": "k"},
    "RevokeTokensRequest": {"tenant": "t", "user": "u"},
    "ListRevocationsRequest": TENANT,
    "EraseUserRequest": {"tenant": "t", "user": "u"},
}
NOT_IDS = [
    "a/b",
    "a:b",
    "a\0b",
    "a b",
    "a\tb",
    "a\nb",
    "a\u00a0b",
    "\u2028",
    "\x7f",
    "\x85",
    "x" * 129,
    "x" * 10_000,
]
#: Maximum of a uint32.
MOST = (1 << 32) - 1
NOT_TOKENS = ["a\0b", "a\nb", "\x7f", "\x9f", "x" * 129, "x" * 10_000]
IDS = ["a", "x" * 128, "群", "a.b-c_d@e*?#[]"]
NOT_DIGESTS = ["", "a", "a" * 63, "a" * 65, "A" * 64, "g" * 64, "a" * 64 + "\n", "\u0661" * 64]
#: Items of lists that a rule refuses, and items that it accepts.
ITEMS: dict[str, tuple[list[Any], list[Any]]] = {
    ID.sentence: (["", *NOT_IDS], IDS),
    WORD.sentence: (["", "a b", "a\n", "\x7f", "\u00a0", "x" * 257], ["a", "https://a.example:1", "x" * 256]),
    DIGEST.sentence: (NOT_DIGESTS, ["0" * 64, "0123456789abcdef" * 4]),
    "SCOPE_BROADCAST to SCOPE_ADMIN": ([0, 6, 7, 99], [1, 2, 3, 4, 5]),
}


def struct(levels: int) -> dict[str, Any]:
    """Return a Struct with this many levels."""
    value: Any = 1
    for level in range(levels):
        value = {"k": value} if level % 2 == 0 or level == levels - 1 else [value]
    return value  # type: ignore[no-any-return]


def values(count: int) -> dict[str, Any]:
    """Return a Struct with this many values: a list and its items."""
    return {"k": [1] * (count - 1)}


def data(count: int) -> dict[str, Any]:
    """Return a part with this many free-form values."""
    return {"custom": {"data": values(count)}}


def samples(name: str) -> tuple[list[Any], list[Any]]:
    """Return values that the rule of a field refuses, and values that it accepts."""
    rule = CONSTRAINTS[name]
    sentence = rule.sentence
    if rule is ID:
        return ["", *NOT_IDS], IDS
    if rule is OPTIONAL_ID:
        return NOT_IDS, ["", *IDS]
    if rule is TOKEN:
        return ["", *NOT_TOKENS], [*IDS, "a b", "a/b:c"]
    if rule is OPTIONAL_TOKEN:
        return NOT_TOKENS, ["", *IDS, "a b"]
    if found := re.fullmatch(r"(?:(\d+) to|at most) (\d+) items; each (.*)", sentence):
        low, high = int(found[1] or 0), int(found[2])
        bad, good = ITEMS[found[3]]
        empty: list[list[Any]] = [[]]
        return (
            [[good[0]] * (high + 1), *([good[0], each] for each in bad), *(empty if low else [])],
            [[good[0]] * high, *([each] for each in good), *([] if low else empty)],
        )
    if found := re.fullmatch(r"(\d+) to (\d+) characters", sentence):
        return ["x" * (int(found[2]) + 1), ""], ["x" * int(found[1]), "x" * int(found[2]), "\n"]
    if found := re.fullmatch(r"at most (\d+) characters", sentence):
        return ["x" * (int(found[1]) + 1)], ["", "x" * int(found[1]), "群" * int(found[1])]
    if found := re.fullmatch(r"at most (\d+)", sentence):
        return [int(found[1]) + 1, 4_000_000_000], [0, 1, int(found[1])]
    if found := re.fullmatch(r"(\d+) to (\d+)", sentence):
        low, high = int(found[1]), int(found[2])
        return [low - 1, *([high + 1] if high < MOST else [])], [low, high]
    raise AssertionError(f"no samples for {sentence}")


def built(name: str, field: str, value: Any) -> Any:
    """Return a valid message of a type with one field set to a value."""
    message = TYPES[name](**VALID.get(name, {}))
    if field == "platform":
        message.agent = "a"
    message.ClearField(field)
    if value is not None:
        message.MergeFrom(TYPES[name](**{field: value}))
        if message.DESCRIPTOR.fields_by_name[field].containing_oneof and not message.HasField(field):
            setattr(message, field, value)
    return message


def refusal(message: Any) -> str:
    """Return the text of the refusal. Raises AssertionError if there is none."""
    with pytest.raises(Refused) as caught:
        check(message)
    assert caught.value.entry.code == "INVALID_ARGUMENT"
    return str(caught.value)


PARTS = [PART] * 64
SPECIAL: dict[str, tuple[list[Any], list[Any]]] = {
    "required": ([None], []),
    "required; a named value": ([0, 3, None], [1, 2]),
    "a named value, or not set": ([4, 99], [0, 1, 2, 3]),
    "1 to 64 items; at most 8192 values in `data` together": (
        [[], [*PARTS, PART], [data(4096), data(4096), data(1)], [data(200)] * 41],
        [[PART], PARTS, [data(4096)] * 2, [data(128)] * 64, [data(4096), PART, data(4095), data(1)]],
    ),
    "`stopped`, or not set": ([2, 3, 4, 99], [0, 1]),
    "at most 8388608 bytes": ([b"x" * 8388609], [b"", b"x" * 8388608]),
    "at most 24 levels deep; at most 4096 values": (
        [struct(25), struct(26), values(4097), {"k": [{"k": 1}] * 2048}, {"k": [[]] * 4096}],
        [{}, struct(1), struct(24), values(4096), {"k": [{"k": 1}] * 2047 + [1]}, {"k": [[]] * 4095}],
    ),
    "at most 128 items": (
        [[{"address": TENANT}] * 129],
        [[], [{"address": TENANT}] * 128],
    ),
    "1 to 500 items": ([[], [1] * 501], [[1], [1] * 500]),
    # More values do not fit into a signal.
    "SignalFrame.data": ([struct(25), struct(26)], [{}, struct(24), {"k": [None] * 4000}]),
    "ExtendMessageRequest.deltas": (
        [[{"text": "x"}] * 1025, [{"part": data(100)}] * 82],
        [[], [{"text": "x"}] * 1024, [{"part": data(100)}, {"text": "x"}] * 81],
    ),
    "Grants.groups": ([["g"] * 1025], [[], ["g"] * 1024]),
    **dict.fromkeys(
        ("TokenHolder.agents", "TokenHolder.platforms", "TokenHolder.persons"),
        ([["a"] * 1025], [[], ["a"] * 1024]),
    ),
    "Grants.rights": ([[1] * 17], [[], [1] * 16]),
    "ClientAuth.keys": (
        [[{"kid": "k", "algorithm": "HS256"}] * 17],
        [[], [{"kid": "k", "algorithm": "HS256"}] * 16],
    ),
    "HS256, RS256, ES256 or EdDSA": (
        ["", "none", "hs256", "HS512", "EdDSA "],
        ["HS256", "RS256", "ES256", "EdDSA"],
    ),
    "Reply.parts": (
        [[*PARTS, PART], [data(4096), data(4096), data(1)]],
        [[], [PART], PARTS, [data(4096)] * 2],
    ),
    "TenantSettings.agents": (
        [{str(n): {} for n in range(1025)}, *({key: {}} for key in ("", *NOT_IDS))],
        [{}, {str(n): {} for n in range(1024)}, *({key: {"concurrency": 2}} for key in IDS)],
    ),
    "at most 64 items": ([[{"parts": [PART]}] * 65], [[], [{"parts": [PART]}] * 64]),
    "at most 32 entries; keys of 1 to 64 characters; values of at most 1024 characters": (
        [{str(n): "" for n in range(33)}, {"": "v"}, {"k" * 65: "v"}, {"k": "v" * 1025}],
        [{}, {str(n): "" for n in range(32)}, {"k" * 64: "v" * 1024}],
    ),
}
FIELDS = [name for name in CONSTRAINTS if "." in name]


@pytest.mark.parametrize("name", FIELDS)
def test_each_rule_refuses_invalid_values_and_accepts_valid_ones(name: str) -> None:
    bad, good = SPECIAL.get(name) or SPECIAL.get(CONSTRAINTS[name].sentence) or samples(name)
    message, field = name.split(".")
    for value in bad:
        assert refusal(built(message, field, value)).startswith(f"{field}: "), value
    for value in good:
        check(built(message, field, value))


@pytest.mark.parametrize("name", [name for name in CONSTRAINTS if "." not in name])
def test_each_message_with_a_size_limit_is_refused_above_it(name: str) -> None:
    limit = int(CONSTRAINTS[name].sentence.split()[2])
    text = "x" * 10_000
    message = TYPES[name](**VALID[name])
    check(message)
    if name == "SignalFrame":
        message.data["k"] = text * (limit // 10_000 + 1)
    elif name == "ExtendMessageRequest":
        for _ in range(5):
            message.deltas.add().text = "x" * (limit // 5)
    elif name == "OpenMessageRequest":
        message.author.name = "x" * limit
    elif "error" in message.DESCRIPTOR.fields_by_name:
        message.error.message = "x" * limit
    else:
        del message.parts[:]
        for _ in range(5):
            message.parts.add().text.text = "x" * (limit // 5)
    assert message.ByteSize() > limit
    assert refusal(message).startswith(f"{name}: ")


@pytest.mark.parametrize("agent", NOT_IDS)
def test_each_agent_that_a_worker_serves_is_an_id(agent: str) -> None:
    hello = agent_service_pb2.AttachHello(tenant="t", agents=["a", agent], capacity=1)
    assert refusal(hello).startswith("agents: item 1 ")


ROOM = {"kind": 2, "id": "r"}


@pytest.mark.parametrize(
    ("address", "field"),
    [
        ({}, "tenant"),
        ({"agent": "a"}, "tenant"),
        ({"user": "u"}, "tenant"),
        ({"connection": "c"}, "tenant"),
        ({"tenant": "t", "platform": "p"}, "agent"),
        ({"tenant": "t", "user": "u", "agent": "a"}, "agent"),
        ({"tenant": "t", "user": "u", "agent": "a", "platform": "p"}, "agent"),
        ({"tenant": "t", "user": "u", "platform": "p"}, "platform"),
        ({"tenant": "t", "connection": "c", "agent": "a"}, "agent"),
        ({"tenant": "t", "conversation": ROOM}, "agent"),
        ({"tenant": "t", "agent": "a", "conversation": ROOM}, "platform"),
        ({"tenant": "t", "platform": "p", "conversation": ROOM}, "agent"),
        ({"tenant": "t", "agent": "a", "platform": "p", "conversation": {}}, "conversation.kind"),
        ({"tenant": "t", "agent": "a", "platform": "p", "conversation": {"kind": 2}}, "conversation.id"),
        (
            {"tenant": "t", "agent": "a", "platform": "p", "conversation": {"kind": 7, "id": "r"}},
            "conversation.kind",
        ),
    ],
)
def test_an_address_with_inconsistent_fields_is_refused(address: dict[str, Any], field: str) -> None:
    request = broadcast_service_pb2.BroadcastRequest(address=Address(**address), parts=[PART])
    assert refusal(request).startswith(f"address.{field}: ")
    # A repeated refusal does not depend on a cache.
    assert refusal(request).startswith(f"address.{field}: ")


@pytest.mark.parametrize(
    "address",
    [
        {"tenant": "t"},
        {"tenant": "t", "agent": "a"},
        {"tenant": "t", "agent": "a", "platform": "p"},
        {"tenant": "t", "agent": "a", "platform": "p", "conversation": ROOM},
        {"tenant": "t", "user": "u"},
        {"tenant": "t", "connection": "c"},
    ],
)
def test_each_level_of_address_is_accepted(address: dict[str, Any]) -> None:
    check(Address(**address))


def test_a_refusal_names_the_path_to_the_field() -> None:
    settings = tenant_pb2.TenantSettings(agents={"a": {}, "b": {"concurrency": 1001}})
    assert refusal(settings) == "agents[b].concurrency: is 1001; 0 to 1000 are allowed"
    frame = frame_pb2.MessageFrame(id="1", parts=[PART, {"mention": {"user": "a b"}}])
    assert refusal(frame).startswith("parts[1].mention.user: ")
    assert refusal(frame_pb2.MessageFrame(id="1", parts=[PART, {}])) == "parts[1]: must have a content"


def test_the_refusal_of_an_enum_value_names_the_valid_ones_in_both_forms() -> None:
    request = TYPES["EndMessageRequest"](**VALID["EndMessageRequest"] | {"state": 5})
    assert refusal(request) == (
        "state: must be one of complete (MESSAGE_STATE_COMPLETE), cancelled (MESSAGE_STATE_CANCELLED), "
        "failed (MESSAGE_STATE_FAILED)"
    )
    conversation = {"kind": 3, "id": "ann"}
    request = TYPES["BroadcastRequest"](
        address={"tenant": "t", "agent": "a", "platform": "p", "conversation": conversation}
    )
    assert refusal(request) == (
        "address.conversation.kind: must be one of person (CONVERSATION_KIND_PERSON), "
        "group (CONVERSATION_KIND_GROUP)"
    )
