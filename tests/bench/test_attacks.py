"""Attack benchmark: bytes of the attacks, goals and report."""

import pytest
from trunkline.v1.frame_pb2 import ClientFrame

from bench.goals import rows
from bench.loadgen.hostile_input import ATTACKS, BODY_BYTES, FRAME_BYTES, PARTS
from bench.loadgen.websocket_frames import BINARY, CONTINUATION, PING, TEXT
from bench.report import markdown
from bench.scenarios.attacks import CALM

MASK_BYTES = 4


def client_frames(stream: bytes) -> list[tuple[int, bytes]]:
    """Opcode and payload of each frame; the mask is 0."""
    found, at = [], 0
    while at < len(stream):
        opcode, size, at = stream[at] & 0x0F, stream[at + 1] & 0x7F, at + 2
        if extended := {126: 2, 127: 8}.get(size, 0):
            size, at = int.from_bytes(stream[at : at + extended], "big"), at + extended
        at += MASK_BYTES
        found.append((opcode, stream[at : at + size]))
        at += size
    return found


@pytest.mark.parametrize(
    "name", ["nested data", "data with many keys", "many parts", "unknown keys", "many keys, protobuf"]
)
def test_a_hostile_frame_has_the_size_that_an_edge_accepts(name: str) -> None:
    """One whole frame, neither rejected for its size nor harmless."""
    [(opcode, payload)] = client_frames(ATTACKS[name]("t").chunk)
    assert opcode in (TEXT, BINARY)
    assert FRAME_BYTES / 2 < len(payload) < 1_250_000


def test_parts_in_protobuf_are_a_message_frame() -> None:
    """The frame that the edge would decode."""
    [(_, payload)] = client_frames(ATTACKS["many parts, protobuf"]("t").chunk)
    assert len(ClientFrame.FromString(payload).message.parts) == PARTS


def test_fragments_are_one_message() -> None:
    """All fragments between the first and the last are empty."""
    frames = client_frames(ATTACKS["empty fragments"]("t").chunk)
    assert b"".join(payload for _, payload in frames) == b'{"type":"ping"}'
    assert {opcode for opcode, _ in frames[1:]} == {CONTINUATION}


def test_pings_are_control_frames() -> None:
    """A control frame has at most 125 bytes."""
    for name in ("pings", "pings, nothing read"):
        assert {
            (opcode, len(payload) <= 125) for opcode, payload in client_frames(ATTACKS[name]("t").chunk)
        } == {(PING, True)}


def test_a_body_is_as_long_as_its_head_states() -> None:
    """Otherwise the attack would be another one."""
    head, _, body = ATTACKS["HTTP bodies"]("t").chunk.partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert len(body) > BODY_BYTES


def attacks(p99_ms: float, calm_ms: float = 10.0, lost: int = 0) -> dict[str, object]:
    """Results of one attack beside the calm phase."""

    def phase(p99: float, **more: object) -> dict[str, object]:
        delay = {"p50_ms": 2.0, "p99_ms": p99}
        wrong = {"unacked": lost} if lost else {}
        return {
            "acked": delay,
            "heard": delay,
            "p99_ms_of_each": [p99],
            "wrong": wrong,
            "cpu_percent": {},
        } | more

    attack = {"attacked_s": 4.0, "sent_mb_per_s": 1.5}
    return {"quiet_per_s": 100, "phases": {CALM: phase(calm_ms), "pings": phase(p99_ms, attack=attack)}}


@pytest.mark.parametrize(
    ("p99_ms", "calm_ms", "lost", "met"),
    [
        (30, 10, 0, [True, True]),
        (31, 10, 0, [False, True]),
        (251, 100, 0, [False, True]),
        (30, 10, 1, [True, False]),
    ],
)
def test_each_goal_can_be_missed(p99_ms: float, calm_ms: float, lost: int, met: list[bool]) -> None:
    """Ratio to the calm p99, the p99 itself, and errors of the tenant that is not attacking."""
    assert [row.met for row in rows({"attacks": attacks(p99_ms, calm_ms, lost)})] == met


def test_the_report_contains_each_attack() -> None:
    """With the bytes that the edge took from it."""
    assert "| pings | 2.00 / 30.00 | 2.00 / 30.00 | 3.00 | 30.0 | 1.5 |" in markdown(
        {}, {"attacks": attacks(30)}
    )
