"""Parsing of paths, queries and bearer tokens for dialects."""

from __future__ import annotations

from contextlib import suppress
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trunkline.v1.catalogue import Refused
from trunkline.v1.edge_service_pb2 import ConnectionOpened
from trunkline_edge.dialects.dialect import bearer, read_query
from trunkline_edge.dialects.paths import Path

CHAT = Path("/ws/{tenant}/chat/{agent}")

#: Any text of a request line, with surrogates for bytes that are not UTF-8.
anything = st.text(st.characters(exclude_categories=()) | st.sampled_from("/%?&=+{}\udc80\udcff\x00 "))
names = st.text(min_size=1)


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/ws/acme/chat/bot", {"tenant": "acme", "agent": "bot"}),
        ("/ws/a%20b/chat/%E4%BD%A0", {"tenant": "a b", "agent": "你"}),
        ("/ws/a%2Fb/chat/c%2fd", {"tenant": "a/b", "agent": "c/d"}),
        ("/ws/你/chat/b", {"tenant": "你", "agent": "b"}),
        ("/ws/%/chat/%zz", {"tenant": "%", "agent": "%zz"}),
        ("/ws/{tenant}/chat/+", {"tenant": "{tenant}", "agent": "+"}),
        ("/ws//chat/bot", None),
        ("/ws/acme/chat/", None),
        ("/ws/acme/chat/bot/", None),
        ("//ws/acme/chat/bot", None),
        ("/ws/acme/Chat/bot", None),
        ("/ws/acme/chat/bot/more", None),
        ("ws/acme/chat/bot", None),
        ("", None),
        # Not UTF-8: distinct paths must stay distinct.
        ("/ws/%ff/chat/bot", None),
        ("/ws/%E4%BD/chat/bot", None),
        ("/ws/%ed%a0%80/chat/bot", None),
        ("/ws/\udcff/chat/bot", None),
        ("/ws/\udcff%41/chat/bot", None),
    ],
)
def test_a_path_is_taken_apart_before_it_is_decoded(path: str, found: dict[str, str] | None) -> None:
    assert CHAT.match(path) == found


@given(names, names)
def test_every_name_gets_through_a_path(tenant: str, agent: str) -> None:
    path = f"/ws/{quote(tenant, safe='')}/chat/{quote(agent, safe='')}"
    assert CHAT.match(path) == {"tenant": tenant, "agent": agent}


@given(anything, anything)
def test_any_path_either_matches_with_valid_utf8_or_does_not_match(one: str, two: str) -> None:
    assert CHAT.match(one) is None or one.startswith("/ws/")
    found = CHAT.match(f"/ws/{one}/chat/{two}")
    if found is not None:
        opened = ConnectionOpened(user=found["tenant"], protocol=found["agent"])
        assert opened.user
        assert opened.protocol


@given(anything)
def test_a_query_is_read_or_refused(text: str) -> None:
    with suppress(Refused):
        for name, value in read_query(text):
            ConnectionOpened(user=name, protocol=value)


@given(st.lists(st.tuples(st.text(), st.text()), max_size=8))
def test_every_query_is_read_as_it_was_meant(pairs: list[tuple[str, str]]) -> None:
    text = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in pairs)
    assert read_query(text) == pairs


@pytest.mark.parametrize("text", ["a=%ff", "%c3=b", "a=\udcff", "a=1;b=\udcff", "&".join("abcdefgh" * 5)])
def test_a_query_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(Refused, match="query cannot be read"):
        read_query(text)


@pytest.mark.parametrize(
    ("header", "token"),
    [
        ("Bearer secret", "secret"),
        ("bearer   a long secret ", "a long secret"),
        ("Basic secret", ""),
        ("Bearer", ""),
        ("secret", ""),
        ("", ""),
    ],
)
def test_a_token_is_taken_out_of_the_header(header: str, token: str) -> None:
    assert bearer({"authorization": header}) == token
    assert bearer({}) == ""
