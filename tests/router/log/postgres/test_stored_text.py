"""Any text survives a column that cannot hold NUL."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trunkline_router.log.postgres.stored_text import from_column, to_column

odd_texts = st.text(st.sampled_from("\0\x1001a"))


@given(odd_texts, odd_texts)
def test_every_text_has_a_form_of_its_own_without_nul(one: str, other: str) -> None:
    assert "\0" not in to_column(one)
    assert from_column(to_column(one)) == one
    assert (to_column(one) == to_column(other)) == (one == other)


@pytest.mark.parametrize("text", ["", "the 'first'", 'é"\\', '{"user":"\\u0000"}', "\x01\x1f\U0001f600"])
def test_texts_without_nul_are_stored_as_they_are(text: str) -> None:
    assert to_column(text) == text
