"""A request for every RPC of the contract, and calls by gRPC and HTTP."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import grpc
import httpx
from google.protobuf.json_format import MessageToDict
from google.protobuf.message_factory import GetMessageClass
from trunkline.v1.agent_service_pb2 import (
    AttachHello,
    AttachRequest,
    ListDeadLettersRequest,
    ReplayDeadLettersRequest,
)
from trunkline.v1.audit_service_pb2 import ListAuditEntriesRequest
from trunkline.v1.broadcast_service_pb2 import (
    BroadcastManyRequest,
    BroadcastRequest,
    CancelMessageRequest,
    CancelRepliesRequest,
    EndMessageRequest,
    ExtendMessageRequest,
    NumberedBroadcast,
    OpenMessageRequest,
)
from trunkline.v1.catalogue import CONTRACT_MINOR
from trunkline.v1.edge_service_pb2 import LinkHello, LinkRequest
from trunkline.v1.history_service_pb2 import (
    EditMessageRequest,
    GetMessageRequest,
    ListMessagesRequest,
    ListReceiptsRequest,
    MarkReadRequest,
    RecallMessageRequest,
    ResetConversationRequest,
)
from trunkline.v1.media_service_pb2 import GetMediaRequest, UploadMediaRequest
from trunkline.v1.message_pb2 import MESSAGE_STATE_COMPLETE, Delta, Part, TextPart
from trunkline.v1.presence_service_pb2 import (
    CloseConnectionsRequest,
    CountConnectionsRequest,
    GetStatsRequest,
    ListConnectionsRequest,
    ListTopicsRequest,
    WatchConnectionsRequest,
)
from trunkline.v1.tenant_pb2 import Retention, TenantLimits, TenantSettings
from trunkline.v1.tenant_service_pb2 import (
    CreateApiKeyRequest,
    CreateTenantRequest,
    DeleteTenantRequest,
    EraseUserRequest,
    GetTenantRequest,
    ListApiKeysRequest,
    ListRevocationsRequest,
    ListTenantsRequest,
    ResumeTenantRequest,
    RevokeApiKeyRequest,
    RevokeTokensRequest,
    SuspendTenantRequest,
    UpdateTenantRequest,
)
from trunkline_edge.http.bindings import Binding, bindings, services

from tests.e2e.grpc_backend import TIMEOUT_S, address, reason_of
from tests.e2e.rejections import parse_rejection
from tests.e2e.twin_tenants import AGENT, USER, TwinTenant

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.descriptor import MethodDescriptor
    from google.protobuf.message import Message

METHODS: dict[str, MethodDescriptor] = {m.name: m for s in services() for m in s.methods}
HTTP: dict[str, Binding] = {binding.method.name: binding for binding in bindings()}


class CallContext(NamedTuple):
    """Addressed tenant, source of ids and caller of a request; each is either of the two tenants."""

    tenant: str
    ids: TwinTenant
    #: Calling tenant, whose words are sent.
    by: TwinTenant

    def to(self, place: str = "/echo/web/group:room") -> Any:
        return address(f"{self.tenant}{place}")

    @property
    def parts(self) -> list[Part]:
        return [Part(text=TextPart(text=self.by.words))]


_SETTINGS = TenantSettings(
    limits=TenantLimits(connections=50, conversations=7), retention=Retention(max_messages=1000)
)

#: RPCs with a single request.
REQUESTS: dict[str, Callable[[CallContext], Message]] = {
    "Broadcast": lambda a: BroadcastRequest(
        address=a.to(), parts=a.parts, idempotency_key=f"k{a.by.fences}", author={"user": USER}
    ),
    "OpenMessage": lambda a: OpenMessageRequest(
        address=a.to(), key=a.ids.open_key if a.ids is not a.by else f"k{a.by.fences}"
    ),
    "ExtendMessage": lambda a: ExtendMessageRequest(
        tenant=a.tenant,
        message_id=a.ids.open_id,
        epoch=a.ids.open_epoch,
        deltas=[Delta(index=0, text=a.by.words)],
    ),
    "EndMessage": lambda a: EndMessageRequest(
        tenant=a.tenant, message_id=a.ids.open_id, epoch=a.ids.open_epoch, state=MESSAGE_STATE_COMPLETE
    ),
    "CancelMessage": lambda a: CancelMessageRequest(tenant=a.tenant, message_id=a.ids.open_id),
    "CancelReplies": lambda a: CancelRepliesRequest(address=a.to(), client_id=a.ids.asked_key),
    "ListMessages": lambda a: ListMessagesRequest(address=a.to(), after=a.ids.position),
    "GetMessage": lambda a: GetMessageRequest(tenant=a.tenant, message_id=a.ids.message_id),
    "EditMessage": lambda a: EditMessageRequest(tenant=a.tenant, message_id=a.ids.message_id, parts=a.parts),
    "RecallMessage": lambda a: RecallMessageRequest(tenant=a.tenant, message_id=a.ids.message_id),
    "ListReceipts": lambda a: ListReceiptsRequest(address=a.to()),
    "MarkRead": lambda a: MarkReadRequest(address=a.to(), position=a.ids.position, user=USER),
    "ResetConversation": lambda a: ResetConversationRequest(address=a.to()),
    "ListConnections": lambda a: ListConnectionsRequest(address=a.to("")),
    "CountConnections": lambda a: CountConnectionsRequest(address=a.to("/user:ann")),
    "ListTopics": lambda a: ListTopicsRequest(address=a.to("/echo")),
    "GetStats": lambda a: GetStatsRequest(tenant=a.tenant),
    "CloseConnections": lambda a: CloseConnectionsRequest(address=a.to(""), reason="close"),
    "ListDeadLetters": lambda a: ListDeadLettersRequest(tenant=a.tenant, agent=AGENT),
    "ReplayDeadLetters": lambda a: ReplayDeadLettersRequest(
        tenant=a.tenant, agent=AGENT, delivery_ids=[a.ids.dead_letter]
    ),
    "ListAuditEntries": lambda a: ListAuditEntriesRequest(tenant=a.tenant),
    "CreateTenant": lambda a: CreateTenantRequest(
        tenant=a.tenant if a.tenant != a.by.name else f"{a.tenant}-{a.by.fences}", settings=_SETTINGS
    ),
    "GetTenant": lambda a: GetTenantRequest(tenant=a.tenant),
    "ListTenants": lambda a: ListTenantsRequest(),
    "UpdateTenant": lambda a: UpdateTenantRequest(
        tenant=a.tenant, settings=_SETTINGS, update_mask={"paths": ["limits", "retention"]}
    ),
    "SuspendTenant": lambda a: SuspendTenantRequest(tenant=a.tenant),
    "ResumeTenant": lambda a: ResumeTenantRequest(tenant=a.tenant),
    "DeleteTenant": lambda a: DeleteTenantRequest(tenant=a.tenant),
    "CreateApiKey": lambda a: CreateApiKeyRequest(tenant=a.tenant, name="one more", scopes=[1, 5]),
    "ListApiKeys": lambda a: ListApiKeysRequest(tenant=a.tenant),
    "RevokeApiKey": lambda a: RevokeApiKeyRequest(tenant=a.tenant, key_id=a.ids.spare_id),
    "RevokeTokens": lambda a: RevokeTokensRequest(tenant=a.tenant, user=USER),
    "ListRevocations": lambda a: ListRevocationsRequest(tenant=a.tenant),
    "EraseUser": lambda a: EraseUserRequest(tenant=a.tenant, user=USER),
    "UploadMedia": lambda a: UploadMediaRequest(
        tenant=a.tenant, content=a.by.words.encode(), mime_type="image/png"
    ),
    "GetMedia": lambda a: GetMediaRequest(tenant=a.tenant, key=a.ids.upload_key),
}

#: First requests of streaming RPCs.
STREAMS: dict[str, Callable[[CallContext], Message]] = {
    "BroadcastMany": lambda a: BroadcastManyRequest(
        requests=[NumberedBroadcast(number=1, request=BroadcastRequest(address=a.to(), parts=a.parts))]
    ),
    "Attach": lambda a: AttachRequest(
        hello=AttachHello(tenant=a.tenant, agents=[AGENT], capacity=9, contract_minor=CONTRACT_MINOR)
    ),
    "WatchConnections": lambda a: WatchConnectionsRequest(address=a.to("")),
    "Link": lambda a: LinkRequest(hello=LinkHello(edge_id="edge-1", contract_minor=CONTRACT_MINOR)),
}


class Outcome(NamedTuple):
    """Error code of a rejected call, or the response."""

    code: str
    answer: str


def call_by_grpc(
    router: grpc.Channel, rpc: str, request: Message, metadata: list[tuple[str, str]]
) -> Outcome:
    """Call by gRPC; of a response stream only the first response is read."""
    method = METHODS[rpc]
    streaming = (method.client_streaming, method.server_streaming)
    kind = "_".join("stream" if streams else "unary" for streams in streaming)
    stub = getattr(router, kind)(
        f"/{method.containing_service.full_name}/{method.name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )
    try:
        if not method.server_streaming:
            return Outcome("", str(stub(request, metadata=metadata, timeout=TIMEOUT_S)))
        asked = iter([request]) if method.client_streaming else request
        answers = stub(asked, metadata=metadata, timeout=TIMEOUT_S)
        answer = str(next(answers, ""))
        answers.cancel()
        return Outcome("", answer)
    except grpc.RpcError as error:
        return Outcome(reason_of(error) or str(error), str(error))


def call_by_http(edge: httpx.Client, rpc: str, request: Message, metadata: list[tuple[str, str]]) -> Outcome:
    """Call by HTTP."""
    binding = HTTP[rpc]
    fields = MessageToDict(request, preserving_proto_field_name=True)
    if "update_mask" in fields:
        fields["update_mask"] = ",".join(request.update_mask.paths)  # type: ignore[attr-defined]
    path = re.sub(r"\{([\w.]+)\}", lambda found: quote(_pop(fields, found[1]), safe=""), binding.template)
    if binding.has_body:
        response = edge.request(binding.http_method, path, json=fields, headers=dict(metadata))
    else:
        query = dict(_flat(fields))
        response = edge.request(binding.http_method, path, params=query, headers=dict(metadata))
    if response.is_success:
        return Outcome("", response.text)
    return Outcome(
        parse_rejection(response.status_code, response.headers, response.json()).code, response.text
    )


def _pop(fields: dict[str, Any], name: str) -> str:
    *path, last = name.split(".")
    for step in path:
        fields = fields[step]
    return str(fields.pop(last))


def _flat(fields: dict[str, Any], prefix: str = "") -> Any:
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value)
