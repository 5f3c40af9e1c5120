"""One fuzzer: python fuzz/targets.py TARGET [FILES OR FOLDERS] [libFuzzer's options]

With files it runs each of them once, which is how one that made a target fail is looked into.

decode   what a client sends, in two messages, by each codec
encode   any frame of the contract for the client, by each codec
connect  the request of a client that wants to connect, and its first messages
route    the request to an HTTP route
verify   a client's token
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime

import atheris

with atheris.instrument_imports(
    include=["trunkline_edge.auth", "trunkline_edge.dialects", "trunkline_runtime.jose"]
):
    from trunkline_edge.auth.key_set import inline_keys
    from trunkline_edge.auth.tokens import UnknownKey, verify
    from trunkline_edge.dialects.codec import Codec, Decoded, DirectReply, FrameRefused, SwitchCodec
    from trunkline_edge.dialects.dialect import (
        CallRefused,
        ConnectPlan,
        ConnectRequest,
        Dialect,
        HttpReply,
        HttpRequest,
        RouterCall,
        RouteSteps,
        read_query,
    )
    from trunkline_edge.dialects.registry import DialectRegistry
    from trunkline_edge.dialects.tenant_policies import TenantPolicies, digest_of

import msgspec
import tokens_seen
from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp
from requests_seen import CONNECTS, Head, head_of
from trunkline.v1.catalogue import Refused
from trunkline.v1.edge_service_pb2 import ConnectionOpened, TenantPolicy
from trunkline.v1.frame_pb2 import ClientFrame, ServerFrame
from trunkline.v1.tenant_pb2 import OPENNESS_ANYBODY, ClientAuth, TenantSettings

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
TENANTS = TenantPolicies(
    [
        TenantPolicy(
            tenant="demo",
            settings=TenantSettings(default_agent="echo", pipelines=["p1"], open_to=OPENNESS_ANYBODY),
        ),
        TenantPolicy(
            tenant="acme",
            settings=TenantSettings(
                default_agent="echo",
                pipelines=["p2"],
                client_auth=ClientAuth(token_digests=[digest_of("s3cret")]),
            ),
        ),
    ]
)
REGISTRY = DialectRegistry(lambda: NOW)


def codecs() -> list[Codec]:
    """Each dialect's: those it refuses with, and those that its clients get."""
    found = [dialect.rejection_codec for dialect in REGISTRY.dialects]
    for text in CONNECTS:
        wish = connected(head_of(text))
        if wish is not None:
            found.append(wish.codec)
    by_repr = {f"{type(codec).__name__} {codec.name} {codec!r}": codec for codec in found}
    return [by_repr[key] for key in sorted(by_repr)]


# The targets. What one raises is a bug.


def decode(data: bytes) -> None:
    """The first byte chooses the codec and the kind of message; a zero byte ends the first message."""
    number = data[0] if data else 0
    codec = CODECS[(number >> 1) % len(CODECS)]
    for payload in data[1:].split(b"\0", 1):
        try:
            said = codec.decode(payload, bool(number & 1))
        except FrameRefused as refused:
            frame = ServerFrame()
            frame.error.id, frame.error.message = refused.frame_id[:128], str(refused)
            encoded(codec, frame)
            continue
        codec = _looked_at(codec, said)


def _looked_at(codec: Codec, said: Decoded) -> Codec:
    """What was said is well formed. Returns the codec from here on."""
    if isinstance(said, SwitchCodec):
        hash(said.codec)
        codec, said = said.codec, said.decoded
    if isinstance(said, DirectReply):
        assert isinstance(said.payload, bytes)
    elif said is not None:
        assert said.WhichOneof("frame")
        assert ClientFrame.FromString(said.SerializeToString()) == said
    return codec


def encode(data: bytes) -> None:
    """The first byte chooses the codec; the rest is a ServerFrame in protobuf's encoding."""
    try:
        frame = ServerFrame.FromString(data[1:])
    except DecodeError:
        return
    if all(map(_is_time, _times(frame))):
        encoded(CODECS[(data[0] if data else 0) % len(CODECS)], frame)


def _times(message: Message) -> Iterator[Timestamp]:
    """All times in a message. The contract holds valid ones only; protobuf reads any."""
    for field, value in message.ListFields():
        # Maps hold none that matter: strings, and free-form values.
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        for each in value if field.is_repeated else [value]:
            if isinstance(each, Timestamp):
                yield each
            else:
                yield from _times(each)


def _is_time(time: Timestamp) -> bool:
    try:
        time.ToDatetime()
    except ValueError:
        return False
    return True


def encoded(codec: Codec, frame: ServerFrame) -> None:
    """The frame can be told, and tells the same again."""
    payload = codec.encode(frame)
    assert isinstance(payload, bytes)
    assert codec.encode(frame) == payload


def connect(data: bytes) -> None:
    """The head of a request, an empty line, and the first messages of a client that must say some.

    A zero byte ends each of them. Nobody asks for more than two.
    """
    head = head_of(data.decode("latin-1"))
    wish = connected(head)
    if wish is None:
        return
    for payload in [*head.body.split(b"\0"), b""][:2]:
        if wish.read_first is not None:
            try:
                wish = wish.read_first(payload, False)
            except (Refused, FrameRefused):
                return
    assert wish.read_first is None
    hash(wish.codec)
    wish.opened.SerializeToString()
    TENANTS.is_open(wish.opened.address.tenant, is_local=False)
    assert verified(wish.token, wish.opened) is None


def connected(head: Head) -> ConnectPlan | None:
    """How the client is to be connected; None where it may not, or nothing is served there."""
    if not head.path.isascii():
        return None
    found = REGISTRY.socket(head.path) or REGISTRY.stream(head.path)
    if found is None:
        return None
    offered = [name.strip() for name in head.headers.get("sec-websocket-protocol", "").split(",")]
    agreed = next((name for name in found.dialect.subprotocols if name in offered), None)
    refusal: Refused
    try:
        return found.dialect.connect(
            ConnectRequest(
                parameters=found.parameters,
                query=read_query(head.query),
                headers=head.headers,
                subprotocol=agreed,
                tenants=TENANTS,
            )
        )
    except Refused as refused:
        refusal = refused
    assert refusal.entry.close_code, f"{refusal.entry.code} cannot be told to who connects"
    return None


def route(data: bytes) -> None:
    """The head of a request, an empty line, and its body. The calls it asks for are refused."""
    head = head_of(data.decode("latin-1"))
    for dialect in REGISTRY.dialects:
        for handling in _handlings(dialect, head):
            _drive(handling)


def _handlings(dialect: Dialect, head: Head) -> list[RouteSteps]:
    try:
        query = read_query(head.query)
    except Refused:
        return []
    found = []
    for each in dialect.routes:
        parameters = each.path.match(head.path)
        if parameters is not None and each.method == head.method:
            found.append(each.handle(HttpRequest(parameters, query, head.headers, head.body, TENANTS)))
    return found


def _drive(handling: RouteSteps) -> None:
    try:
        call = next(handling)
        while True:
            assert isinstance(call, RouterCall)
            call.request.SerializeToString()
            call = handling.throw(CallRefused("UNAUTHORIZED", "Authentication failed", 401))
    except StopIteration as stop:
        reply: HttpReply = stop.value
    msgspec.json.encode(reply.body)


def token(data: bytes) -> None:
    """The first byte chooses an algorithm, and whether a token follows or what is to be signed.

    That is the header and the payload, with a zero byte between them.
    """
    number = data[0] if data else 0
    algorithms = list(tokens_seen.PRIVATE)
    if number & 1:
        header, _, payload = data[1:].partition(b"\0")
        said = tokens_seen.signed(header, payload, algorithms[(number >> 1) % len(algorithms)])
    else:
        said = data[1:].decode("latin-1")
    content = verified(said, ConnectionOpened(user="ann"))
    assert number & 1 or content is None or content in tokens_seen.SIGNED, "a token was forged"


def verified(said: str, opened: ConnectionOpened) -> str | None:
    """What of a token was signed; None where it is refused."""
    try:
        bearer = verify(said, tokens_seen.TENANT, tokens_seen.AUTH, KEYS, tokens_seen.NOW_S)
    except (Refused, UnknownKey) as refused:
        str(refused).encode()
        return None
    bearer.grants().SerializeToString()
    with suppress(Refused):
        bearer.authorize(opened)
    return said.rpartition(".")[0]


TARGETS: dict[str, Callable[[bytes], None]] = {
    "decode": decode,
    "encode": encode,
    "connect": connect,
    "route": route,
    "verify": token,
}
CODECS = codecs()
KEYS = inline_keys(tokens_seen.AUTH)


if __name__ == "__main__":
    atheris.Setup([sys.argv[0], *sys.argv[2:]], TARGETS[sys.argv[1]])
    atheris.Fuzz()
