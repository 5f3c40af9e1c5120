"""Failures of agents in the dialects: a reply that failed at once has a text, retries show nothing."""

from __future__ import annotations

import pytest
from google.protobuf import text_format
from trunkline.v1.frame_pb2 import ServerFrame
from trunkline_edge.dialects.codec import Codec

from tests.edge.dialects.test_langbot_frames import CODEC as LANGBOT
from tests.edge.dialects.test_maim_api_frames import CODEC as MAIM_API
from tests.edge.dialects.test_maim_frames import CODEC as MAIM
from tests.edge.dialects.test_maim_router_frames import CODEC as MAIM_ROUTER

CODECS = [LANGBOT, MAIM, MAIM_API, MAIM_ROUTER]
FAILED = """
message {
  id: "x-6" reply_to: "x-5" author { role: ROLE_AGENT name: "helper" }
  address { tenant: "acme" agent: "helper" platform: "qq"
            conversation { kind: CONVERSATION_KIND_PERSON id: "u" } }
  position { epoch: "e" seq: 6 } created_at { seconds: 1767323045 }
  state: MESSAGE_STATE_FAILED error { code: "AGENT_FAILED" message: "No credit left" }
}
"""
RETRYING = """
reply_status { message_id: "x-5" address { tenant: "acme" } status: REPLY_STATUS_RETRYING attempts: 1 }
"""


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_a_failed_reply_without_content_shows_the_text_for_readers(codec: Codec) -> None:
    assert b'"No credit left"' in codec.encode(text_format.Parse(FAILED, ServerFrame()))


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_other_protocols_have_no_frame_for_retries(codec: Codec) -> None:
    assert codec.encode(text_format.Parse(RETRYING, ServerFrame())) == b""
