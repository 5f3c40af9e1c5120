"""Entries as engines store them: with a checksum, and with the epoch that they were written in."""

from __future__ import annotations

from zlib import crc32

from google.protobuf.message import DecodeError
from trunkline.v1.frame_pb2 import ReadFrame
from trunkline.v1.message_pb2 import Change, Message

from trunkline_router.core.values.log_records import EntryKind


def checksum(topic_id: int, seq: int, body: bytes) -> int:
    """Compute the checksum of an entry as stored: it also detects a body at the place of another."""
    return crc32(body, (topic_id * 0x9E3779B1 + seq) & 0xFFFFFFFF)


def is_intact(topic_id: int, seq: int, body: bytes, crc: int | None) -> bool:
    """Return whether an entry has its checksum; one without a checksum counts as intact."""
    return crc is None or crc32(body, (topic_id * 0x9E3779B1 + seq) & 0xFFFFFFFF) == crc


def is_readable(seq: int, body: bytes) -> bool:
    """Return whether a plain body is an entry with this seq: a weak check, for one without a checksum."""
    for kind in (Message, Change, ReadFrame):
        try:
            entry = kind.FromString(body)
        except DecodeError:
            continue
        if (entry.at if isinstance(entry, ReadFrame) else entry.position).seq == seq:
            return True
    return False


def in_epoch(kind: EntryKind, body: bytes, epoch: str) -> bytes:
    """Return an entry of a former epoch with the positions that it has in this one. Its ids stay."""
    if kind is EntryKind.MESSAGE:
        message = Message.FromString(body)
        message.position.epoch = epoch
        return message.SerializeToString()
    if kind is EntryKind.CHANGE:
        change = Change.FromString(body)
        change.position.epoch = epoch
        if change.HasField("message"):
            change.message.position.epoch = epoch
        return change.SerializeToString()
    read = ReadFrame.FromString(body)
    read.position.epoch = read.at.epoch = epoch
    return read.SerializeToString()
