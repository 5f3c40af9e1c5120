"""Dispatching of client frames by the rules of the contract."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from trunkline.v1.frame_pb2 import ClientFrame
from trunkline.v1.frames import CLIENT_FRAMES
from trunkline_router.core.clients.frame_dispatcher import FrameDispatcher

from tests.router.core.harness.router import ALICE, Router

FORWARDED = [kind for kind, rule in CLIENT_FRAMES.items() if rule.is_forwarded]


def handlers(*kinds: str) -> Any:
    """Return an object that handles frames of these kinds."""
    return SimpleNamespace(**{f"handle_{kind}": lambda received: None for kind in kinds})


def test_every_frame_that_the_contract_forwards_needs_exactly_one_handler() -> None:
    outbox = Router().core.client_outbox
    FrameDispatcher(outbox, [handlers(*FORWARDED[:3]), handlers(*FORWARDED[3:])])
    with pytest.raises(ValueError, match="unpack"):
        FrameDispatcher(outbox, [handlers(*FORWARDED[1:])])
    with pytest.raises(ValueError, match="unpack"):
        FrameDispatcher(outbox, [handlers(*FORWARDED), handlers(FORWARDED[0])])


@pytest.mark.parametrize("frame", [ClientFrame(), ClientFrame(ping={"id": "p"})])
def test_a_frame_that_is_not_forwarded_is_rejected(frame: ClientFrame) -> None:
    router = Router()
    client = router.connected(ALICE)
    client.edge.say(client, frame)
    router.run()
    assert client.last("error").code == "UNKNOWN_FRAME_TYPE"


@pytest.mark.parametrize("kind", [kind for kind in FORWARDED if kind not in ("history", "signal")])
def test_an_error_repeats_the_id_of_its_frame_if_it_has_one(kind: str) -> None:
    router = Router()
    client = router.connected(ALICE)
    needs_id = CLIENT_FRAMES[kind].needs_id
    client.edge.say(client, ClientFrame(**{kind: {"id": "f"} if needs_id else {}}))
    router.run()
    assert client.last("error").id == ("f" if needs_id else "")
