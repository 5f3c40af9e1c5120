"""Path templates, and their matching."""

from __future__ import annotations

import pytest
from trunkline_edge.http.path_router import PathMatch, PathRouter, pattern_of


@pytest.mark.parametrize(
    ("template", "segments", "variables", "verb"),
    [
        ("/v1/things", ("v1", "things"), (), ""),
        ("/v1/{name}", ("v1", None), ("name",), ""),
        ("/v1/{name=*}:undo", ("v1", None), ("name",), "undo"),
        ("/v1/{a.b_c.d}/x/{e}", ("v1", None, "x", None), ("a.b_c.d", "e"), ""),
        ("/v1/things:watch", ("v1", "things"), (), "watch"),
    ],
)
def test_a_template_is_taken_apart(
    template: str, segments: tuple[str | None, ...], variables: tuple[str, ...], verb: str
) -> None:
    assert pattern_of(template) == (segments, variables, verb)


@pytest.mark.parametrize(
    "template",
    ["v1/things", "/v1/{name=things/*}", "/v1/{name=**}", "/v1/x{name}", "/v1/*", "/v1//x", "/v1/x:a:b"],
)
def test_a_template_of_another_form_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match=r"template|segment"):
        pattern_of(template)


@pytest.fixture
def table() -> PathRouter[str]:
    table: PathRouter[str] = PathRouter()
    for http_method, template in [
        ("GET", "/v1/{t}/things"),
        ("POST", "/v1/{t}/things"),
        ("GET", "/v1/{t}/things/{id}"),
        ("POST", "/v1/{t}/things/{id}:undo"),
        ("POST", "/v1/{t}/things:close"),
        ("GET", "/v1/fixed/{x}/deep"),
    ]:
        table.add(http_method, pattern_of(template), f"{http_method} {template}")
    return table


@pytest.mark.parametrize(
    ("path", "template", "values"),
    [
        ("/v1/a/things", "/v1/{t}/things", ("a",)),
        ("/v1/a/things/1", "/v1/{t}/things/{id}", ("a", "1")),
        ("/v1/a/things/1:undo", "/v1/{t}/things/{id}:undo", ("a", "1")),
        ("/v1/a/things/1:2:undo", "/v1/{t}/things/{id}:undo", ("a", "1:2")),
        # A colon that precedes no verb, or is escaped, belongs to the id.
        ("/v1/a/things/1:other", "/v1/{t}/things/{id}", ("a", "1:other")),
        ("/v1/a/things/:undo", "/v1/{t}/things/{id}", ("a", ":undo")),
        ("/v1/a/things/1%3Aundo", "/v1/{t}/things/{id}", ("a", "1:undo")),
        ("/v1/a/things:close", "/v1/{t}/things:close", ("a",)),
        ("/v1/a%2Fb/things", "/v1/{t}/things", ("a/b",)),
        ("/v1/~a@b.c/things/%E7%BE%A4", "/v1/{t}/things/{id}", ("~a@b.c", "群")),
        ("/v1/a+b/things/%2e%2e", "/v1/{t}/things/{id}", ("a+b", "..")),
        ("/v1/fixed/things", "/v1/{t}/things", ("fixed",)),
        ("/v1/fixed/x/deep", "/v1/fixed/{x}/deep", ("x",)),
        ("/%761/a/things", "/v1/{t}/things", ("a",)),
    ],
)
def test_a_path_names_one_pattern(
    table: PathRouter[str], path: str, template: str, values: tuple[str, ...]
) -> None:
    found = table.find(path)
    assert isinstance(found, PathMatch)
    assert found.values == values
    assert {item.partition(" ")[2] for item in found.methods.values()} == {template}


@pytest.mark.parametrize(
    "path",
    [
        "/", "", "/v1", "/v1/", "/v1/a", "/v1//things", "/v1/a/things/", "/v1/a/things//",
        "/v1/a/things/1/2", "/v1/a/things:open", "/V1/a/things", "/v1/a/things%3Aclose", "/v2/a/things",
    ],
)  # fmt: skip
def test_any_other_path_names_none(table: PathRouter[str], path: str) -> None:
    assert table.find(path) is None


def test_paths_that_are_not_utf8_raise(table: PathRouter[str]) -> None:
    with pytest.raises(UnicodeDecodeError):
        table.find("/v1/%ff/things")


def test_two_things_cannot_be_at_one_place(table: PathRouter[str]) -> None:
    with pytest.raises(ValueError, match=r"is taken by GET /v1/\{t\}/things"):
        table.add("GET", pattern_of("/v1/{other}/things"), "other")
