"""Certificates are reloaded when their files change, and kept if the new ones are unusable."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import certs
import pytest
from cryptography.hazmat.primitives import serialization
from structlog.testing import capture_logs
from trunkline_runtime.certificates import (
    CHECK_INTERVAL_S,
    CertificatePair,
    ReloadingFile,
    TlsError,
    read_authorities,
    read_pair,
    server_context,
)

from tests.support.certificates import Certificates


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now

    def later(self) -> None:
        self.now += CHECK_INTERVAL_S


class Kept:
    """A watched certificate, with a manual clock."""

    def __init__(self, folder: Path) -> None:
        self.ours = Certificates(folder)
        self.certificate = self.ours.edge
        self.key = certs.key_of(self.certificate)
        self.clock = Clock()
        self.reads = 0
        self.watched = ReloadingFile([self.certificate, self.key], self._read, self.clock)

    def _read(self) -> CertificatePair:
        self.reads += 1
        return read_pair(self.certificate, self.key)


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path)


def test_files_are_read_once_as_long_as_they_stay(kept: Kept) -> None:
    first = kept.watched.current
    for _ in range(10):
        kept.clock.later()
        assert kept.watched.current is first
    assert kept.reads == 1


def test_changed_files_are_reloaded_and_checked_once_a_second(kept: Kept) -> None:
    first = kept.watched.current
    kept.ours.renew(kept.certificate)
    with capture_logs() as lines:
        kept.clock.now += CHECK_INTERVAL_S / 2
        assert kept.watched.current is first
        kept.clock.later()
        second = kept.watched.current
    assert second.certificate == kept.certificate.read_bytes() != first.certificate
    assert [line["event"] for line in lines] == ["certificates were reloaded"]


def test_a_symlink_to_another_file_is_a_change(tmp_path: Path) -> None:
    one, other = Certificates(tmp_path / "one"), Certificates(tmp_path / "other")
    link, clock = tmp_path / "now", Clock()
    link.symlink_to(one.folder)
    paths = [link / "edge.pem", link / "edge.key"]
    watched = ReloadingFile(paths, lambda: read_pair(*paths), clock)
    link.unlink()
    link.symlink_to(other.folder)
    clock.later()
    assert watched.current.certificate == other.edge.read_bytes()


@pytest.mark.parametrize("how", ["rubbish", "gone", "half of a pair"])
def test_an_unusable_change_is_logged_once_and_the_old_files_stay(kept: Kept, how: str) -> None:
    first, key = kept.watched.current, kept.key.read_bytes()
    match how:
        case "rubbish":
            kept.key.write_text("rubbish")
        case "gone":
            kept.key.unlink()
        case "half of a pair":
            kept.ours.renew(kept.certificate)
            kept.key.write_bytes(key)
    with capture_logs() as lines:
        for _ in range(3):
            kept.clock.later()
            assert kept.watched.current is first
    (line,) = lines
    assert line["log_level"] == "warning"
    assert str(kept.key) in line["problem"]
    kept.ours.renew(kept.certificate)
    kept.clock.later()
    assert kept.watched.current.certificate == kept.certificate.read_bytes()


def test_files_that_change_during_a_reload_are_reloaded_again(tmp_path: Path) -> None:
    path, clock = tmp_path / "file", Clock()
    path.write_text("one")
    texts = []

    def read() -> str:
        texts.append(path.read_text())
        if len(texts) == 2:
            path.write_text("third")
        return texts[-1]

    watched = ReloadingFile([path], read, clock)
    path.write_text("other")
    clock.later()
    assert watched.current == "one"
    clock.later()
    assert watched.current == "third"


def test_many_threads_may_ask(kept: Kept) -> None:
    kept.ours.renew(kept.certificate)
    kept.clock.later()
    found: list[CertificatePair] = []
    threads = [threading.Thread(target=lambda: found.append(kept.watched.current)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert kept.reads == 2


def test_problems_of_files_are_reported_in_one_line(tmp_path: Path) -> None:
    ours, rubbish = Certificates(tmp_path), tmp_path / "rubbish"
    rubbish.write_text("rubbish")
    other = certs.key_of(ours.router)
    tries = [
        (lambda: read_pair(tmp_path / "none.pem", other), "none.pem cannot be read: No such file"),
        (lambda: read_pair(ours.edge, other), "cannot be used with the key in"),
        (lambda: read_pair(rubbish, other), "rubbish cannot be used with"),
        (lambda: server_context(ours.edge, other), "key values mismatch"),
        (lambda: read_authorities(rubbish), "rubbish holds no certificates"),
    ]
    for attempt, words in tries:
        with pytest.raises(TlsError) as raised:
            attempt()
        assert words in str(raised.value)
        assert "\n" not in str(raised.value)


def test_a_key_with_a_passphrase_is_refused_and_nobody_is_asked_for_it(tmp_path: Path) -> None:
    ours = Certificates(tmp_path)
    path = certs.key_of(ours.edge)
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    locked = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    path.write_bytes(locked)
    with pytest.raises(TlsError, match="the key has a passphrase"):
        read_pair(ours.edge, path)


def test_keys_are_files_that_only_their_owner_can_read(tmp_path: Path) -> None:
    Certificates(tmp_path)
    keys = list(tmp_path.glob("*.key"))
    assert len(keys) == 5
    assert {os.stat(key).st_mode & 0o777 for key in keys} == {0o600}
