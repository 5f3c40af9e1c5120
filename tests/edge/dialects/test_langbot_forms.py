"""Forms with files, and the names of uploads."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trunkline.v1.message_pb2 import MediaPart, Part, TextPart
from trunkline_edge.dialects.dialect import HttpRequest
from trunkline_edge.dialects.langbot.file_routes import file_routes
from trunkline_edge.dialects.langbot.multipart_form import MAX_FIELDS, FormFile, read_file
from trunkline_edge.dialects.langbot.upload_keys import key_in, references_in, upload_name
from trunkline_edge.dialects.tenant_policies import TenantPolicies

from tests.support.declared_tenants import policy

FORM = "multipart/form-data; boundary=b"
KEY = "0123456789abcdef" * 3
TENANTS = TenantPolicies([policy("acme", pipelines=["p"])])
DOCUMENTS = next(route for route in file_routes() if route.path.text.endswith("documents"))


def form(*fields: tuple[str, str, bytes], end: bytes = b"--b--\r\n") -> bytes:
    return (
        b"".join(
            b'--b\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n'
            % (name.encode(), f'; filename="{file}"'.encode() if file else b"", content)
            for name, file, content in fields
        )
        + end
    )


def test_the_first_file_of_the_field_is_read() -> None:
    body = form(("x", "", b"1"), ("file", "", b"no file"), ("file", "a.png", b"\r\n--c"), ("file", "b", b"2"))
    assert read_file(FORM, body) == FormFile("a.png", b"\r\n--c")
    assert read_file('multipart/form-data; boundary="b"', form(("file", "ä", b""))) == FormFile("ä", b"")
    assert read_file(FORM, form(("other", "a.png", b"1"))) is None


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", form(("file", "a", b"1"))),
        ("multipart/form-data; boundary=", form(("file", "a", b"1"))),
        (FORM, b""),
        (FORM, b"{}"),
        (FORM, form(("file", "a", b"1"), end=b"")),
        (FORM, form(*[("f", "", b"")] * (MAX_FIELDS + 1))),
        (FORM, b"--b\r\nContent-Disposition: form-data; name=" + b"x" * 9000),
    ],
)
def test_a_malformed_form_is_refused(content_type: str, body: bytes) -> None:
    with pytest.raises(ValueError, match="form"):
        read_file(content_type, body)


@given(st.binary(), st.text())
def test_any_bytes_are_a_form_or_refused(body: bytes, content_type: str) -> None:
    for kind in (FORM, content_type):
        with suppress(ValueError):
            read_file(kind, b"--b\r\n" + body)


@pytest.mark.parametrize("name", ["a/b.txt", "a\\b.txt", "a\0.txt", "a\n.txt", "\u202etxt.a", "..", ".", " "])
def test_a_name_that_could_be_a_path_is_refused(name: str) -> None:
    body = form(("file", name.replace("\\", "\\\\"), b"1"))
    request = HttpRequest({}, (), {"content-type": FORM}, body, TENANTS, is_local=True)
    handling = DOCUMENTS.handle(request)
    with pytest.raises(StopIteration) as stopped:
        next(handling)
    reply = stopped.value.value
    assert (reply.status, reply.body["code"]) == (400, -1)


def test_names_and_keys_belong_together() -> None:
    for tenant in ("acme", "ä b%2F?#"[:2], "a%2fb"):
        part = Part(image=MediaPart(storage_key=upload_name(tenant, KEY, "png")))
        [reference] = references_in([Part(text=TextPart(text="x")), Part(), part])
        assert (reference.tenant, reference.key) == (tenant, KEY)
    assert key_in(f"{KEY}.png") == KEY
    for other in (KEY, f"{KEY}.", f"{KEY}.PNG", f"{KEY[1:]}.png", f"x{KEY}.png", f"{KEY}.png\n"):
        assert key_in(other) == ""
        assert references_in([Part(file=MediaPart(storage_key=f"acme/{other}"))]) == []
    for other in (f"/{KEY}.png", f"a/b/{KEY}.png", f"a?/{KEY}.png"):
        assert references_in([Part(file=MediaPart(storage_key=other))]) == []
