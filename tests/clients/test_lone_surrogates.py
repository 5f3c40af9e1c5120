"""Half of an emoji in text of workers and backends is joined with its other half, or replaced."""

from __future__ import annotations

import logging
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trunkline.v1.message_pb2 import MESSAGE_STATE_COMPLETE, MESSAGE_STATE_FAILED
from trunkline_client import Failed, Message, RetryLater, builders
from trunkline_client.reader_errors import error_for_readers
from trunkline_client.settlement import settlement_for_result
from trunkline_client.well_formed import TextJoiner, well_formed

from tests.clients.scripted_worker import attached, read_settlement
from tests.clients.test_open_message import ALICE, backend, end, text_written

HIGH, LOW, EMOJI = "\ud83d", "\ude00", "\U0001f600"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("plain", "plain"),
        ("\u00e9 " + EMOJI, "\u00e9 " + EMOJI),
        (HIGH + LOW, EMOJI),
        ("a" + HIGH, "a\ufffd"),
        (LOW + "b", "\ufffdb"),
        (HIGH + HIGH + LOW + LOW, "\ufffd" + EMOJI + "\ufffd"),
        ("\udcff", "\ufffd"),
    ],
)
def test_halves_are_joined_or_replaced(text: str, expected: str) -> None:
    assert well_formed(text) == expected


PIECES = st.lists(st.text(st.sampled_from([HIGH, LOW, EMOJI, "a", "\u00e9"]), max_size=4), max_size=6)


@given(PIECES)
def test_text_in_pieces_is_the_text_in_one(pieces: list[str]) -> None:
    joiner = TextJoiner()
    written = [joiner.add(piece) for piece in pieces]
    written.append(joiner.end())
    assert "".join(written) == well_formed("".join(pieces))
    assert not re.search("[\ud800-\udfff]", "".join(written))


async def test_an_emoji_cut_between_two_writes_arrives_whole() -> None:
    async with backend() as (router, ours):
        async with ours.open_message(ALICE) as out:
            await out.write("a" + HIGH)
            assert out.text == "a"
            await out.write(LOW + "b" + HIGH)
        assert text_written(router) == f"a{EMOJI}b\ufffd"
        assert out.text == f"a{EMOJI}b\ufffd"
        assert end(router).state == MESSAGE_STATE_COMPLETE


async def test_half_an_emoji_before_something_else_is_replaced_in_its_place() -> None:
    async with backend() as (router, ours):
        async with ours.open_message(ALICE) as out:
            await out.write("a" + HIGH)
            await out.write_reasoning(LOW + "why" + HIGH)
            await out.add(builders.text("part")[0])
            await out.write("b" + HIGH)
        parts = [part.reasoning.text or part.text.text for part in out.message.parts]
        assert parts == ["a\ufffd", "\ufffdwhy\ufffd", "partb\ufffd"]
        assert text_written(router) == "a\ufffdb\ufffd"


async def test_an_exception_with_half_an_emoji_in_its_text_ends_the_message_failed() -> None:
    async with backend() as (router, ours):

        async def write() -> None:
            async with ours.open_message(ALICE) as out:
                await out.write("a" + HIGH)
                raise Failed("no " + HIGH)

        with pytest.raises(Failed):
            await write()
        assert (end(router).state, end(router).error.message) == (MESSAGE_STATE_FAILED, "no \ufffd")
        assert text_written(router) == "a\ufffd"


async def test_a_worker_whose_text_or_error_has_half_an_emoji_answers_and_works_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The worker logs the exception, and pytest-xdist cannot send a report with the half in it.
    monkeypatch.setattr(logging.getLogger("trunkline_client"), "disabled", True)
    async with attached() as (worker, _, side):

        @worker.handler
        async def answer(message: Message) -> str:
            if message.id == "m1":
                return "a" + HIGH
            if message.id == "m2":
                raise LookupError("no " + HIGH)
            raise RetryLater(1, "later " + LOW)

        await side.deliver(1)
        assert (await read_settlement(side)).replies[0].parts[0].text.text == "a\ufffd"
        await side.deliver(2)
        assert (await read_settlement(side)).retry.reason == "LookupError: no \ufffd"
        await side.deliver(3)
        assert (await read_settlement(side)).retry.reason == "later \ufffd"


def test_text_of_every_other_call_is_replaced() -> None:
    assert builders.parts("a" + HIGH)[0].text.text == "a\ufffd"
    replies = settlement_for_result(1, ["a" + HIGH, LOW]).replies
    assert [reply.parts[0].text.text for reply in replies] == ["a\ufffd", "\ufffd"]
    assert error_for_readers(Failed(HIGH)).message == "\ufffd"
