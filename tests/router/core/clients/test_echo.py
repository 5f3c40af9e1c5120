"""A client connected with `echo` receives its own messages like others do, in log order."""

from __future__ import annotations

import pytest

from tests.router.core.harness.client import RECALLED, Client
from tests.router.core.harness.router import ROOM, Router

USER = "x"


def in_room(router: Router, *, echo: bool = True, user: str = USER, edge: str = "e1") -> Client:
    return router.connected(ROOM, user=user, edge=edge, echo=echo)


def beside(router: Router, others: list[str]) -> list[Client]:
    """Connect others to the room, each on the edge of this name."""
    return [in_room(router, echo=False, user="y", edge=edge) for edge in others]


@pytest.mark.parametrize("others", [[], ["e1"], ["e2"], ["e1", "e2"]])
def test_the_author_receives_its_own_message_once_beside_its_ack(others: list[str]) -> None:
    router = Router()
    listeners = beside(router, others)
    author = in_room(router)
    router.broadcast(ROOM, "before")
    router.say(author, "mine")
    router.broadcast(ROOM, "after")
    router.run()
    assert author.texts == ["before", "mine", "after"]
    assert author.kinds().count("ack") == 1
    ack, heard = author.last("ack"), author.known["e1-2"]
    assert (ack.message_id, ack.position) == (heard.id, heard.position)
    assert author.place[ROOM].seq == 3
    for each in listeners:
        assert each.texts == ["before", "mine", "after"]


def test_an_author_without_echo_receives_only_its_ack() -> None:
    router = Router()
    native, author = in_room(router, echo=False), in_room(router)
    router.say(native, "from a native")
    router.say(author, "mine")
    router.run()
    assert (native.texts, author.texts) == (["mine"], ["from a native", "mine"])
    assert native.place[ROOM].seq == author.place[ROOM].seq == 2


def test_a_retry_is_acked_and_not_echoed_again() -> None:
    router = Router()
    author = in_room(router)
    for _ in range(2):
        router.say(author, "mine", ident="m")
        router.run()
    again = in_room(router)
    router.say(again, "mine", ident="m")
    router.run()
    assert (author.texts, again.texts) == (["mine"], [])
    assert (author.kinds().count("ack"), again.kinds().count("ack")) == (2, 1)


def test_its_own_edits_and_recalls_are_echoed_too() -> None:
    router = Router()
    author = in_room(router)
    router.say(author, "first", ident="m")
    router.run()
    router.frame(author, edit={"message_id": "e1-1", "parts": [{"text": {"text": "second"}}]})
    router.run()
    assert author.text("e1-1") == "second"
    router.frame(author, recall={"message_id": "e1-1"})
    router.run()
    assert author.known["e1-1"].state == RECALLED
    assert author.kinds().count("change") == 2
    assert author.kinds().count("ack") == 3


@pytest.mark.parametrize("others", [[], ["e1"]])
def test_a_message_sent_before_the_link_broke_is_echoed_once_on_the_next(others: list[str]) -> None:
    router = Router()
    beside(router, others)
    author = in_room(router)
    router.say(author, "mine", ident="m")
    # Committed, but the core does not know yet.
    router.break_link()
    router.run()
    router.link("e1")
    router.run()
    assert author.texts == ["mine"]
    assert author.kinds().count("ack") == 1
    router.say(author, "more")
    router.run()
    assert author.texts == ["mine", "more"]
    router.break_link()
    router.link("e1")
    router.run()
    assert author.texts == ["mine", "more"]


def test_a_signal_is_not_echoed() -> None:
    router = Router()
    author = in_room(router)
    [other] = beside(router, ["e1"])
    router.frame(author, signal={"name": "typing"})
    router.run()
    assert "signal" in other.kinds()
    assert "signal" not in author.kinds()


def test_a_message_to_an_unsubscribed_conversation_is_only_acked() -> None:
    router = Router()
    author = in_room(router)
    router.subscribe(author, (*ROOM[:4], "side"))
    router.run()
    router.say(author, "mine", (*ROOM[:4], "side"))
    router.unsubscribe(author, (*ROOM[:4], "side"))
    router.run()
    assert author.texts == []
    assert author.kinds()[-1] == "ack"
