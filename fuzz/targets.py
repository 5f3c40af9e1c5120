"""Runs one fuzz target: python fuzz/targets.py TARGET [FILES OR FOLDERS] [libFuzzer's options]

With files it runs each once, to reproduce a failure.

decode   two messages of a client, by each codec
encode   any frame of the contract for a client, by each codec
connect  a connect request, and the client's first messages
route    a request to an HTTP route of a dialect
exchange a request to a route that a connection answers, and the frames for that
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
    from trunkline_edge.dialects.exchange import Exchange
    from trunkline_edge.dialects.registry import DialectRegistry
    from trunkline_edge.dialects.tenant_policies import TenantPolicies, digest_of

import msgspec
import token_corpus
from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp
from request_corpus import CONNECTS, ParsedRequest, parse_request
from trunkline.v1.catalogue import Refused
from trunkline.v1.edge_service_pb2 import ConnectionOpened, TenantPolicy
from trunkline.v1.frame_pb2 import ClientFrame, ServerFrame
from trunkline.v1.tenant_pb2 import OPENNESS_ANYBODY, ClientAuth, TenantSettings

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
TENANTS = TenantPolicies(
    [
        TenantPolicy(
            tenant="demo",
            agents=["echo"],
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
    """Every dialect's rejection codec, and the codecs of its connect plans."""
    found = [dialect.rejection_codec for dialect in REGISTRY.dialects]
    for text in CONNECTS:
        plan = plan_for(parse_request(text))
        if plan is not None:
            found.append(plan.codec)
    by_repr = {f"{type(codec).__name__} {codec.name} {codec!r}": codec for codec in found}
    return [by_repr[key] for key in sorted(by_repr)]


# The targets. Any exception is a bug.


def decode(data: bytes) -> None:
    """The first byte chooses the codec and the kind of message; a zero byte ends the first message."""
    number = data[0] if data else 0
    codec = CODECS[(number >> 1) % len(CODECS)]
    for payload in data[1:].split(b"\0", 1):
        try:
            decoded = codec.decode(payload, bool(number & 1))
        except FrameRefused as refused:
            frame = ServerFrame()
            frame.error.id, frame.error.message = refused.frame_id[:128], str(refused)
            check_encoding(codec, frame)
            continue
        codec = _checked(codec, decoded)


def _checked(codec: Codec, decoded: Decoded) -> Codec:
    """Check that a decoded message is well formed. Returns the codec for the next one."""
    if isinstance(decoded, SwitchCodec):
        hash(decoded.codec)
        codec, decoded = decoded.codec, decoded.decoded
    if isinstance(decoded, DirectReply):
        assert isinstance(decoded.payload, bytes)
    elif decoded is not None:
        assert decoded.WhichOneof("frame")
        assert ClientFrame.FromString(decoded.SerializeToString()) == decoded
    return codec


def encode(data: bytes) -> None:
    """The first byte chooses the codec; the rest is a serialized ServerFrame."""
    try:
        frame = ServerFrame.FromString(data[1:])
    except DecodeError:
        return
    if all(map(_is_time, _times(frame))):
        check_encoding(CODECS[(data[0] if data else 0) % len(CODECS)], frame)


def _times(message: Message) -> Iterator[Timestamp]:
    """All timestamps in a message. The contract allows valid ones only, protobuf any."""
    for field, value in message.ListFields():
        # Maps hold strings and free-form values only.
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


def check_encoding(codec: Codec, frame: ServerFrame) -> None:
    """Check that a frame can be encoded, and always to the same bytes."""
    payload = codec.encode(frame)
    assert isinstance(payload, bytes)
    assert codec.encode(frame) == payload


def connect(data: bytes) -> None:
    """A request's head, an empty line, and the client's first messages, separated by zero bytes.

    No dialect reads more than two.
    """
    request = parse_request(data.decode("latin-1"))
    plan = plan_for(request)
    if plan is None:
        return
    for payload in [*request.body.split(b"\0"), b""][:2]:
        if plan.read_first is not None:
            try:
                plan = plan.read_first(payload, False)
            except (Refused, FrameRefused):
                return
    assert plan.read_first is None
    hash(plan.codec)
    plan.opened.SerializeToString()
    TENANTS.is_open(plan.opened.address.tenant, is_local=False)
    assert signed_content(plan.token, plan.opened) is None


def plan_for(request: ParsedRequest) -> ConnectPlan | None:
    """The connect plan; None if the client is refused, or no dialect serves the path."""
    if not request.path.isascii():
        return None
    find = (REGISTRY.engine_io,) if "EIO=" in request.query else (REGISTRY.socket, REGISTRY.stream)
    found = next((match for match in (each(request.path) for each in find) if match), None)
    if found is None:
        return None
    offered = [name.strip() for name in request.headers.get("sec-websocket-protocol", "").split(",")]
    agreed = next((name for name in found.dialect.subprotocols if name in offered), None)
    refusal: Refused
    try:
        return found.dialect.connect(
            ConnectRequest(
                parameters=found.parameters,
                query=read_query(request.query),
                headers=request.headers,
                subprotocol=agreed,
                tenants=TENANTS,
            )
        )
    except Refused as refused:
        refusal = refused
    assert refusal.entry.close_code, f"{refusal.entry.code} has no close code"
    return None


def route(data: bytes) -> None:
    """A request's head, an empty line, and its body. Every RPC of the handler is refused."""
    request = parse_request(data.decode("latin-1"))
    for dialect in REGISTRY.dialects:
        for steps in _handlers(dialect, request):
            _drive(steps)


def _handlers(dialect: Dialect, request: ParsedRequest) -> list[RouteSteps]:
    try:
        query = read_query(request.query)
    except Refused:
        return []
    found = []
    for each in dialect.routes:
        parameters = each.path.match(request.path)
        if parameters is not None and each.method == request.method:
            found.append(each.handle(HttpRequest(parameters, query, request.headers, request.body, TENANTS)))
    return found


def _drive(steps: RouteSteps) -> None:
    try:
        call = next(steps)
        while True:
            assert isinstance(call, RouterCall)
            call.request.SerializeToString()
            call = steps.throw(CallRefused("UNAUTHORIZED", "Authentication failed", 401))
    except StopIteration as stop:
        reply: HttpReply = stop.value
    msgspec.json.encode(reply.body)


def exchange(data: bytes) -> None:
    """The first byte chooses the route. A body and frames follow, each behind two bytes with its length."""
    route = EXCHANGES[(data[0] if data else 0) % len(EXCHANGES)]
    body, *frames = _pieces(data[1:])
    parameters = {"tenant": "demo", "agent": "echo", "chat": "c1", "model": "echo", "completion": "r"}
    headers = {"authorization": "Bearer x", "x-conversation-id": "c1"}
    try:
        plan = route.connect(HttpRequest(parameters, [], headers, body, TENANTS))
    except Refused as refused:
        str(refused).encode()
        return
    assert isinstance(plan.codec, Exchange)
    plan.opened.SerializeToString()
    for text in frames:
        with suppress(DecodeError):
            frame = ServerFrame.FromString(text)
            if all(map(_is_time, _times(frame))):
                _answer(plan.codec, plan.codec.encode(frame))
    _answer(plan.codec, plan.codec.subscribed() + plan.codec.heartbeat())


def _pieces(data: bytes) -> list[bytes]:
    """A body, which may be empty, and the frames behind it."""
    pieces = []
    while data or not pieces:
        size = int.from_bytes(data[:2], "big")
        pieces.append(data[2 : 2 + size])
        data = data[2 + size :]
    return pieces


def _answer(exchange: Exchange, events: bytes) -> None:
    """Check what an exchange has decided on so far."""
    assert not events or events.endswith(b"\n\n")
    if exchange.answer is not None and exchange.answer.status != 204:
        msgspec.json.encode(exchange.answer.body)
    while exchange.requests:
        _checked(exchange, exchange.decode(b""))


def token(data: bytes) -> None:
    """The first byte chooses the algorithm, and whether a token follows or content to sign.

    Content to sign is the header and the payload, separated by a zero byte.
    """
    number = data[0] if data else 0
    algorithms = list(token_corpus.PRIVATE)
    if number & 1:
        header, _, payload = data[1:].partition(b"\0")
        text = token_corpus.sign(header, payload, algorithms[(number >> 1) % len(algorithms)])
    else:
        text = data[1:].decode("latin-1")
    content = signed_content(text, ConnectionOpened(user="ann"))
    assert number & 1 or content is None or content in token_corpus.SIGNED, "a token was forged"


def signed_content(text: str, opened: ConnectionOpened) -> str | None:
    """Verify a token and return its signed content; None if it is refused."""
    try:
        principal = verify(text, token_corpus.TENANT, token_corpus.AUTH, KEYS, token_corpus.NOW_S)
    except (Refused, UnknownKey) as refused:
        str(refused).encode()
        return None
    principal.grants().SerializeToString()
    with suppress(Refused):
        principal.authorize(opened)
    return text.rpartition(".")[0]


TARGETS: dict[str, Callable[[bytes], None]] = {
    "decode": decode,
    "encode": encode,
    "connect": connect,
    "route": route,
    "exchange": exchange,
    "verify": token,
}
CODECS = codecs()
EXCHANGES = [route for dialect in REGISTRY.dialects for route in dialect.exchanges]
KEYS = inline_keys(token_corpus.AUTH)


if __name__ == "__main__":
    atheris.Setup([sys.argv[0], *sys.argv[2:]], TARGETS[sys.argv[1]])
    atheris.Fuzz()
