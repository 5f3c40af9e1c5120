"""The options of client frames are complete and agree with the frames' fields and comments."""

from __future__ import annotations

import pytest
from trunkline.v1.access_pb2 import RIGHT_UNSPECIFIED, Right
from trunkline.v1.comments import COMMENTS
from trunkline.v1.frame_pb2 import ClientFrame, ServerFrame, frame_rule
from trunkline.v1.frames import CLIENT_FRAMES, RIGHTS, SERVER_FRAMES

CLIENT_FIELDS = ClientFrame.DESCRIPTOR.fields_by_name
SERVER_FIELDS = ServerFrame.DESCRIPTOR.fields_by_name


def test_every_frame_has_a_rule() -> None:
    assert list(CLIENT_FRAMES) == [field.name for field in ClientFrame.DESCRIPTOR.fields]
    assert list(SERVER_FRAMES) == [field.name for field in ServerFrame.DESCRIPTOR.fields]


@pytest.mark.parametrize("frame", CLIENT_FRAMES)
def test_each_client_frame_states_its_rule(frame: str) -> None:
    assert CLIENT_FIELDS[frame].GetOptions().HasExtension(frame_rule)
    rule = CLIENT_FRAMES[frame]
    assert rule.right in Right.values()
    assert not rule.answer or rule.answer in SERVER_FIELDS


@pytest.mark.parametrize("frame", CLIENT_FRAMES)
def test_a_frame_needs_an_id_exactly_if_its_comment_requires_one(frame: str) -> None:
    comment = COMMENTS.get(f"{CLIENT_FIELDS[frame].message_type.name}.id", "")
    assert CLIENT_FRAMES[frame].needs_id is ("Limits: 1 to 128 characters" in comment)


@pytest.mark.parametrize("frame", [name for name, rule in CLIENT_FRAMES.items() if rule.answer])
def test_an_answer_carries_the_id_of_its_request(frame: str) -> None:
    for fields in (CLIENT_FIELDS[frame], SERVER_FIELDS[CLIENT_FRAMES[frame].answer]):
        assert "id" in fields.message_type.fields_by_name


@pytest.mark.parametrize("frame", CLIENT_FRAMES)
def test_the_comment_of_a_client_frame_names_its_answer(frame: str) -> None:
    answer = CLIENT_FRAMES[frame].answer
    if answer:
        assert f"`{answer}`" in COMMENTS[f"ClientFrame.{frame}"]


def test_requests_are_the_frames_that_the_router_answers_by_id() -> None:
    requests = {name for name, rule in CLIENT_FRAMES.items() if rule.is_request}
    assert requests == {"message", "subscribe", "unsubscribe", "history", "cancel", "edit", "recall"}
    entries = {name for name, rule in CLIENT_FRAMES.items() if rule.is_log_entry}
    assert entries == {"message", "edit", "recall"}


def test_server_frames_that_answer_and_that_start_a_replay_are_derived() -> None:
    answers = {name for name, rule in SERVER_FRAMES.items() if rule.is_answer}
    assert answers == {"ack", "subscribed", "unsubscribed", "history", "cancelled", "error"}
    replays = {name for name, rule in SERVER_FRAMES.items() if rule.starts_replay}
    assert replays == {"connected", "subscribed"}


def test_rights_have_the_names_that_tokens_use() -> None:
    assert dict(RIGHTS) == {
        name.removeprefix("RIGHT_").lower(): value for name, value in Right.items() if value
    }
    needed = {rule.right for rule in CLIENT_FRAMES.values()}
    assert needed - {RIGHT_UNSPECIFIED} == set(RIGHTS.values())
