"""The error catalogue is complete, consistent, and used with the values that its texts need."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from string import Formatter

import pytest
from trunkline.v1 import catalogue
from trunkline.v1.catalogue import ENTRIES, Entry
from trunkline.v1.error_pb2 import ErrorCode

from tests.support.processes import ROOT

SOURCES = sorted(path for room in ("router", "edge", "runtime") for path in (ROOT / room).rglob("*.py"))


def placeholders(entry: Entry) -> set[str]:
    """Names that each occurrence must supply."""
    return {name for _, name, _, _ in Formatter().parse(entry.text) if name is not None}


def test_each_code_but_the_first_has_an_entry_and_only_those() -> None:
    codes = {name.removeprefix("ERROR_CODE_") for name in ErrorCode.keys()}  # noqa: SIM118
    assert codes - {"UNSPECIFIED"} == ENTRIES.keys()


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_each_entry_has_a_sentence_with_named_placeholders(entry: Entry) -> None:
    assert entry.text
    assert not entry.text.endswith((".", " "))
    assert all(re.fullmatch("[a-z_]+", name) for name in placeholders(entry))
    sentence = entry.sentence(**dict.fromkeys(placeholders(entry), "{braces} stay"))
    assert ("{braces} stay" in sentence) is bool(placeholders(entry))


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_the_range_of_a_close_code_states_whether_to_reconnect(entry: Entry) -> None:
    code = entry.close_code
    assert code in (0, 1000, 1009, 1011, 1012, 1013) or 4000 <= code <= 4999
    if 4000 <= code <= 4499 or code in (1011, 1012, 1013):
        assert entry.retryable
    if code >= 4500 or code in (1000, 1009):
        assert not entry.retryable


def test_close_codes_of_our_own_mean_one_thing_each() -> None:
    own = [entry.close_code for entry in ENTRIES.values() if entry.close_code >= 4000]
    assert len(own) == len(set(own))


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_each_entry_has_a_status_or_a_close_code(entry: Entry) -> None:
    assert entry.grpc_status or entry.http_status or entry.close_code
    assert 0 <= entry.grpc_status <= 16
    assert not entry.grpc_status or entry.http_status, "what an RPC is refused for has an HTTP form"
    assert entry.http_status == 0 or 400 <= entry.http_status <= 599
    assert entry.retryable or not entry.retry_after_ms


def uses() -> Iterator[tuple[str, str, set[str] | None]]:
    """Uses of the catalogue: place, entry, and the values supplied if its text is filled in there."""
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        called = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
        completed: dict[int, set[str] | None] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr in ("refused", "sentence"):
                call = called.get(id(node))
                if call is not None:
                    names = {keyword.arg for keyword in call.keywords}
                    # The delay is not part of the text.
                    supplied = {name for name in names if name} - {"retry_after_ms"}
                    completed[id(node.value)] = supplied if None not in names else None
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "catalogue" and is_entry(node):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node.attr, completed.get(id(node))


def is_entry(node: ast.Attribute) -> bool:
    """The node names an entry, or should."""
    return node.attr.isupper() and node.attr not in ("CONTRACT_MINOR", "ENTRIES")


USES = list(uses())


def test_the_catalogue_is_used() -> None:
    assert len(USES) > 30
    assert sum(supplied is not None for _, _, supplied in USES) > 25


@pytest.mark.parametrize(
    ("place", "code", "supplied"), USES, ids=[f"{place}-{code}" for place, code, _ in USES]
)
def test_each_use_supplies_exactly_what_the_text_names(
    place: str, code: str, supplied: set[str] | None
) -> None:
    entry = getattr(catalogue, code)
    if supplied is not None:
        assert supplied == placeholders(entry), place


def test_each_entry_is_used_by_the_router_or_the_edge() -> None:
    assert ENTRIES.keys() - {code for _, code, _ in USES} == set()


def raised(path: Path) -> Iterator[str]:
    """Places that construct a refusal without an entry."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Refused":
            yield f"{path.relative_to(ROOT)}:{node.lineno}"


def test_every_refusal_comes_from_an_entry() -> None:
    # These make one of a complete text: a closing frame's, and a dialect's own.
    sources = [path for path in SOURCES if path.name not in ("refusals.py", "codec.py")]
    assert [place for path in sources for place in raised(path)] == []
