"""Rules for WebSocket frames, read from the options in frame.proto.

    CLIENT_FRAMES["message"]      # ClientFrameRule(right=RIGHT_PUBLISH, answer="ack", needs_id=True, …)
    SERVER_FRAMES["subscribed"]   # ServerFrameRule(is_answer=True, starts_replay=True)

Keys are the names of the fields of `ClientFrame` and `ServerFrame`, as `WhichOneof("frame")` returns them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from trunkline.v1.access_pb2 import RIGHT_UNSPECIFIED, Right
from trunkline.v1.frame_pb2 import ClientFrame, ServerFrame, frame_rule


class ClientFrameRule(NamedTuple):
    """Rule for one kind of client frame; see `FrameRule` in frame.proto."""

    #: Permission that the sender's token must grant; RIGHT_UNSPECIFIED if none is needed.
    right: Right.ValueType
    #: Server frame that answers the frame, with the same `id`; empty if there is none.
    answer: str
    #: The frame must carry an `id`.
    needs_id: bool
    #: The edge handles the frame; it never crosses the link as a `ConnectionFrame`.
    handled_by_edge: bool

    @property
    def is_forwarded(self) -> bool:
        """The edge forwards the frame to the router."""
        return not self.handled_by_edge

    @property
    def is_request(self) -> bool:
        """The router answers the frame, with `answer` or `error` and the same `id`."""
        return self.is_forwarded and self.needs_id and bool(self.answer)

    @property
    def is_log_entry(self) -> bool:
        """The frame becomes an entry of a topic's log once it is acknowledged."""
        return self.answer == "ack"


class ServerFrameRule(NamedTuple):
    """Rule for one kind of server frame, derived from the client frames and from its own fields."""

    #: The router's answer to a request, matched by `id`: each ends one unanswered request.
    is_answer: bool
    #: The frame names positions (`recovered`), and the messages missed since then follow it.
    starts_replay: bool


def _client_frames() -> dict[str, ClientFrameRule]:
    rules = {}
    for field in ClientFrame.DESCRIPTOR.oneofs_by_name["frame"].fields:
        rule = field.GetOptions().Extensions[frame_rule]
        rules[field.name] = ClientFrameRule(rule.right, rule.answer, rule.needs_id, rule.handled_by_edge)
    return rules


def _server_frames() -> dict[str, ServerFrameRule]:
    answers = {rule.answer for rule in CLIENT_FRAMES.values() if rule.is_request} | {"error"}
    return {
        field.name: ServerFrameRule(
            is_answer=field.name in answers,
            starts_replay=field.message_type is not None and "recovered" in field.message_type.fields_by_name,
        )
        for field in ServerFrame.DESCRIPTOR.oneofs_by_name["frame"].fields
    }


#: Each kind of client frame with its rule.
CLIENT_FRAMES: Final[Mapping[str, ClientFrameRule]] = MappingProxyType(_client_frames())

#: Each kind of server frame with its rule.
SERVER_FRAMES: Final[Mapping[str, ServerFrameRule]] = MappingProxyType(_server_frames())

#: Permissions by the name that tokens and error messages use, such as `publish`.
RIGHTS: Final[Mapping[str, Right.ValueType]] = MappingProxyType(
    {
        name.removeprefix("RIGHT_").lower(): value
        for name, value in Right.items()
        if value != RIGHT_UNSPECIFIED
    }
)
