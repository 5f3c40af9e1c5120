"""Frames that wait for uploads: in order, counted, and rejected if an upload is missing."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from trunkline.v1 import catalogue
from trunkline.v1.edge_service_pb2 import ConnectionOpened
from trunkline.v1.tenant_pb2 import TenantLimits
from trunkline_edge.core.connection import Connection
from trunkline_edge.core.edge import EdgeCore
from trunkline_edge.core.effects import FetchUploads
from trunkline_edge.core.rate_limits import ConnectionRateLimiter, TenantRateLimiter
from trunkline_edge.core.upload_frames import FetchedUpload
from trunkline_edge.dialects.codec import UsesUploads
from trunkline_edge.dialects.langbot.chat_codec import LangBotCodec

from tests.edge.core.core_harness import connected, deliver, forwarded, group, join, linked_core, taken, topic

KEY = "0" * 48
NOW = datetime(2026, 1, 1, tzinfo=UTC)
PICTURE = FetchedUpload(b"picture", "image/png")


@dataclass
class Chat:
    """A LangBot client of tenant `t`."""

    core: EdgeCore
    client: Connection

    def say(self, *paths: str, text: str = "") -> None:
        chain: list[Any] = [{"type": "Image", "path": path} for path in paths]
        chain += [{"type": "Plain", "text": text}] if text else []
        self.core.client_frames.received(self.client, json.dumps({"message": chain}).encode())

    def fetches(self) -> list[UsesUploads]:
        found = [effect.awaited for effect in self.core.effects if isinstance(effect, FetchUploads)]
        self.core.effects.clear()
        return found

    def sent(self) -> list[list[str]]:
        """Messages that went to the router, as the content of their parts."""
        entries = [entry for one in taken(self.core.uplink) for entry in one.entries]
        messages = [entry.frame.frame.message for entry in entries if entry.HasField("frame")]
        return [
            [part.text.text or part.image.inline.decode() or part.image.storage_key for part in message.parts]
            for message in messages
        ]

    def errors(self) -> list[str]:
        data, self.client.pending = b"".join(self.client.pending), []
        return [part.split(b'"}')[0].decode() for part in data.split(b'"message":"')[1:]]


@pytest.fixture
def chat() -> Chat:
    core = linked_core()
    pace = TenantRateLimiter("t", TenantLimits(frame_bytes=1 << 20, connection_bytes_per_s=1 << 20))
    codec = LangBotCodec("person", lambda: NOW)
    opened = ConnectionOpened(address=group("team"))
    client = core.sessions.open(codec, opened, 0, ConnectionRateLimiter(pace))
    deliver(core, topic(1, "team"), connected(client), join(client, 1))
    client.pending.clear()
    core.effects.clear()
    forwarded(core)
    return Chat(core, client)


def test_frames_behind_a_message_with_uploads_keep_their_place(chat: Chat) -> None:
    chat.say(f"t/{KEY}.png", text="look")
    chat.say(text="behind")
    [awaited] = chat.fetches()
    assert [(reference.tenant, reference.key) for reference in awaited.references] == [("t", KEY)]
    assert (chat.sent(), chat.client.reading_paused) == ([], True)
    chat.core.client_frames.uploads.fetched(chat.client, awaited, [PICTURE], 0)
    assert chat.sent() == [["picture", "look"], ["behind"]]
    assert not chat.client.reading_paused


def test_a_frame_behind_one_that_waits_may_wait_for_uploads_as_well(chat: Chat) -> None:
    chat.say(f"t/{KEY}.png")
    chat.say(f"t/{KEY}.gif")
    chat.say(text="last")
    frames = chat.core.client_frames.uploads
    [first] = chat.fetches()
    frames.fetched(chat.client, first, [PICTURE], 0)
    [second] = chat.fetches()
    frames.failed(chat.client, catalogue.MEDIA_NOT_FOUND.refused(key=KEY), 0)
    assert second.references[0].key == KEY
    assert chat.sent() == [["picture"], ["last"]]
    assert chat.errors() == [f"There is no upload {KEY}, or no longer; upload the file again"]


def test_another_tenants_upload_is_not_fetched(chat: Chat) -> None:
    chat.say(f"other/{KEY}.png")
    chat.say(f"t/{KEY}.png", f"other/{KEY}.png")
    assert (chat.fetches(), chat.sent(), len(chat.errors())) == ([], [], 2)
    # Names of other stores are passed on.
    chat.say("store/1.png", f"t/{KEY[1:]}.png")
    assert chat.sent() == [["store/1.png", f"t/{KEY[1:]}.png"]]


def test_an_upload_counts_like_bytes_of_the_client(chat: Chat) -> None:
    large = FetchedUpload(b"x" * (8 << 20), "image/png")
    for _ in range(2):
        chat.say(f"t/{KEY}.png")
        for awaited in chat.fetches():
            chat.core.client_frames.uploads.fetched(chat.client, awaited, [large], 0)
    assert len(chat.sent()) == 1
    [error] = chat.errors()
    assert "Rate limit exceeded" in error
    assert chat.client.reading_paused


def test_a_client_that_left_gets_nothing(chat: Chat) -> None:
    chat.say(f"t/{KEY}.png")
    [awaited] = chat.fetches()
    chat.core.gone(chat.client)
    chat.core.client_frames.uploads.fetched(chat.client, awaited, [PICTURE], 0)
    chat.core.client_frames.uploads.failed(chat.client, catalogue.ROUTER_UNAVAILABLE.refused(), 0)
    assert chat.sent() == []
