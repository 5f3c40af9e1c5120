"""Streams as a router has them, and clients that know only what they receive."""

from __future__ import annotations

import json

from google.protobuf.json_format import ParseDict
from trunkline.v1.frame_pb2 import DeltaFrame, ServerFrame
from trunkline.v1.message_pb2 import CHANGE_KIND_ENDED, MESSAGE_STATE_OPEN, Message
from trunkline_edge.core.connection import Connection
from trunkline_edge.dialects.codec import Codec, Framing, StreamingMode

from tests.edge.core.core_harness import open_message, parsed
from tests.edge.core.snapshot_codec import WAYS, Shown, text_of

#: Each token of a stream begins with its kind.
KINDS = {"text": "t", "reasoning": "r", "part": "p"}


class StreamReader:
    """Assembles messages. Fails if a delta does not fit, or could have been shorter or joined."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        #: By message: its tokens so far, and the index of the next.
        self.texts: dict[str, str] = {}
        self.next: dict[str, int] = {}
        self.last_write: list[str] = []
        self._last = ""
        self._seqs: dict[str, int] = {}

    def read(self, data: bytes) -> set[str]:
        """Read everything written at once; return the types of the frames."""
        frames = [self._frame(bytes(each.data)) for each in parsed(data)]
        kinds = set()
        self.last_write = []
        for frame in frames:
            kind = frame.WhichOneof("frame") or ""
            kinds.add(kind)
            self.last_write.append(kind)
            if kind == "message":
                self._message(frame.message)
            elif kind == "delta":
                self._delta(frame.delta)
            elif kind == "change" and frame.change.kind == CHANGE_KIND_ENDED:
                self.last_write[-1] = f"ended {frame.change.message_id}"
        return kinds

    def _frame(self, payload: bytes) -> ServerFrame:
        if self._codec.framing is Framing.BINARY:
            return ServerFrame.FromString(payload)
        return from_json(payload)

    def _message(self, message: Message) -> None:
        name, seq = message.address.conversation.id, message.position.seq
        if message.state == MESSAGE_STATE_OPEN:
            self.texts[message.id] = message.parts[0].text.text.lstrip()
            self.next[message.id] = message.next_index
            self._last = message.id
        else:
            assert seq > self._seqs.get(name, 0)
            self._seqs[name] = seq

    def _delta(self, delta: DeltaFrame) -> None:
        if delta.message_id:
            assert (delta.message_id, delta.index) != (self._last, self.next.get(self._last))
            self._last = delta.message_id
            assert delta.index == self.next[self._last]
        else:
            assert not delta.index
        kind = delta.WhichOneof("content") or ""
        text = delta.part.tool_call.arguments if kind == "part" else getattr(delta, kind)
        tokens = text.split()
        assert [token[0] for token in tokens] == [KINDS[kind]] * len(tokens)
        assert kind != "part" or len(tokens) == 1
        self.texts[self._last] += text
        self.next[self._last] += len(tokens)


class ShownReader:
    """Records received messages. Fails if one never had this form, or comes twice."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.next: dict[str, int] = {}
        self.last_write: list[str] = []
        self.ended: set[str] = set()
        #: Messages that were open when it asked to be shown those: it is, once something is added.
        self.unshown: set[str] = set()
        self._seqs: dict[str, int] = {}

    def read(self, data: bytes) -> set[str]:
        """Read everything written at once; return the types of the frames."""
        kinds = set()
        self.last_write = []
        for each in parsed(data):
            assert each.data, "an empty frame"
            if bytes(each.data) in WAYS:
                continue
            frame = ServerFrame.FromString(bytes(each.data))
            kind = frame.WhichOneof("frame") or ""
            assert kind not in ("delta", "change")
            kinds.add(kind)
            if kind == "message":
                self._message(frame.message)
        return kinds

    def _message(self, message: Message) -> None:
        if not message.id:
            name, seq = message.address.conversation.id, message.position.seq
            assert seq > self._seqs.get(name, 0)
            self._seqs[name] = seq
            return
        assert message.id not in self.ended
        assert message.next_index >= self.next.get(message.id, 0)
        self.texts[message.id] = text_of(message).lstrip()
        self.next[message.id] = message.next_index
        self.unshown.discard(message.id)
        if message.state != MESSAGE_STATE_OPEN:
            self.ended.add(message.id)
            self.last_write.append(f"ended {message.id}")


def from_json(payload: bytes) -> ServerFrame:
    """Parse a frame of the JSON form; None for kinds that do not matter here."""
    fields = json.loads(payload)
    kind = fields.pop("type")
    if kind == "delta" and "part" in fields:
        part = fields["part"]
        fields["part"] = {part.pop("type"): part}
    elif kind == "message":
        fields["parts"] = [{part.pop("type"): part} for part in fields["parts"]]
        fields["state"] = f"MESSAGE_STATE_{fields['state'].upper()}" if "state" in fields else 0
        fields["address"]["conversation"]["kind"] = "CONVERSATION_KIND_GROUP"
    elif kind == "change":
        fields = {"message_id": fields["message_id"], "kind": f"CHANGE_KIND_{fields['kind'].upper()}"}
    elif kind in ("connected", "ack", "pong", "subscribed", "unsubscribed"):
        fields = {}
    return ParseDict({kind: fields}, ServerFrame())


class Stream:
    """A message as the router has it: one token per delta."""

    def __init__(self, ident: str, name: str, seq: int) -> None:
        self.ident, self.name, self.seq = ident, name, seq
        self.tokens: list[str] = []
        #: When each token was published; tokens known from snapshots only have no time.
        self.times: dict[int, float] = {}
        self.is_open = True

    def add(self, kind: str) -> str:
        token = f"{kind}{len(self.tokens)} "
        self.tokens.append(token)
        return token

    def snapshot(self) -> ServerFrame:
        text = "".join(self.tokens) or " "
        snapshot = open_message(self.name, self.ident, text, len(self.tokens), self.seq)
        return ServerFrame(message=snapshot)


class Client:
    """A connection, its reader, and its topics."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        codec = connection.codec
        self.reader = ShownReader() if isinstance(codec, Shown) else StreamReader(codec)
        self.hears: set[str] = set()
        #: Messages of the topics it hears that were open while it did.
        self.follows: set[str] = set()

    @property
    def reads_along(self) -> set[str]:
        """Return those of these that its codec streams."""
        if not isinstance(self.reader, ShownReader):
            return self.follows
        if self.connection.codec.streaming is StreamingMode.COMPLETE:
            return self.follows & self.reader.ended
        return self.follows - self.reader.unshown
