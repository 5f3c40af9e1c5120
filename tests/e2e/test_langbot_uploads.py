"""Uploads of LangBot's clients: stored, read back, sent in messages, refused, and deleted."""

from __future__ import annotations

import base64
import zlib
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.e2e.langbot_client import ChatClient, EdgeFleet, RestClient, edges_of, pipeline_worker
from tests.e2e.langbot_tokens import DASH, WORKSPACE, headers, token
from tests.e2e.operator_client import OperatorClient
from tests.e2e.polling import wait_until
from tests.support.patience import patient

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from trunkline_client import Handler, Message, Worker

    from tests.support.processes import Process

TTL_S = 3
TENANTS = f"""
[tenants.acme]
open_to = "loopback"
pipelines = ["bot1"]
[tenants.acme.limits]
upload_bytes = 100000
media_files = 4
{DASH}"""


def png(seed: int = 0) -> bytes:
    """A picture of one pixel."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)

    head = chunk(b"IHDR", b"\0\0\0\1\0\0\0\1\x08\2\0\0\0")
    pixel = zlib.compress(bytes([0, seed % 256, 0, 0]))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", pixel) + chunk(b"IEND", b"")


class Files:
    """LangBot's calls for files."""

    def __init__(self, edge: Process, headers: dict[str, str] | None = None) -> None:
        self._base = f"http://{edge.address}/api/v1/files"
        self._headers = headers or {}

    def upload(
        self, content: bytes = b"", name: str = "a.png", kind: str = "images", **more: Any
    ) -> httpx.Response:
        form = {"files": {"file": (name, content or png(), "application/octet-stream")}} | more
        own = self._headers | form.pop("headers", {})
        return httpx.post(f"{self._base}/{kind}", headers=own, timeout=patient(15), **form)

    def stored(self, *args: Any, **more: Any) -> str:
        """Upload a file that must be accepted; return its name."""
        answer = self.upload(*args, **more)
        body = answer.json()
        assert (answer.status_code, body["code"], body["msg"]) == (200, 0, "ok"), body
        [name] = body["data"].values()
        return str(name)

    def download(self, name: str) -> httpx.Response:
        return httpx.get(f"{self._base}/image/{name}", headers=self._headers, timeout=patient(15))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("uploads")


@pytest.fixture(scope="module")
def edges(folder: Path) -> Iterator[EdgeFleet]:
    with edges_of(folder, TENANTS, TRUNKLINE_UPLOAD_TTL_S="1000") as started:
        yield started


@pytest.fixture
def edge(edges: EdgeFleet) -> Process:
    return edges.plain


@pytest.fixture
def files(edges: EdgeFleet) -> Files:
    """Of a tenant that is open to this machine."""
    return Files(edges.plain)


@pytest.fixture
def others(edges: EdgeFleet) -> Files:
    """Of a tenant with LangBot's key."""
    return Files(edges.plain, headers(token()))


def stored_files(folder: Path) -> list[Path]:
    return [path for path in (folder / "data").rglob("media/*/*") if path.is_file()]


def described(worker: Worker) -> Handler:
    """Reply with what the worker received of each media part."""

    def answer(message: Message) -> str:
        kinds = [(part.WhichOneof("content"), part) for part in message.parts]
        media = [(kind, getattr(part, kind)) for kind, part in kinds if kind in ("image", "audio", "file")]
        return " ".join(f"{kind}:{each.mime_type}:{len(each.inline)}:{each.name}" for kind, each in media)

    return answer


async def test_an_upload_becomes_part_of_the_message_that_names_it(
    edges: EdgeFleet, others: Files, folder: Path
) -> None:
    edge, mine = edges.plain, token()
    picture, document = png(1), b"%PDF-1.7 " + bytes(5000)
    image = others.stored(picture)
    file = others.stored(document, "Report ä.PDF", "documents")
    assert image.endswith(".png")
    assert file.endswith(".pdf")
    chain = [
        {"type": "Plain", "text": "look"},
        {"type": "Image", "path": image},
        {"type": "File", "path": file, "name": "Report ä.PDF"},
    ]
    async with (
        pipeline_worker(edges.router, ["p1"], described, tenant="dash", api_key=edges.fleet.operator_key),
        ChatClient(edge, "p1", first={"type": "authenticate", "token": mine, "workspace_uuid": "w"}) as chat,
    ):
        await chat.send({"type": "message", "message": chain})
        await chat.say("behind it")
        sent = (await chat.next("user_message"))["data"]
        shown = [
            {"type": "Plain", "text": "look"},
            {"type": "Image", "base64": f"data:image/png;base64,{base64.b64encode(picture).decode()}"},
            {
                "type": "File",
                "base64": f"data:application/pdf;base64,{base64.b64encode(document).decode()}",
                "name": "Report ä.PDF",
            },
        ]
        assert sent["message_chain"] == shown
        # Frames behind it keep their place.
        assert (await chat.next("user_message"))["data"]["content"] == "behind it"
        reply = await chat.reply()
        expected = f"image:image/png:{len(picture)}: file:application/pdf:{len(document)}:Report ä.PDF"
        assert reply[-1]["content"] == expected
    records = await RestClient(edge, "p1", headers(mine)).messages()
    assert records[0]["message_chain"] == shown


def test_an_upload_is_read_back_with_safe_headers(others: Files, files: Files) -> None:
    name = others.stored(png(2), "photo.PNG")
    answer = others.download(name)
    assert (answer.status_code, answer.content) == (200, png(2))
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in answer.headers["content-security-policy"]
    assert answer.headers["content-disposition"].startswith("inline")
    text = others.stored(b"<script>alert(1)</script>", "page.txt", "documents")
    answer = others.download(text)
    assert answer.headers["content-disposition"].startswith("attachment")
    assert answer.headers["content-type"].startswith("text/plain")
    # Without the token, and as another tenant's.
    assert files.download(name).status_code == 401
    assert files.download(name.replace("dash/", "acme/")).status_code == 404
    for wrong in ("dash/x.png", f"dash/{'0' * 48}.png", "dash/..%2f..%2fetc%2fpasswd", f"{name}%00"):
        refused = others.download(wrong)
        assert (refused.status_code, refused.json()["code"]) == (404, -1), wrong


@pytest.mark.parametrize(
    ("content", "name", "kind", "status", "text"),
    [
        (bytes(100_001), "a.png", "images", 413, "at most 100000 are allowed"),
        (bytes(100_001), "a.txt", "documents", 413, "at most 100000 are allowed"),
        (bytes(14 << 20), "a.png", "images", 413, "13631488"),
        (b"<svg/>", "a.svg", "images", 415, "gif, jpeg, jpg, png, webp"),
        (b"<svg/>", "a.svg", "documents", 415, "Allowed: "),
        (b"<html>", "a.html", "documents", 415, "Allowed: "),
        (b"MZ", "a.png.exe", "documents", 415, "Allowed: "),
        (b"x", "noextension", "images", 415, "Allowed: "),
        (b"x", "../../etc/cron.d/a.png", "images", 400, "invalid characters"),
        (b"x", "a\\b.txt", "documents", 400, "invalid characters"),
        (b"x", "\u202egnp.txt", "documents", 400, "invalid characters"),
        (b"x", "..", "documents", 400, "invalid characters"),
    ],
)
def test_a_bad_upload_is_refused_and_nothing_is_stored(
    files: Files, folder: Path, content: bytes, name: str, kind: str, status: int, text: str
) -> None:
    before = stored_files(folder)
    answer = files.upload(content, name, kind)
    body = answer.json()
    assert (answer.status_code, body["code"], set(body)) == (status, -1, {"code", "msg"}), body
    assert text in body["msg"]
    assert stored_files(folder) == before


def test_a_form_that_is_none_is_refused(files: Files) -> None:
    form = "multipart/form-data; boundary=x"
    for content, content_type, status in (
        (b"--x\r\n", form, 400),
        (b"", form, 400),
        (b"\xff" * 100, form, 400),
        (b"x", "multipart/form-data", 400),
        (b"{}", "application/json", 415),
        (b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\nno file\r\n--x--\r\n', form, 400),
        (
            b'--x\r\nContent-Disposition: form-data; name="f"; filename="a"\r\n\r\nx\r\n--x--\r\n',
            form,
            400,
        ),
        (b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n' * 20 + b"--x--\r\n", form, 400),
    ):
        answer = files.upload(files=None, content=content, headers={"content-type": content_type})
        assert (answer.status_code, answer.json()["code"]) == (status, -1), (content, answer.text)


async def test_a_message_with_an_upload_that_is_not_there_is_refused(
    edge: Process, files: Files, others: Files
) -> None:
    foreign = others.stored(png(3))
    async with ChatClient(edge, "bot1") as chat:
        for path in (foreign, f"acme/{'0' * 48}.png"):
            await chat.send({"type": "message", "message": [{"type": "Image", "path": path}]})
            assert "There is no upload" in (await chat.next("error"))["message"]
        # A name of another store is passed on.
        await chat.send({"type": "message", "message": [{"type": "Image", "path": "store/1.png"}]})
        assert (await chat.next("user_message"))["data"]["message_chain"][0]["path"] == "store/1.png"
        assert len(await RestClient(edge, "bot1").messages()) == 1


def test_uploads_are_bounded_per_tenant(files: Files, others: Files) -> None:
    answers = [files.upload(png(each)) for each in range(6)]
    assert {each.status_code for each in answers} == {200, 429}
    assert "at a time" in answers[-1].json()["msg"]
    assert answers[-1].headers["retry-after"]
    others.stored()


async def test_too_many_uploads_for_one_message_are_refused(edge: Process, others: Files) -> None:
    names = [others.stored(bytes(7 << 20), "big.bin", "documents") for _ in range(2)]
    mine = {"type": "authenticate", "token": token(), "workspace_uuid": "w"}
    async with ChatClient(edge, "p1", first=mine) as chat:
        await chat.send({"type": "message", "message": [{"type": "File", "path": name} for name in names]})
        assert "bytes with its uploads" in (await chat.next("error"))["message"]
        await chat.send({"type": "message", "message": [{"type": "File", "path": names[0]}]})
        assert (await chat.next("user_message"))["data"]["message_chain"][0]["type"] == "File"


def test_an_upload_without_a_tenant_is_refused(tmp_path: Path) -> None:
    tenants = "".join(
        f"[tenants.{name}]\nopen_to = 'loopback'\npipelines = ['{name}']\n" for name in ("a", "b")
    )
    with edges_of(tmp_path, f"{tenants}workspaces = ['{WORKSPACE}']\n") as edges:
        answer = Files(edges.plain, {"Authorization": f"Bearer {token()}"}).upload()
        assert (answer.status_code, answer.json()["code"]) == (403, -1)
        assert "workspace" in answer.json()["msg"]
        # The workspace names one, and another edge serves what this one stored.
        name = Files(edges.plain, headers(token())).stored()
        assert name.startswith("b/")
        assert Files(edges.start()).download(name).content == png()
        assert len(stored_files(tmp_path)) == 1


async def test_an_upload_that_is_never_used_is_deleted(tmp_path: Path) -> None:
    tenants = "[tenants.acme]\nopen_to='loopback'\npipelines=['bot1']\n"
    with edges_of(tmp_path, tenants, TRUNKLINE_UPLOAD_TTL_S=str(TTL_S)) as edges:
        files = Files(edges.plain)
        unused, used = files.stored(png(1)), files.stored(png(2))
        async with ChatClient(edges.plain, "bot1") as chat:
            await chat.send({"type": "message", "message": [{"type": "Image", "path": used}]})
            await chat.next("user_message")
        await edges.fleet.restart_router()
        await wait_until(lambda: not stored_files(tmp_path), "the uploads are deleted", timeout_s=patient(20))
        assert files.download(unused).status_code == 404
        # The message has its picture still.
        [record] = await RestClient(edges.plain, "bot1").messages()
        assert record["message_chain"][0]["base64"].startswith("data:image/png;base64,")


async def test_erasing_a_user_erases_their_uploads(edges: EdgeFleet, folder: Path) -> None:
    mine = Files(edges.plain, headers(token(sub="leaving")))
    kept, erased = Files(edges.plain, headers(token())).stored(), mine.stored()
    with OperatorClient(edges.router.address, edges.fleet.operator_key) as operator:
        operator.erase_user("dash", "leaving")
    assert mine.download(erased).status_code == 404
    assert mine.download(kept).status_code == 200
